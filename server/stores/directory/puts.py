"""Whole files that are put together: each step is taken for all of them before the next one, so that they share what
the disk has to do to make them survive a crash of the machine. Everything blocks.

The order is that of an upload: contents are synced before they have their names, and folders before any caller is
answered. A process that is killed leaves each of the files old or new, whole.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import Final

from shared.files import disk
from shared.protocol.digest import DEFAULT_ALGORITHM, Digest

from .batches import Outcome
from .group import FolderGroup
from .places import Places
from .records import Content, Records
from .tree import OpenFolder, Place
from .unfinished import UnfinishedUploads

__all__ = ["WholePuts"]

_serial: Final = count()


class WholePuts:
    """Puts whole files, not as uploads, which have to be found again by their ids.

    Args:
        places: Where the files go.
        records: What is known of them.
        uploads: See `UnfinishedUploads.with_room`.
        scratch: See `write_json`.
    """

    def __init__(self, places: Places, records: Records, uploads: UnfinishedUploads, scratch: str) -> None:
        self.places: Final = places
        self.records: Final = records
        self.uploads: Final = uploads
        self.scratch: Final = OpenFolder(scratch)

    def put(self, files: Sequence[tuple[str, bytes]]) -> Sequence[Outcome[None]]:
        """Puts files of different names; each has an outcome of its own."""
        outcomes: list[Outcome[None]] = [(None, None)] * len(files)
        steps = [_Put.write, _Put.send, _Put.sync, _Put.publish, _Put.sync_folders]
        if len(files) == 1:
            steps.remove(_Put.send)
        with self.places.group() as group:
            puts = [_Put(self, group, *file) for file in files]
            try:
                for step in steps:
                    for index, put in enumerate(puts):
                        if outcomes[index][1] is None:
                            try:
                                step(put)
                            except BaseException as error:
                                outcomes[index] = None, error
                                put.give_up()
                return outcomes
            finally:
                for put in puts:
                    put.close()
                del outcomes  # whose tracebacks refer to this frame: a reference cycle


class _Put:
    """One file, step by step."""

    def __init__(self, shared: WholePuts, group: FolderGroup, name: str, content: bytes) -> None:
        self._shared = shared
        self._group = group
        self.name: Final = name
        self._content = content
        self._entry = f"put-{next(_serial)}"
        self._path = shared.scratch.path_of(self._entry)
        digest = Digest(DEFAULT_ALGORITHM)
        digest.update(content)
        self._digest = digest.text()
        self._fd: int | None = None
        self._target: Place | None = None
        self._known: Content | None = None
        self._is_attached = self._is_published = False

    def write(self) -> None:
        """Writes the content beside the other files."""
        self._target = self._shared.places.target(self.name, self._group)
        self._shared.uploads.with_room(self._write)

    def send(self) -> None:
        """Has the system begin to write to the disk: the first sync then needs to wait for the journal for all."""
        if self._fd is not None:
            disk.send_to_disk(self._fd)

    def sync(self) -> None:
        """Makes the content survive a crash of the machine."""
        assert self._fd is not None, "`write` has opened it"
        os.fsync(self._fd)
        self.close()

    def publish(self) -> None:
        """Gives the content its name."""
        shared, name, target, known = self._shared, self.name, self._target, self._known
        assert target is not None, "`write` has looked for it"
        assert known is not None, "`write` has set it"
        if not self._is_attached:
            self._record(known, target.status)
        if target.status is not None:
            self._fd = disk.keep(target.path, target.dir_fd)
        source = Place(shared.scratch, self._entry, known.status)
        # Where a file system folds names, another of these files may have taken the place since.
        target = target if shared.places.tree.is_exact else None
        self._target, status = shared.places.put(source, name, self._group, overwrite=True, target=target)
        self._is_published = True
        if status is not None:
            known = replace(known, status=status)
        if self._is_attached and self._target.is_encoded:  # something else has taken its place in the tree meanwhile
            self._record(known, None)
        shared.records.note(name, known)

    def sync_folders(self) -> None:
        """Makes the name survive a crash of the machine."""
        assert self._target is not None, "`write` has looked for it"
        self._shared.places.sync(self.name, self._target, self._group)

    def give_up(self) -> None:
        """Removes what a step has left that failed; does nothing where the file is there."""
        self.close()
        if not self._is_published:
            with suppress(OSError):  # the next start removes it
                disk.remove(self._path)
                self._shared.places.prune(self.name)

    def close(self) -> None:
        """Closes the content, or the one that it has replaced; closing twice is fine."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _write(self) -> None:
        assert self._target is not None, "`write` has looked for it"
        old = self._target.status
        # What replaces a private file is private from the start.
        fd = disk.open_to_extend(self._path, os.O_CREAT | os.O_TRUNC, 0o666 if old is None else 0o600)
        try:
            disk.write_all(fd, self._content)
            disk.set_modified(fd, self._path, None)
            status = os.fstat(fd)
            if old is not None:
                disk.copy_access(old, status, fd)
            self._known = Content(status, self._digest, self._digest)
            self._is_attached = not self._target.is_encoded and self._shared.records.attach(fd, self.name, self._known)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def _record(self, known: Content, old: os.stat_result | None) -> None:
        # If the machine crashes, the digest may be unknown: it isn't worth two more syncs.
        records = self._shared.records
        self._shared.uploads.with_room(lambda: records.write(self.name, known, None, old, durable=False))
