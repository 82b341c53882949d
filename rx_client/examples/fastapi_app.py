"""A FastAPI application whose files are in a file server: up and down, in bounded memory, with back-pressure both ways.

Run it beside a file server, and move a file of any size through it::

    python -m server --store folder
    RXFILES_URI=tcp://localhost:6565 uvicorn rx_client.examples.fastapi_app:app
    curl -T large.iso http://localhost:8000/files/large.iso
    curl -O http://localhost:8000/files/large.iso

An upload reads the HTTP request as the file server stores it, and a download asks the file server for more as the HTTP
peer takes it; a window of chunks is all that this process holds of a file. When the HTTP peer leaves, its transfer is
cancelled, down to the file server's disk, and what has come of an upload is dropped. What is downloaded is one version
of the file.
"""

import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Final
from uuid import uuid4

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from reactivex import Observable
from starlette.requests import ClientDisconnect

from .. import (
    AlreadyExists,
    Chunk,
    Completed,
    FileClient,
    FileInfo,
    Files,
    InvalidName,
    NotFound,
    PermissionDenied,
    StorageFull,
    TooLarge,
    TransferError,
)
from ..operators import to_async_iter

_WINDOW: Final = 4  # chunks of 256 KiB on their way, for each transfer
_STATUS: Final[Mapping[type[TransferError], int]] = {
    InvalidName: 400,
    PermissionDenied: 403,
    NotFound: 404,
    AlreadyExists: 409,
    TooLarge: 413,
    StorageFull: 507,
}


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """One connection for all requests; it is made again when it is lost."""
    async with FileClient.connect(os.environ.get("RXFILES_URI", "tcp://localhost:6565")) as files:
        app.state.files = files
        yield


app = FastAPI(lifespan=_lifespan)


def file_client(request: Request) -> Files:
    """Tests put a `FakeFileClient` in its place, with `app.dependency_overrides`."""
    return request.app.state.files


Client = Annotated[Files, Depends(file_client)]


@app.put("/files/{name:path}", status_code=201)
async def upload(name: str, request: Request, files: Client) -> FileInfo:
    length = request.headers.get("content-length")
    size = None if length is None else int(length)
    upload_id = uuid4().hex
    try:
        last = await files.upload_from(name, request.stream(), size=size, window=_WINDOW, upload_id=upload_id)
    except ClientDisconnect:
        with suppress(TransferError):
            await files.discard(upload_id)  # no other request goes on with it
        raise
    assert isinstance(last, Completed), "it is what an upload's last event is"
    return last.info


@app.get("/files/{name:path}")
async def download(name: str, files: Client) -> StreamingResponse:
    info = await files.stat(name)
    chunks = files.download_chunks(name, window=_WINDOW, if_match=info.etag)
    headers = {"content-length": str(info.size), "etag": f'"{info.etag}"'}
    return StreamingResponse(_content(chunks), media_type="application/octet-stream", headers=headers)


@app.delete("/files/{name:path}", status_code=204)
async def delete(name: str, files: Client) -> None:
    await files.delete(name)


async def _content(chunks: Observable[Chunk]) -> AsyncIterator[bytes]:
    async with chunks.pipe(to_async_iter()) as items:
        async for chunk in items:
            yield chunk.data


@app.exception_handler(TransferError)
async def on_transfer_error(_: Request, error: TransferError) -> Response:
    status = _STATUS.get(type(error), 503 if error.retryable else 502)
    return JSONResponse({"detail": error.message}, status)


@app.exception_handler(ClientDisconnect)
async def on_disconnect(_: Request, __: ClientDisconnect) -> Response:
    return Response(status_code=499)  # the HTTP peer isn't there to read it
