"""Small JSON files: what is known of each stored file beside its content. Everything blocks."""

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

    Args:
        path: The folder with the records.
        scratch: See `write_json`.
    """

    def __init__(self, path: str, scratch: str) -> None:
        self.path: Final = path
        self._scratch = scratch
        self._known = lru_cache(_DIGESTS_IN_MEMORY)(self._read)
        # What this process has published: the signature, the status's time, the etag and the digest of each content.
        self._published: OrderedDict[str, tuple[str, int, str, str | None]] = OrderedDict()

    def content(self, name: str, status: os.stat_result) -> "Content":
        """What is known of the content with that status."""
        known = self._known(name, _signature(status), status.st_ctime_ns)
        return Content(status, etag_of(status), None) if known is None else Content(status, *known)

    def publisher(self, name: str, status: os.stat_result) -> str | None:
        """The id of the upload that published the content; None if it isn't known."""
        return self._of(name, "published").get(_signature(status))

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
        durable = durable or names.fingerprint_in(names.encode(name)) is not None
        write_json(self._path(names.fingerprint(name)), record, scratch=self._scratch, durable=durable)

    def note(self, name: str, content: "Content") -> None:
        """Notes what is known of a content, with the status that it has now that it is published."""
        status = content.status
        self._published[name] = _signature(status), status.st_ctime_ns, content.etag, content.digest
        self._published.move_to_end(name)
        if len(self._published) > _DIGESTS_IN_MEMORY:
            self._published.popitem(last=False)

    def carry(self, name: str, known: "Content", status: os.stat_result) -> None:
        """Records what is known of a content whose file was renamed, without another name: it has `status` now."""
        is_timed = isinstance(self._of(name, "sealed").get(_signature(status)), int)
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
        sealed = self._of(name, "sealed").get(signature)
        # A record of an older version has none; its files have the times at which they were published.
        if isinstance(sealed, int) and not sealed <= changed <= sealed + _PUBLISHED_WITHIN_NS:
            return None
        digest = self._of(name, "digests").get(signature)
        etag = self._of(name, "etags").get(signature, digest)
        return None if etag is None else (etag, digest)

    def _of(self, name: str, kind: str) -> Mapping[str, Any]:
        record = read_json(self._path(names.fingerprint(name)))
        by_signature = record.get(kind)
        is_valid = record.get("name") == name and isinstance(by_signature, dict)
        return cast("dict[str, Any]", by_signature) if is_valid else {}


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
