"""Small JSON files: what is known of each stored file beside its content. Everything blocks."""

import json
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import count
from typing import Final, cast

from shared.files import disk

from . import names

__all__ = ["Records", "entries", "key_of", "read_json", "write_json"]

# A listing of more files than these reads the records of all of them again.
_DIGESTS_IN_MEMORY: Final = 8192

_serial: Final = count()


class Records:
    """One record for each file, `<SHA-256 of the name>.json`: its full name, its digest and its upload's id.

    A record is written before its file is replaced, so it holds the digests of both the old and the new content, each
    under the `signature` of its own.

    Args:
        path: The folder with the records.
        scratch: See `write_json`.
    """

    def __init__(self, path: str, scratch: str) -> None:
        self.path: Final = path
        self._scratch = scratch
        self._digest_of = lru_cache(_DIGESTS_IN_MEMORY)(self._read_digest)

    def digest(self, name: str, signature: str) -> str | None:
        """The digest of the content with that signature; None if it isn't known."""
        return self._digest_of(name, signature)

    def publisher(self, name: str, signature: str) -> str | None:
        """The id of the upload that published the content; None if it isn't known."""
        return self._of(name, "published").get(signature)

    def write(
        self, name: str, signature: str, digest: str | None, upload_id: str | None, old_signature: str | None
    ) -> None:
        """Records a content that is about to get the name, and keeps the digest of the one that it replaces."""
        digests = {} if digest is None else {signature: digest}
        if old_signature is not None and (old_digest := self.digest(name, old_signature)) is not None:
            digests[old_signature] = old_digest
        record = {"name": name, "digests": digests, "published": {} if upload_id is None else {signature: upload_id}}
        write_json(self._path(names.fingerprint(name)), record, scratch=self._scratch, durable=True)

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

    def _read_digest(self, name: str, signature: str) -> str | None:
        return self._of(name, "digests").get(signature)

    def _of(self, name: str, kind: str) -> Mapping[str, str]:
        record = read_json(self._path(names.fingerprint(name)))
        by_signature = record.get(kind)
        is_valid = record.get("name") == name and isinstance(by_signature, dict)
        return cast("dict[str, str]", by_signature) if is_valid else {}


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
    except (FileNotFoundError, ValueError):
        return {}
    return cast("dict[str, object]", record) if isinstance(record, dict) else {}


def write_json(path: str, record: Mapping[str, object], *, scratch: str, durable: bool) -> None:
    """Puts `record` at `path` in one step, in place of the one that is there.

    `scratch` is a folder on the same file system, which only this process uses. A `durable` record survives a crash of
    the machine, not only of this process.
    """
    temporary = os.path.join(scratch, str(next(_serial)))
    try:
        with open(temporary, "wb") as file:
            file.write(json.dumps(record).encode())
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        disk.remove(temporary)
        raise
    if durable:
        disk.sync_folder(os.path.dirname(path))
