"""What is known of each stored file beside its content, in small JSON files or with the file. Everything blocks."""

import errno
import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any, Final, cast

from shared.files import disk

from . import names

__all__ = ["Content", "Records", "entries", "etag_of", "key_of", "read_json", "write_json"]

# A listing of more files than these reads the records of all of them again.
_DIGESTS_IN_MEMORY: Final = 8192

# How long it may take from the end of an upload until its file has its place.
_PUBLISHED_WITHIN_NS: Final = 60 * 10**9

_ATTRIBUTE: Final = "user.rxfiles"

_serial: Final = count()


@dataclass(frozen=True, slots=True)
class Content:
    """A file's content: its status, its etag, and its digest if that is known."""

    status: os.stat_result
    etag: str
    digest: str | None


class Records:
    """One record for each file, `<SHA-256 of the name>.json`: its full name, its digest and its upload's id.

    A record is written before its file is replaced, so it holds the digests of both the old and the new content, each
    under its signature: size, time and inode; and the etag of one without a digest, which a move doesn't change.

    Another program may give a file another content of the same signature, as a program can set its time; but not
    without changing the time of its status, which none can set. That one isn't known when the record is written, as
    the renaming itself changes it: what is recorded holds if this process has seen the file renamed at that very
    time, or if that is within a minute of the record's.

    A file that was put as a whole has no record where its file system has extended attributes: it has one of these,
    with its digest under its signature, which is there, and gone, with the content.

    Args:
        root: The served folder.
        path: The folder with the records.
        scratch: See `write_json`.
    """

    def __init__(self, root: str, path: str, scratch: str) -> None:
        self.path: Final = path
        self._root = root
        self._scratch = scratch
        self._attaches = hasattr(os, "setxattr")
        self._known = lru_cache(_DIGESTS_IN_MEMORY)(self._read)
        # What this process has published: the signature, the status's time, the etag and the digest of each content.
        self._published: OrderedDict[str, tuple[str, int, str, str | None]] = OrderedDict()

    def content(self, name: str, status: os.stat_result) -> "Content":
        """What is known of the content with that status."""
        known = self._known(name, _signature(status), status.st_ctime_ns)
        return Content(status, etag_of(status), None) if known is None else Content(status, *known)

    def publisher(self, name: str, status: os.stat_result) -> str | None:
        """The id of the upload that published the content; None if it isn't known."""
        return _of(self._record(name), "published").get(_signature(status))

    def write(
        self,
        name: str,
        content: "Content",
        upload_id: str | None,
        old: os.stat_result | None,
        *,
        durable: bool = True,
    ) -> None:
        """Records a content that is about to get the name, and keeps what is known of the one that it replaces.

        Args:
            content: Its status is that of the file before it is renamed.
            upload_id: Of the upload that publishes it; None for a file that is moved.
            old: Of the file that it replaces; None if there is none.
            durable: Whether the record survives a crash of the machine, which costs two syncs. Where nothing else has
                the name, it does in any case.
        """
        contents = [content] if old is None else [self.content(name, old), content]
        digests, etags, sealed = dict[str, str](), dict[str, str](), dict[str, int]()
        for each in contents:
            signature = _signature(each.status)
            sealed[signature] = each.status.st_ctime_ns
            if each.digest is not None:
                digests[signature] = each.digest
            if each.etag != each.digest:
                etags[signature] = each.etag
        published = {} if upload_id is None else {_signature(content.status): upload_id}
        record = {"name": name, "digests": digests, "etags": etags, "sealed": sealed, "published": published}
        durable = durable or not names.is_reversible(name)
        write_json(self._path(names.fingerprint(name)), record, scratch=self._scratch, durable=durable)

    def attach(self, fd: int, name: str, content: "Content") -> bool:
        """Records the digest of a content with its open file, which is about to get the name, in place of a `write`.

        If the file is synced afterwards, that survives a crash of the machine.

        Returns:
            Whether that is possible.
        """
        if not self._attaches or not names.is_reversible(name):
            return False
        value = f"{_signature(content.status)} {content.status.st_ctime_ns:x} {content.digest}"
        try:
            os.setxattr(fd, _ATTRIBUTE, value.encode())
        except OSError as error:
            self._attaches = error.errno != errno.ENOTSUP
            return False
        return True

    def note(self, name: str, content: "Content") -> None:
        """Notes what is known of a content, with the status that it has now that it is published."""
        status = content.status
        self._published[name] = _signature(status), status.st_ctime_ns, content.etag, content.digest
        self._published.move_to_end(name)
        if len(self._published) > _DIGESTS_IN_MEMORY:
            self._published.popitem(last=False)

    def carry(self, name: str, known: "Content", status: os.stat_result) -> None:
        """Records what is known of a content whose file was renamed, without another name: it has `status` now."""
        is_timed = isinstance(_of(self._record(name), "sealed").get(_signature(status)), int)
        if is_timed and known.etag != etag_of(known.status):
            self.write(name, Content(status, known.etag, known.digest), None, None)

    def name_of(self, key: str) -> str | None:
        """The full name whose fingerprint is `key`; None if there is no such record."""
        match read_json(self._path(key)):
            case {"name": str(name)} if names.fingerprint(name) == key:
                return name
            case _:
                return None

    def fingerprints(self) -> Iterator[str]:
        """The fingerprints of the names that have a record, however broken."""
        return map(key_of, entries(self.path))

    def remove(self, key: str) -> None:
        """Removes the record of a name, by its fingerprint."""
        disk.remove(self._path(key))

    def _path(self, key: str) -> str:
        return os.path.join(self.path, f"{key}.json")

    def _read(self, name: str, signature: str, changed: int) -> tuple[str, str | None] | None:
        """The etag and the digest of the content with that signature and time of its status, if they are recorded."""
        published = self._published.get(name)
        if published is not None and published[0] == signature:
            return published[2:] if published[1] == changed else None
        if (digest := self._attached(name, signature, changed)) is not None:
            return digest, digest
        record = self._record(name)
        sealed = _of(record, "sealed").get(signature)
        # A record of an older version has none; its files have the times at which they were published.
        if isinstance(sealed, int) and not _was_published(sealed, changed):
            return None
        digest = _of(record, "digests").get(signature)
        etag = _of(record, "etags").get(signature, digest)
        return None if etag is None else (etag, digest)

    def _attached(self, name: str, signature: str, changed: int) -> str | None:
        """The digest that `attach` has recorded."""
        if not self._attaches:
            return None
        try:
            # Whatever another program puts into the path meanwhile, the signature is that of the file that was found.
            recorded = os.getxattr(os.path.join(self._root, name), _ATTRIBUTE).decode("ascii")
            of, sealed, digest = recorded.split(" ")
            return digest if of == signature and _was_published(int(sealed, 16), changed) else None
        except (OSError, ValueError):
            return None

    def _record(self, name: str) -> Mapping[str, object]:
        record = read_json(self._path(names.fingerprint(name)))
        return record if record.get("name") == name else {}


def _of(record: Mapping[str, object], kind: str) -> Mapping[str, Any]:
    by_signature = record.get(kind)
    return cast("dict[str, Any]", by_signature) if isinstance(by_signature, dict) else {}


def _was_published(sealed: int, changed: int) -> bool:
    """Whether the time of a file's status may be that of the renaming of what was recorded."""
    return sealed <= changed <= sealed + _PUBLISHED_WITHIN_NS


def _signature(status: os.stat_result) -> str:
    return f"{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ino:x}"


def etag_of(status: os.stat_result) -> str:
    """Identifies a content whose digest isn't known, as far as the file system tells contents apart."""
    return f"{_signature(status)}-{status.st_ctime_ns:x}"


def entries(path: str) -> list[os.DirEntry[str]]:
    """What is in a folder."""
    with os.scandir(path) as found:
        return list(found)


def key_of(entry: os.DirEntry[str]) -> str:
    """The name of a folder's entry, without its suffix."""
    return os.path.splitext(entry.name)[0]


def read_json(path: str) -> Mapping[str, object]:
    """What `write_json` wrote; empty if there is no such file, or it has another form."""
    try:
        with open(path, "rb") as file:
            record: object = json.loads(file.read())
    except (FileNotFoundError, PermissionError, ValueError):
        return {}
    return cast("dict[str, object]", record) if isinstance(record, dict) else {}


def write_json(path: str, record: Mapping[str, object], *, scratch: str, durable: bool) -> None:
    """Puts `record` at `path` in one step, in place of the one that is there.

    `scratch` is a folder on the same file system, which only this process uses. A `durable` record survives a crash of
    the machine, not only of this process.
    """
    temporary = os.path.join(scratch, str(next(_serial)))
    try:
        # Not `open`, which makes three system calls more.
        fd = disk.open_to_extend(temporary, os.O_CREAT | os.O_TRUNC)
        try:
            disk.write_all(fd, json.dumps(record).encode())
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException:
        disk.remove(temporary)
        raise
    if durable:
        disk.sync_folder(os.path.dirname(path))
