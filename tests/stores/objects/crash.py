"""Kills processes that use a store in a bucket, at any moment; see `tests.stores.crash`."""

import argparse
import asyncio
import json
import os
import random
import sys
from collections.abc import Collection
from typing import Any

from server.stores.objects import ObjectStore
from tests.stores.crash import Subject, crash, report, work

from .service import BUCKET, CREDENTIALS, client, new_prefix, scratch, start_seaweedfs, stop

MIB = 1024 * 1024


class Bucket(Subject):
    """A store in a bucket.

    Args:
        endpoint: The service's URL.
        prefix: That of its keys.
    """

    least_seconds = 0.1
    most_seconds = 2.0
    step_bytes = 6 * MIB
    settling_seconds = 1.0

    def __init__(self, endpoint: str, prefix: str) -> None:
        self.endpoint = endpoint
        self.prefix = prefix
        self.command = [sys.executable, "-m", "tests.stores.objects.crash", "--work", endpoint, prefix]
        os.environ.update(CREDENTIALS)

    def make(self) -> ObjectStore:
        return ObjectStore(BUCKET, self.prefix, endpoint=self.endpoint)

    def content_of(self, upload_id: str) -> bytes:
        source = random.Random(upload_id)
        return source.randbytes(source.choice([0, 5000, 3 * MIB, source.randrange(8 * MIB, 20 * MIB)]))

    def names_of(self, worker: int) -> list[str]:
        return [f"plain-{worker}", f"docs/{worker % 2}/plain-{worker}", f"{'x' * 200}/{'y' * 200}-{worker}"]

    async def check_left(self, files: Collection[str]) -> None:
        """What a process had published, or written, and didn't come to remove or to note goes with the next sweep."""
        async with client(self.endpoint) as s3:
            for found in await self._uploads(s3):
                if not found.endswith(".json"):
                    continue
                answer = await s3.get_object(Bucket=BUCKET, Key=found)
                assert json.loads(await answer["Body"].read())["is_publishing"], found
            store = self.make()
            await store.start()
            await store.sweep(-1)
            await store.close()
            assert not await self._uploads(s3)

    async def _uploads(self, s3: Any) -> list[str]:
        page = await s3.list_objects_v2(Bucket=BUCKET, Prefix=f"{self.prefix}.rxfiles/uploads/")
        return [found["Key"] for found in page.get("Contents", ())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", nargs=3, metavar=("ENDPOINT", "PREFIX", "ROUND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        endpoint, prefix, number = options.work
        asyncio.run(work(Bucket(endpoint, prefix), int(number)))
        return
    pid, endpoint = start_seaweedfs(scratch() / "data")
    try:
        survey = asyncio.run(crash(Bucket(endpoint, new_prefix()), options.rounds, options.seed))
    finally:
        stop(pid, 9)
    report(survey, options.rounds)


if __name__ == "__main__":
    main()
