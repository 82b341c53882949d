"""Tests of the store in a bucket, with a real object store on this machine; `python -m tests.stores.objects` is long."""
