"""What a service must be able to do, tried out when a store starts."""

import asyncio
import io
from contextlib import suppress

from .bucket import Bucket
from .failures import Missing, Refused
from .keys import Keys
from .state import new_token

__all__ = ["lists_in_folders", "probe"]

_RACERS = 8


async def probe(bucket: Bucket, keys: Keys) -> None:
    """Writes and removes some small objects.

    Raises:
        OSError: The service ignores a condition: several servers, and even the uploads of one, would destroy each
            other's files without a word.
    """
    root = f"{keys.reserved}probe/{new_token()}/"
    key = f"{root}object"
    try:
        results = await asyncio.gather(*(_creates(bucket, f"{root}race", number) for number in range(_RACERS)))
        if sum(results) != 1:
            raise _unfit(f"of {_RACERS} requests at once to create one object, {sum(results)} succeeded")
        etag = await bucket.put(key, b"first", only_new=True)
        other = "0" * 32
        for what, request in (
            ("to create an object that is there", lambda: bucket.put(key, b"second", only_new=True)),
            ("to replace another version of an object", lambda: bucket.put(key, b"second", if_match=other)),
            ("to delete another version of an object", lambda: bucket.delete(key, other)),
            ("to read another version of an object", lambda: bucket.content(key, if_match=other)),
            ("to complete an upload in parts over an object", lambda: _completes(bucket, key)),
        ):
            try:
                await request()
            except (Refused, Missing):
                continue
            raise _unfit(f"a request {what} succeeded")
        await bucket.put(key, b"second", if_match=etag)
    finally:
        for each in (key, f"{root}race"):
            with suppress(Missing, Refused):
                await bucket.delete(each)


async def lists_in_folders(bucket: Bucket, keys: Keys) -> bool:
    """Whether the service lists what is in a folder before other names that begin with the folder's."""
    root = f"{keys.reserved}probe/{new_token()}/"
    names = [f"{root}a-b", f"{root}a/b"]
    try:
        for name in names:
            await bucket.put(name, b"")
        return [found.key for found in (await bucket.list(root)).objects] != names
    finally:
        for name in names:
            await bucket.delete(name)


async def _creates(bucket: Bucket, key: str, number: int) -> bool:
    try:
        await bucket.put(key, b"%d" % number, only_new=True)
    except Refused:
        # The answer to an attempt that was repeated may have been lost.
        return (await bucket.content(key))[1] == b"%d" % number
    return True


async def _completes(bucket: Bucket, key: str) -> None:
    parts_id = await bucket.begin_parts(key, {}, key)
    try:
        etag = await bucket.put_part(key, parts_id, 1, io.BytesIO(b"third"), key)
        await bucket.complete_parts(key, parts_id, [(1, etag)], only_new=True, name=key)
    finally:
        await bucket.abort_parts(key, parts_id)


def _unfit(why: str) -> OSError:
    return OSError(f"the object store ignores the conditions of requests, so that files would be lost: {why}")
