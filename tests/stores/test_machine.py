"""Any order of operations and restarts, against a model: dictionaries of what must be there."""

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from server.stores.base import Store, Upload
from server.stores.directory.store import DirectoryStore
from server.stores.memory import MemoryStore
from shared.errors import AlreadyExists, Changed, IntegrityError, InvalidRequest, NotFound, Superseded

from .partwise import PartwiseStore
from .support import begin, digest_of, get, listed

T = TypeVar("T")

_NAMES = st.sampled_from(["a", "A", "../a", "a/b", "=a", "x" * 1024, "CON", "\u00e9", "e\u0301"])
_IDS = st.sampled_from(["u", "U", "v."])
_CHUNKS = st.lists(st.binary(max_size=40), max_size=6)


class StoreMachine(RuleBasedStateMachine):
    """Knows what a store must answer.

    `files` maps names to contents, `parts` upload ids to (name, content so far), `durable` to the bytes of it that are
    durable, and `owners` to the newest upload. Uploads become durable in parts of `part_bytes`.
    """

    part_bytes = 1

    uploads = Bundle("uploads")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.store: Store
        self.files: dict[str, bytes] = {}
        self.parts: dict[str, tuple[str, bytes]] = {}
        self.durable: dict[str, int] = {}
        self.owners: dict[str, Upload] = {}

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    def fails(self, coroutine: Coroutine[Any, Any, object], error: type[Exception]) -> None:
        try:
            self.run(coroutine)
        except error:
            return
        raise AssertionError(f"expected {error.__name__}")

    @rule(target=uploads, upload_id=_IDS, name=_NAMES, overwrite=st.booleans())
    def begin(self, upload_id: str, name: str, overwrite: bool) -> Any:
        beginning = begin(self.store, name, upload_id=upload_id, overwrite=overwrite)
        known = self.parts.get(upload_id)
        if not overwrite and name in self.files:
            self.fails(beginning, AlreadyExists)
            return multiple()
        if known is not None and known[0] != name:
            self.fails(beginning, InvalidRequest)
            return multiple()
        upload = self.run(beginning)
        _, content = self.parts.get(upload_id, (name, b""))
        durable = self.durable[upload_id] = self.durable.get(upload_id, 0) if known else 0
        assert upload.received == upload.durable == durable
        self.parts[upload_id] = (name, content[:durable])
        self.owners[upload_id] = upload
        return (upload_id, upload, overwrite)

    @rule(upload=uploads, chunks=_CHUNKS)
    def append(self, upload: tuple[str, Upload, bool], chunks: list[bytes]) -> None:
        upload_id, handle, _ = upload
        appending = handle.append(chunks)
        if self.owners.get(upload_id) is not handle:
            self.fails(appending, (Superseded, RuntimeError))  # type: ignore[arg-type]
            return
        name, content = self.parts[upload_id]
        content += b"".join(chunks)
        self.run(appending)
        assert handle.received == len(content)
        self.parts[upload_id] = (name, content)
        self.durable[upload_id] += (len(content) - self.durable[upload_id]) // self.part_bytes * self.part_bytes
        assert self.run(handle.flush()) == handle.durable == self.durable[upload_id]

    @rule(upload=consumes(uploads), is_right=st.booleans())
    def commit(self, upload: tuple[str, Upload, bool], is_right: bool) -> None:
        upload_id, handle, overwrite = upload
        if self.owners.get(upload_id) is not handle:
            self.fails(handle.commit(None), (Superseded, RuntimeError))  # type: ignore[arg-type]
            return
        name, content = self.parts[upload_id]
        del self.owners[upload_id]
        committing = handle.commit(digest_of(content if is_right else content + b"!"))
        if not is_right:
            self.fails(committing, IntegrityError)
        elif not overwrite and name in self.files:
            self.fails(committing, AlreadyExists)
            self.durable[upload_id] = len(content)
            return
        else:
            info = self.run(committing)
            assert (info.name, info.size, info.digest) == (name, len(content), digest_of(content))
            self.files[name] = content
        del self.parts[upload_id]

    @rule(upload=uploads)
    def suspend(self, upload: tuple[str, Upload, bool]) -> None:
        upload_id, handle, _ = upload
        self.run(handle.suspend())
        if self.owners.get(upload_id) is handle:
            del self.owners[upload_id]

    @rule(upload=consumes(uploads))
    def abort(self, upload: tuple[str, Upload, bool]) -> None:
        upload_id, handle, _ = upload
        self.run(handle.abort())
        if self.owners.get(upload_id) is handle:
            del self.owners[upload_id], self.parts[upload_id]

    @rule(name=_NAMES, matches=st.sampled_from([None, True, False]))
    def delete(self, name: str, matches: bool | None) -> None:
        if name not in self.files:
            self.fails(self.store.delete(name), NotFound)
            return
        etag = None if matches is None else self.run(self.store.stat(name)).etag if matches else "other"
        if matches is False:
            self.fails(self.store.delete(name, etag), Changed)
            return
        assert self.run(self.store.delete(name, etag)).digest == digest_of(self.files.pop(name))

    @rule(name=_NAMES, new=_NAMES, overwrite=st.booleans(), matches=st.sampled_from([None, True, False]))
    def move(self, name: str, new: str, overwrite: bool, matches: bool | None) -> None:
        if name not in self.files:
            self.fails(self.store.move(name, new, overwrite=overwrite), NotFound)
            return
        etag = None if matches is None else self.run(self.store.stat(name)).etag if matches else "other"
        moving = self.store.move(name, new, overwrite=overwrite, if_match=etag)
        if matches is False:
            self.fails(moving, Changed)
        elif name != new and new in self.files and not overwrite:
            self.fails(moving, AlreadyExists)
        else:
            content = self.files.pop(name)
            info = self.run(moving)
            assert (info.name, info.digest) == (new, digest_of(content))
            self.files[new] = content

    @rule(everything=st.booleans())
    def sweep(self, everything: bool) -> None:
        dropped = self.run(self.store.sweep(-1 if everything else 3600))
        assert dropped == (len(self.parts) if everything else 0)
        if everything:
            self.parts.clear()
            self.owners.clear()

    @invariant()
    def files_are_right(self) -> None:
        found = {info.name: info for info in self.run(listed(self.store))}
        assert found.keys() == self.files.keys()
        for name, content in self.files.items():
            assert self.run(get(self.store, name)) == content
            assert found[name] == self.run(self.store.stat(name))
            assert found[name].digest == digest_of(content)

    @invariant()
    def parts_are_right(self) -> None:
        for upload_id in ("u", "U", "v."):
            name = self.parts.get(upload_id, ("a", b""))[0]
            if upload_id not in self.parts:
                self.fails(self.store.uploaded(upload_id, name), NotFound)
            else:
                assert self.run(self.store.uploaded(upload_id, name)) == self.durable[upload_id]

    def teardown(self) -> None:
        self.run(self.store.close())
        self.run(self.loop.shutdown_default_executor())
        self.loop.close()


class MemoryMachine(StoreMachine):
    @initialize()
    def start(self) -> None:
        self.store = MemoryStore({})
        self.run(self.store.start())


class PartwiseMachine(StoreMachine):
    part_bytes = 16

    @initialize()
    def start(self) -> None:
        self.store = PartwiseStore(part_bytes=self.part_bytes)
        self.run(self.store.start())


class DirectoryMachine(StoreMachine):
    @initialize()
    def start(self) -> None:
        self.path = Path(tempfile.mkdtemp())
        self.store = DirectoryStore(self.path)
        self.run(self.store.start())

    @rule()
    def restart(self) -> None:
        """Another process opens the folder."""
        self.run(self.store.close())
        self.store = DirectoryStore(self.path)
        self.run(self.store.start())
        self.owners.clear()

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.path)


_SETTINGS = settings(deadline=None, max_examples=40, stateful_step_count=40)


def test_memory() -> None:
    run_state_machine_as_test(MemoryMachine, settings=_SETTINGS)


def test_partwise() -> None:
    run_state_machine_as_test(PartwiseMachine, settings=_SETTINGS)


def test_directory() -> None:
    run_state_machine_as_test(DirectoryMachine, settings=_SETTINGS)
