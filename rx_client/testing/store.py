"""The files of a fake server, and its unfinished uploads: what each request does to them, without any I/O."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final, NamedTuple

from rsocket.payload import Payload

from shared.errors import AlreadyExists, Changed, IntegrityError, InvalidRequest, NotFound, Superseded, UnknownRoute
from shared.protocol.digest import DEFAULT_ALGORITHM, Digest
from shared.protocol.messages import (
    ChunkHead,
    DownloadRequest,
    FileRequest,
    Json,
    ListRequest,
    MoveRequest,
    Receipt,
    UploadEnd,
    UploadRequest,
    transfer_metadata,
)
from shared.protocol.wire import FileInfo, Route, encode_name, name_metadata

__all__ = ["FakeStore", "Part"]


class Part:
    """An unfinished upload.

    Attributes:
        content: What has arrived.
        supersede: Ends the attempt that adds to it, with that error; None while there is none.
    """

    def __init__(self, spec: tuple[str, int | None, str | None]) -> None:
        self.spec: Final = spec
        self.content = bytearray()
        self.supersede: Callable[[Superseded], None] | None = None


class _Known(NamedTuple):
    """What is known of one value of `FakeStore.files`: it holds for this very object."""

    content: bytes
    info: FileInfo
    upload_id: str | None = None


class FakeStore:
    """See above; the parts are kept by their upload's id.

    Args:
        files: Each file's content by its name; a test may change it at any time.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files: Final = files
        self.parts: Final[dict[str, Part]] = {}
        self._known: dict[str, _Known] = {}

    def stat(self, name: str) -> FileInfo:
        """Raises NotFound if there is no such file."""
        return self._look(name).info

    def answer(self, route: str, name: str, said: Json, data: bytes) -> Payload:
        """Answers a request-response."""
        match route:
            case Route.UPLOAD:
                self.files[name] = data
                return Payload(b"", name_metadata(name))
            case Route.DOWNLOAD:
                return Payload(self._look(name).content, name_metadata(name))
            case Route.STAT:
                return Payload(b"", transfer_metadata(self.stat(name)))
            case Route.DELETE:
                return Payload(b"", transfer_metadata(self._delete(name, FileRequest.from_json(said))))
            case Route.MOVE:
                return Payload(b"", transfer_metadata(self._move(name, MoveRequest.from_json(said))))
            case Route.UPLOAD_STATUS:
                part = self._part(name, FileRequest.from_json(said))
                return Payload(b"", transfer_metadata(Receipt(len(part.content))))
            case Route.UPLOAD_DISCARD:
                committed = self._discard(FileRequest.from_json(said).upload_id or "")
                return Payload(b"", transfer_metadata(Receipt(committed)))
            case _:
                raise UnknownRoute(f"no route {route!r} for request-response")

    def items(self, route: str, name: str, said: Json) -> Iterator[tuple[Payload, bool]]:
        """The items of a request-stream, each with whether it is the last; an empty listing has none."""
        match route:
            case Route.FILES:
                return self._list(ListRequest.from_json(said))
            case Route.DOWNLOAD:
                return self._chunks(name, DownloadRequest.from_json(said))
            case _:
                raise UnknownRoute(f"no route {route!r} for request-stream")

    def begin(self, name: str, request: UploadRequest) -> Part:
        """Begins an upload, or goes on with what there is of it."""
        if not request.overwrite:
            self._check_free(name)
        spec = (name, request.size, request.digest or DEFAULT_ALGORITHM)
        part = self.parts.setdefault(request.upload_id, Part(spec))
        if part.spec != spec:
            text = f"the upload {request.upload_id!r} began with another file name, size or digest algorithm"
            raise InvalidRequest(text, name=name)
        return part

    def commit(self, name: str, request: UploadRequest, end: UploadEnd) -> FileInfo:
        """Publishes what has arrived of an upload; drops it if it isn't what was sent."""
        part = self.parts[request.upload_id]
        content, digest = bytes(part.content), Digest(request.digest or DEFAULT_ALGORITHM)
        digest.update(content)
        if end.digest is not None and end.digest != digest.text():
            raise IntegrityError(f"the content's digest is {digest.text()}, {end.digest} was announced", name=name)
        if not request.overwrite:
            self._check_free(name)
        del self.parts[request.upload_id]
        return self._put(name, content, digest.text(), request.modified, request.upload_id)

    def published(self, name: str, upload_id: str) -> FileInfo | None:
        """The file, if it is what that upload has published."""
        known = self._known.get(name)
        is_it = known is not None and known.upload_id == upload_id and self.files.get(name) is known.content
        return known.info if known is not None and is_it else None

    def _look(self, name: str) -> _Known:
        content = self.files.get(name)
        if content is None:
            raise NotFound.for_name(name)
        known = self._known.get(name)
        if known is None or known.content is not content:
            digest = Digest()
            digest.update(content)
            self._put(name, content, digest.text())
        return self._known[name]

    def _put(
        self, name: str, content: bytes, digest: str, modified: float | None = None, upload_id: str | None = None
    ) -> FileInfo:
        info = FileInfo(name, len(content), digest, time.time() if modified is None else modified, digest)
        self.files[name] = content
        self._known[name] = _Known(content, info, upload_id)
        return info

    def _check_free(self, name: str) -> None:
        if name in self.files:
            raise AlreadyExists(f"there is a file named {name!r} already", name=name)

    def _part(self, name: str, request: FileRequest) -> Part:
        part = self.parts.get(request.upload_id or "")
        if part is None or part.spec[0] != name:
            raise NotFound(f"no unfinished upload {request.upload_id!r} of {name!r}", name=name)
        return part

    def _discard(self, upload_id: str) -> int:
        part = self.parts.pop(upload_id, None)
        if part is None:
            raise NotFound(f"no unfinished upload {upload_id!r}")
        if part.supersede is not None:
            part.supersede(Superseded("the upload was discarded"))
        return len(part.content)

    def _delete(self, name: str, request: FileRequest) -> FileInfo:
        info = self._look(name).info
        _check_match(info, request.if_match)
        del self.files[name]
        return info

    def _move(self, name: str, request: MoveRequest) -> FileInfo:
        target = request.target
        if name not in self.files and request.if_match is not None and target in self.files:
            info = self._look(target).info
            if info.etag == request.if_match:
                return info  # the answer to an earlier request may have been lost
        content, info, _ = self._look(name)
        _check_match(info, request.if_match)
        if name == target:
            return info
        if not request.overwrite:
            self._check_free(target)
        moved = replace(info, name=target)
        self.files[target] = self.files.pop(name)
        self._known[target] = _Known(content, moved)
        return moved

    def _list(self, request: ListRequest) -> Iterator[tuple[Payload, bool]]:
        names = [name for name in sorted(self.files, key=str.encode) if name.startswith(request.prefix)]
        for name in names:
            if name in self.files:  # it may be deleted while the listing is under way
                details = transfer_metadata(self.stat(name)) if request.details else None
                yield Payload(encode_name(name), details), False

    def _chunks(self, name: str, request: DownloadRequest) -> Iterator[tuple[Payload, bool]]:
        content, info, _ = self._look(name)
        if request.if_match is not None and request.if_match != info.etag:
            raise Changed(f"{name!r} is not the file that it was; its etag is {info.etag}", name=name)
        offset = request.offset
        if offset > info.size:
            raise InvalidRequest(f"offset {offset} is beyond the end of {name!r}, at {info.size}")
        end = info.size if request.length is None else min(info.size, offset + request.length)
        digest_from = offset if request.digest_from is None else request.digest_from
        head = ChunkHead(info, offset, end - offset)
        is_last = False
        while not is_last:
            data, is_first = content[offset : min(offset + request.item_bytes, end)], offset == request.offset
            offset += len(data)
            is_last = offset == end
            if is_last and request.digest is not None:
                digest = Digest(request.digest)
                digest.update(memoryview(content)[digest_from:end])
                text, is_whole = digest.text(), (digest_from, end) == (0, info.size)
                head = replace(head, range_digest=text, info=replace(info, digest=text) if is_whole else info)
            yield Payload(data, transfer_metadata(head) if is_first or is_last else None), is_last


def _check_match(info: FileInfo, if_match: str | None) -> None:
    if if_match is not None and if_match != info.etag:
        raise Changed(f"{info.name!r} has changed", name=info.name)
