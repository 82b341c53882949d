"""The tutorial's routes: whole files up and down, and the names of all files."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final, cast

from rsocket.payload import Payload

from shared.protocol.messages import ListRequest, transfer_metadata
from shared.protocol.wire import FileInfo, encode_name, name_metadata
from shared.protocol.wire import Route as Name

from ..stores.base import AtOnceStore
from ..users import Right
from .pull import Items
from .table import Model, Request, Route
from .whole import FilePayload, ReservedUpload, UploadSpool, WholeUpload

__all__ = ["SMALL_FILE_BYTES", "TUTORIAL"]

SMALL_FILE_BYTES: Final = 64 * 1024
"""A file up to this is read as a whole for its answer, which saves a task."""


async def _upload(request: Request[None]) -> Payload:
    content = cast("WholeUpload | bytes | bytearray | None", request.payload.data)
    if isinstance(content, WholeUpload):
        await content.commit()
    else:
        # A copy of its own: what rsocket hands over may be a buffer that is still written to.
        await request.session.store.put(request.name, bytes(content or b""))
    return Payload(b"", name_metadata(request.name))


def _upload_at_once(request: Request[None], memory: AtOnceStore) -> Callable[[], Payload | None] | None:
    name, content = request.name, request.payload.data
    if not isinstance(content, bytes):
        return None

    def put() -> Payload | None:
        return Payload(b"", name_metadata(name)) if memory.put_at_once(name, content) else None

    return put


def _upload_spool(request: Request[None]) -> UploadSpool | ReservedUpload | None:
    store = request.session.store
    if store.spools:
        return UploadSpool(store, request.name, request.session.connection.work)
    reservation = store.reserve(request.name)
    return None if reservation is None else ReservedUpload(reservation)


async def _download(request: Request[None]) -> Payload:
    session, name = request.session, request.name
    connection = session.connection
    # Not opened before: a peer that asks for thousands and takes none has few of them here, and in the store's queue.
    # The answer itself counts once it is made.
    answers = connection.answers
    await answers.reserve(SMALL_FILE_BYTES)
    release: Callable[[], None] | None = partial(answers.release, SMALL_FILE_BYTES)
    counted = 0
    try:
        counted = answers.room.take(SMALL_FILE_BYTES)
        if counted == SMALL_FILE_BYTES:
            content = await session.store.whole(name, SMALL_FILE_BYTES)
            if content is not None:
                return Payload(content, name_metadata(name))
        answers.room.add(-counted)
        counted = 0
        reader = await session.store.open(name)
        size = reader.info.size
        counted = answers.room.take(min(size, SMALL_FILE_BYTES))
        if size > counted and session.store.spools and connection.engine is not None:
            # Where there is little room, a small file is sent as a large one, and until then no other one is opened.
            on_over, release = (release, None) if size <= SMALL_FILE_BYTES else (_nothing, release)
            return FilePayload(reader, name_metadata(name), on_over)
        try:
            return Payload(await reader.read(0, size), name_metadata(name))
        finally:
            await reader.close()
    finally:
        answers.room.add(-counted)
        if release is not None:
            release()


def _nothing() -> None:
    """There is nothing to release."""


def _download_at_once(request: Request[None], memory: AtOnceStore) -> Payload | None:
    content = memory.content(request.name)
    # An app may have put anything into its dictionary.
    return Payload(content, name_metadata(request.name)) if type(content) is bytes else None


async def _list(request: Request[ListRequest]) -> Items:
    store, asked = request.session.store, request.message
    held: FileInfo | None = None  # whether it is the last is known when another one is found
    for prefix in request.session.user.prefixes(Right.READ, asked.prefix):
        after: str | None = ""
        while after is not None:
            page = await store.list(prefix, after, store.page_files)
            after = page.after
            for info in page.files:
                if held is not None:
                    yield _listed(held, asked), False
                held = info
    if held is not None:
        yield _listed(held, asked), True


def _listed(info: FileInfo, asked: ListRequest) -> Payload:
    return Payload(encode_name(info.name), transfer_metadata(info) if asked.details else None)


TUTORIAL: Final[tuple[Route[Any], ...]] = (
    Route(
        Name.UPLOAD,
        Model.REQUEST_RESPONSE,
        _upload,
        right=Right.WRITE,
        is_about_file=True,
        at_once=_upload_at_once,
        spool=_upload_spool,
    ),
    Route(
        Name.DOWNLOAD,
        Model.REQUEST_RESPONSE,
        _download,
        right=Right.READ,
        is_about_file=True,
        at_once=_download_at_once,
    ),
    # Every user may ask; each sees the names that they may read.
    Route(Name.FILES, Model.REQUEST_STREAM, _list, right=None, message=ListRequest),
)
