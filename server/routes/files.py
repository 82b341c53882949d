"""Our own routes beside the tutorial's: files in chunks, what is known of one, its removal, and its renaming."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from rsocket.payload import Payload

from shared.errors import NotFound
from shared.protocol.messages import (
    DownloadRequest,
    FileRequest,
    MoveRequest,
    Receipt,
    UploadRequest,
    check_upload_id,
    transfer_metadata,
)
from shared.protocol.wire import Route as Name

from ..stores.base import AtOnceStore
from ..stores.parts import no_upload
from ..users import Right
from .download import read_range
from .pull import Items, PullStream
from .table import Model, Request, Route
from .upload import UploadChannel

__all__ = ["FILES"]


def _download(request: Request[DownloadRequest]) -> Callable[[PullStream], Items]:
    return partial(read_range, request.session.store, request.name, request.message)


def _upload(request: Request[UploadRequest]) -> tuple[UploadChannel, UploadChannel]:
    channel = UploadChannel(request)
    return channel, channel


async def _status(request: Request[FileRequest]) -> Payload:
    session = request.session
    upload_id = session.user.scoped(check_upload_id(request.message.upload_id or ""))
    return Payload(b"", transfer_metadata(Receipt(await session.store.uploaded(upload_id, request.name))))


async def _discard(request: Request[FileRequest]) -> Payload:
    session, given = request.session, check_upload_id(request.message.upload_id or "")
    user, upload_id = session.user, session.user.scoped(given)
    if not user.prefixes(Right.WRITE, ""):
        user.check(Right.WRITE, "")  # the id doesn't say which file; but it is one of this user's
    request.operation.what += f" {upload_id}"
    try:
        async with session.data.uploads.ended(upload_id):
            return Payload(b"", transfer_metadata(Receipt(await session.store.discard(upload_id))))
    except NotFound:
        raise no_upload(given) from None


async def _stat(request: Request[None]) -> Payload:
    return Payload(b"", transfer_metadata(await request.session.store.stat(request.name)))


def _stat_at_once(request: Request[None], memory: AtOnceStore) -> Payload | None:
    info = memory.known(request.name)
    return None if info is None else Payload(b"", transfer_metadata(info))


async def _delete(request: Request[FileRequest]) -> Payload:
    info = await request.session.store.delete(request.name, request.message.if_match)
    return Payload(b"", transfer_metadata(info))


async def _move(request: Request[MoveRequest]) -> Payload:
    message, store = request.message, request.session.store
    request.session.user.check(Right.WRITE, message.target)
    try:
        info = await store.move(request.name, message.target, overwrite=message.overwrite, if_match=message.if_match)
    except NotFound:
        if message.if_match is None:
            raise
        # The answer to an earlier request may have been lost.
        with suppress(NotFound):
            info = await store.stat(message.target)
            if info.etag == message.if_match:
                return Payload(b"", transfer_metadata(info))
        raise
    return Payload(b"", transfer_metadata(info))


FILES: Final[tuple[Route[Any], ...]] = (
    Route(
        Name.DOWNLOAD, Model.REQUEST_STREAM, _download, right=Right.READ, is_about_file=True, message=DownloadRequest
    ),
    Route(Name.UPLOAD, Model.REQUEST_CHANNEL, _upload, right=Right.WRITE, is_about_file=True, message=UploadRequest),
    Route(
        Name.UPLOAD_STATUS, Model.REQUEST_RESPONSE, _status, right=Right.WRITE, is_about_file=True, message=FileRequest
    ),
    Route(Name.UPLOAD_DISCARD, Model.REQUEST_RESPONSE, _discard, right=None, message=FileRequest),
    Route(Name.STAT, Model.REQUEST_RESPONSE, _stat, right=Right.READ, is_about_file=True, at_once=_stat_at_once),
    Route(Name.DELETE, Model.REQUEST_RESPONSE, _delete, right=Right.DELETE, is_about_file=True, message=FileRequest),
    Route(Name.MOVE, Model.REQUEST_RESPONSE, _move, right=Right.DELETE, is_about_file=True, message=MoveRequest),
)
