"""Kills a process that uses a store, at any moment, again and again: a directory store here, see `Subject`.

The long run is `python -m tests.stores.crash --rounds 100`.

The process reports on its standard output what it is about to do, and what is done. After the kill the test opens the
store and looks: every file is the old one or the new one, whole; every upload goes on at an offset that isn't before
the last one that was reported; nothing else is there.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.stores.base import Store
from server.stores.directory.names import fingerprint
from server.stores.directory.store import DirectoryStore
from shared.errors import AlreadyExists, NotFound
from shared.protocol.wire import FileInfo

from .support import begin, digest_of, get, listed

_WORKERS = 3


class Subject:
    """A directory store; a derived class is another one.

    Args:
        path: The folder.

    Attributes:
        command: What runs the process that is killed; the number of the round is added.
        least_seconds: When a process is killed at the earliest.
        most_seconds: When at the latest.
        step_bytes: The most that an upload gets at a time.
        settling_seconds: How long after a kill what it had sent may still be done elsewhere.
    """

    least_seconds = 0.0
    most_seconds = 0.1
    step_bytes = 50_000
    settling_seconds = 0.0
    max_bytes = 200_000

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.command = [sys.executable, "-m", "tests.stores.crash", "--work", path]

    def make(self) -> Store:
        """The store, not started yet."""
        return DirectoryStore(self.path)

    def content_of(self, upload_id: str) -> bytes:
        """What the upload of that id carries."""
        source = random.Random(upload_id)
        return source.randbytes(source.choice([0, 10, 5000, source.randrange(self.max_bytes)]))

    def names_of(self, worker: int) -> list[str]:
        """The names of a worker's files."""
        return [f"plain-{worker}", f"docs/{worker % 2}/plain-{worker}", f"../encoded-{worker}", f"{'x' * 900}-{worker}"]

    async def check_left(self, files: Collection[str]) -> None:
        """Asserts that nothing else is left, when there are these files and no uploads."""
        assert not list((self.path / ".rxfiles" / "parts").iterdir())
        assert not list((self.path / ".rxfiles" / "tmp").iterdir())
        records = {path.stem for path in (self.path / ".rxfiles" / "records").iterdir()}
        assert records <= set(map(fingerprint, files))


# The process that is killed


async def work(subject: Subject, round_number: int) -> None:
    """Stores, moves and deletes files until it is killed."""
    store = subject.make()
    await store.start()
    await asyncio.gather(*(_work(subject, store, worker, round_number) for worker in range(_WORKERS)))


async def _work(subject: Subject, store: Store, worker: int, round_number: int) -> None:
    choose = random.Random(f"{round_number}/{worker}")
    names = subject.names_of(worker)
    for number in range(1_000_000):
        name = choose.choice(names)
        if choose.random() < 0.4:
            target = choose.choice(names) + choose.choice(["", "-moved"])
            _say(worker, "move", name, target)
            try:
                await store.move(name, target, overwrite=choose.random() < 0.5)
            except (NotFound, AlreadyExists):
                target = name
            _say(worker, "moved", name, target)
            continue
        if choose.random() < 0.3:
            ids = {each: f"{round_number}-{worker}-{number}-{index}" for index, each in enumerate(names)}
            _say(worker, "put together", ids)
            await asyncio.gather(*(store.put(each, subject.content_of(put_id)) for each, put_id in ids.items()))
            _say(worker, "stored together", ids)
            continue
        if choose.random() < 0.2:
            _say(worker, "delete", name)
            try:
                await store.delete(name)
            except NotFound:
                pass
            _say(worker, "deleted", name)
            continue
        upload_id = f"{round_number}-{worker}-{number}"
        content = subject.content_of(upload_id)
        overwrite = choose.random() < 0.7
        if not overwrite:
            name += f"-{upload_id}"
        _say(worker, "put", name, upload_id)
        upload = await begin(store, name, upload_id=upload_id, size=len(content), overwrite=overwrite)
        while upload.received < len(content):
            end = upload.received + choose.randrange(1, subject.step_bytes)
            middle = (upload.received + end) // 2
            await upload.append([content[upload.received : middle], content[middle:end]])
            _say(worker, "at", await upload.flush())
            if choose.random() < 0.1:
                await upload.suspend()
                upload = await begin(store, name, upload_id=upload_id, size=len(content), overwrite=overwrite)
        await upload.commit(digest_of(content))
        _say(worker, "stored", name, upload_id)


def _say(worker: int, *words: object) -> None:
    os.write(1, json.dumps([worker, *words]).encode() + b"\n")  # one write is one line, or nothing


# The checks after a kill


@dataclass
class _Upload:
    name: str
    upload_id: str
    offset: int | None = None


class Survey:
    """What must be in a store whose process was killed."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._files: dict[str, str] = {}  # upload ids by name
        self.published = self.resumed = self.moved = self.put = 0

    async def look(self, lines: Sequence[bytes]) -> None:
        """Checks the store against what the process said; finishes its uploads."""
        files, subject = self._files, self._subject
        uploads, deletes, moves, puts = self._read(lines)
        store = subject.make()
        await store.start()
        try:
            infos = await self._infos(store)
            for name in deletes.values():
                if name not in infos:
                    files.pop(name, None)
            for name, target in moves.values():
                if name in files and name != target:
                    self._take_move(name, target, infos)
            for name, put_id in (each for together in puts.values() for each in together.items()):
                if name in infos and infos[name].digest == digest_of(subject.content_of(put_id)):
                    files[name] = put_id
                    self.put += 1
            for upload in uploads.values():
                await self._finish(store, upload, infos)
            infos = await self._infos(store)
            assert infos.keys() == files.keys(), infos.keys() ^ files.keys()
            for name, upload_id in files.items():
                content = subject.content_of(upload_id)
                assert await get(store, name) == content, (name, upload_id)
                assert infos[name].digest == digest_of(content)
            await self._forget_some(store)
        finally:
            await store.close()
        await subject.check_left(files)

    async def _infos(self, store: Store) -> dict[str, FileInfo]:
        infos = [info if store.lists_all else await store.stat(info.name) for info in await listed(store)]
        return {info.name: info for info in infos}

    def _read(
        self, lines: Sequence[bytes]
    ) -> tuple[dict[int, _Upload], dict[int, str], dict[int, tuple[str, str]], dict[int, dict[str, str]]]:
        """Notes what the process had done; returns what each worker was doing: an upload, a delete, a move or puts."""
        files = self._files
        puts: dict[int, dict[str, str]] = {}
        uploads: dict[int, _Upload] = {}
        deletes: dict[int, str] = {}
        moves: dict[int, tuple[str, str]] = {}
        for line in lines:
            match json.loads(line):
                case [worker, "put", name, upload_id]:
                    uploads[worker] = _Upload(name, upload_id)
                case [worker, "at", offset]:
                    uploads[worker].offset = offset
                case [worker, "stored", name, upload_id]:
                    files[name] = upload_id
                    del uploads[worker]
                case [worker, "put together", ids]:
                    puts[worker] = ids
                case [worker, "stored together", ids]:
                    files.update(ids)
                    del puts[worker]
                case [worker, "delete", name]:
                    deletes[worker] = name
                case [worker, "deleted", name]:
                    files.pop(name, None)
                    del deletes[worker]
                case [worker, "move", name, target]:
                    moves[worker] = name, target
                case [worker, "moved", name, target]:
                    if name in files:
                        files[target] = files.pop(name)
                    del moves[worker]
                case other:
                    raise AssertionError(other)
        return uploads, deletes, moves, puts

    def _take_move(self, name: str, target: str, infos: dict[str, Any]) -> None:
        """The file is under its old name, or its new one, or both."""
        files, digest = self._files, digest_of(self._subject.content_of(self._files[name]))
        is_moved = target in infos and infos[target].digest == digest
        if name not in infos:
            assert is_moved, "a file that was being moved is lost"
            self.moved += 1
            files[target] = files.pop(name)
        elif is_moved:
            files[target] = files[name]

    async def _finish(self, store: Store, upload: _Upload, infos: dict[str, Any]) -> None:
        content = self._subject.content_of(upload.upload_id)
        name, upload_id = upload.name, upload.upload_id
        try:
            offset = await store.uploaded(upload_id, name)
        except NotFound:
            # Not begun, or published.
            if name in infos and infos[name].digest == digest_of(content):
                self._files[name] = upload_id
                self.published += 1
            else:
                assert upload.offset is None, f"an upload that was at {upload.offset} is lost"
            return
        assert (upload.offset or 0) <= offset <= len(content)
        again = await begin(store, name, upload_id=upload_id, size=len(content))
        assert again.received == offset
        if offset < len(content):
            await again.append([content[offset:]])
        start = 0
        for end, digest in again.links:
            assert digest == digest_of(content[start:end])
            start = end
        digests = [digest_of(content), digest_of(content[start:])] if again.links else [digest_of(content)]
        await again.commit(*digests)
        self._files[name] = upload_id
        self.resumed += 1

    async def _forget_some(self, store: Store) -> None:
        for name in list(self._files)[: -4 * _WORKERS]:
            await store.delete(name)
            del self._files[name]


async def crash(subject: Subject, rounds: int, seed: int = 0) -> Survey:
    """Kills `rounds` processes, each at another moment, and looks after each."""
    survey = Survey(subject)
    choose = random.Random(seed)
    for number in range(rounds):
        process = await asyncio.create_subprocess_exec(*subject.command, str(number), stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        lines = [await process.stdout.readline()]  # it has begun to work
        reading = asyncio.create_task(process.stdout.read())
        await asyncio.sleep(choose.uniform(subject.least_seconds, subject.most_seconds))
        process.send_signal(signal.SIGKILL)
        lines += (await reading).splitlines()
        await process.wait()
        await asyncio.sleep(subject.settling_seconds)
        assert lines[0], "the process ended by itself"
        await survey.look(lines)
    return survey


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", nargs=2, metavar=("PATH", "ROUND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        asyncio.run(work(Subject(options.work[0]), int(options.work[1])))
        return
    with tempfile.TemporaryDirectory() as folder:
        survey = asyncio.run(crash(Subject(str(Path(folder) / "files")), options.rounds, options.seed))
    report(survey, options.rounds)


def report(survey: Survey, rounds: int) -> None:
    """Prints what a long run has seen."""
    print(
        f"{rounds} processes killed; of the uploads under way {survey.resumed} were resumed and "
        f"{survey.published} had been published, {survey.moved} moves and {survey.put} puts were done; "
        "nothing was lost or doubled"
    )


if __name__ == "__main__":
    main()
