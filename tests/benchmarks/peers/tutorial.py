"""rsocket-py's tutorial "File upload and download", over its own transport: whole files in memory."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from rsocket.extensions.composite_metadata import CompositeMetadata
from rsocket.extensions.helpers import composite, metadata_item, route
from rsocket.extensions.mimetypes import WellKnownMimeTypes
from rsocket.frame_helpers import ensure_bytes
from rsocket.helpers import create_response, single_transport_provider, utf8_decode
from rsocket.payload import Payload
from rsocket.routing.request_router import RequestRouter
from rsocket.routing.routing_request_handler import RoutingRequestHandler
from rsocket.rsocket_client import RSocketClient
from rsocket.rsocket_server import RSocketServer
from rsocket.transports.tcp import TransportTCP

from shared.logs import quiet_rsocket

from . import Client

FRAGMENT_BYTES: Final = 1_000_000
_FILE_NAME: Final = b"chat/file-name"


class Tutorial:
    """Server and client.

    Args:
        read_buffer: `TransportTCP`'s, in bytes.
    """

    def __init__(self, *, read_buffer: int) -> None:
        self._read_buffer = read_buffer
        quiet_rsocket()

    @asynccontextmanager
    async def serve(self, folder: Path) -> AsyncGenerator[int, None]:
        router = _router({})
        sessions: list[RSocketServer] = []

        def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            transport = TransportTCP(reader, writer, self._read_buffer)
            sessions.append(
                RSocketServer(
                    transport,
                    handler_factory=lambda: RoutingRequestHandler(router),
                    fragment_size_bytes=FRAGMENT_BYTES,
                )
            )

        listener = await asyncio.start_server(session, "127.0.0.1", 0)
        try:
            yield listener.sockets[0].getsockname()[1]
        finally:
            listener.close()

    @asynccontextmanager
    async def connect(self, port: int) -> AsyncGenerator[Client, None]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with RSocketClient(
            single_transport_provider(TransportTCP(reader, writer, self._read_buffer)),
            metadata_encoding=WellKnownMimeTypes.MESSAGE_RSOCKET_COMPOSITE_METADATA,
            fragment_size_bytes=FRAGMENT_BYTES,
        ) as rsocket:
            yield _Client(rsocket)


def _router(files: dict[str, bytes]) -> RequestRouter:
    router = RequestRouter()

    def file_name(composite_metadata: CompositeMetadata) -> str:
        return utf8_decode(composite_metadata.find_by_mimetype(_FILE_NAME)[0].content)

    @router.response("file.upload")
    async def upload_file(payload: Payload, composite_metadata: CompositeMetadata) -> Awaitable[Payload]:
        files[file_name(composite_metadata)] = payload.data
        return create_response()

    @router.response("file.download")
    async def download_file(composite_metadata: CompositeMetadata) -> Awaitable[Payload]:
        name = file_name(composite_metadata)
        return create_response(files[name], composite(metadata_item(ensure_bytes(name), _FILE_NAME)))

    return router


class _Client(Client):
    def __init__(self, rsocket: RSocketClient) -> None:
        self._rsocket = rsocket

    async def get(self, name: str) -> bytes:
        return (await self._rsocket.request_response(Payload(metadata=_about("file.download", name)))).data

    async def put(self, name: str, content: bytes) -> None:
        await self._rsocket.request_response(Payload(content, _about("file.upload", name)))


def _about(path: str, name: str) -> bytes:
    return composite(route(path), metadata_item(ensure_bytes(name), _FILE_NAME))
