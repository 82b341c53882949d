"""Tests of the store in a bucket, on a real object store; all of them with `python -m tests.stores.objects`."""
