"""What a service must be able to do, tried out when a store starts."""

import asyncio
import io
from contextlib import suppress
from typing import Final

from .bucket import Bucket
from .failures import Refused, Unmet
from .keys import Keys
from .state import new_token

__all__ = ["probe"]

_RACERS: Final = 8

# What this process has tried out: whether each service, by its URL and bucket, lists in folders.
_known: Final[dict[tuple[str | None, str], bool]] = {}


async def probe(bucket: Bucket, keys: Keys) -> bool:
    """Writes and removes some small objects, once in a process.

    Returns:
        Whether the service lists what is in a folder before other names that begin with the folder's.

    Raises:
        OSError: The service ignores a condition: several servers, and even the uploads of one, would destroy each
            other's files without a word.
    """
    service = (bucket.endpoint, bucket.name)
    if service not in _known:
        _, _, in_folders = await asyncio.gather(
            _probe_race(bucket, keys), _probe_conditions(bucket, keys), _lists_in_folders(bucket, keys)
        )
        _known[service] = in_folders
    return _known[service]


async def _probe_race(bucket: Bucket, keys: Keys) -> None:
    key = f"{keys.reserved}probe/{new_token()}"
    try:
        results = await asyncio.gather(*(_creates(bucket, key, number) for number in range(_RACERS)))
        if sum(results) != 1:
            raise _unfit(f"of {_RACERS} requests at once to create one object, {sum(results)} succeeded")
    finally:
        await bucket.delete(key)


async def _probe_conditions(bucket: Bucket, keys: Keys) -> None:
    key = f"{keys.reserved}probe/{new_token()}"
    try:
        etag = await bucket.put(key, b"first", only_new=True)
        other = "0" * 32
        for what, request in (
            ("to create an object that is there", lambda: bucket.put(key, b"second", only_new=True)),
            ("to replace another version of an object", lambda: bucket.put(key, b"second", if_match=other)),
            ("to delete another version of an object", lambda: bucket.delete(key, other)),
            ("to read another version of an object", lambda: bucket.content(key, if_match=other)),
            ("to complete an upload in parts over an object", lambda: _completes(bucket, key)),
        ):
            with suppress(Unmet):
                await request()
                raise _unfit(f"a request {what} succeeded")
        await bucket.put(key, b"second", if_match=etag)
    finally:
        await bucket.delete(key)


async def _lists_in_folders(bucket: Bucket, keys: Keys) -> bool:
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
