"""A store in a bucket of an object store (S3), which several servers may use at once; needs `rxfiles[s3]`."""

from .store import ObjectStore

__all__ = ["ObjectStore"]
