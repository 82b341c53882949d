"""grpc.aio with messages of 256 KiB, as bytes: no protobuf is encoded or parsed."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

from . import CHUNK_BYTES, Client, Pace

_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class GrpcAio:
    """Server and client over one channel."""

    @asynccontextmanager
    async def serve(self, folder: Path) -> AsyncGenerator[int, None]:
        files: dict[str, bytes] = {}

        async def download(name: bytes, _: Any) -> AsyncGenerator[bytes, None]:
            with (folder / name.decode()).open("rb", buffering=0) as file:
                while data := file.read(CHUNK_BYTES):
                    yield data

        async def upload(items: AsyncIterator[bytes], _: Any) -> bytes:
            name = await anext(items)
            with (folder / name.decode()).open("wb", buffering=0) as file:
                async for data in items:
                    file.write(data)
            return b""

        async def get(name: bytes, _: Any) -> bytes:
            return files[name.decode()]

        async def put(item: bytes, _: Any) -> bytes:
            name, _, content = item.partition(b"\0")
            files[name.decode()] = content
            return b""

        async def stat(name: bytes, _: Any) -> bytes:
            return b"%d" % len(files[name.decode()])

        server = aio.server(options=_OPTIONS)
        methods = {
            "download": grpc.unary_stream_rpc_method_handler(download),
            "upload": grpc.stream_unary_rpc_method_handler(upload),
            "get": grpc.unary_unary_rpc_method_handler(get),
            "put": grpc.unary_unary_rpc_method_handler(put),
            "stat": grpc.unary_unary_rpc_method_handler(stat),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("files", methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield port
        finally:
            await server.stop(None)

    @asynccontextmanager
    async def connect(self, port: int) -> AsyncGenerator[Client, None]:
        async with aio.insecure_channel(f"127.0.0.1:{port}", options=_OPTIONS) as channel:
            yield _Client(channel)


class _Client(Client):
    def __init__(self, channel: aio.Channel) -> None:
        self._download = channel.unary_stream("/files/download")
        self._upload = channel.stream_unary("/files/upload")
        self._get = channel.unary_unary("/files/get")
        self._put = channel.unary_unary("/files/put")
        self._stat = channel.unary_unary("/files/stat")

    async def download(self, name: str, target: Path, rate: float | None) -> None:
        pace = Pace(rate)
        with target.open("wb", buffering=0) as file:
            async for data in self._download(name.encode()):
                file.write(data)
                await pace.throttle(len(data))

    async def upload(self, source: Path, name: str) -> None:
        async def items() -> AsyncGenerator[bytes, None]:
            yield name.encode()
            with source.open("rb", buffering=0) as file:
                while data := file.read(CHUNK_BYTES):
                    yield data

        await self._upload(items())

    async def get(self, name: str) -> bytes:
        return await self._get(name.encode())

    async def put(self, name: str, content: bytes) -> None:
        await self._put(name.encode() + b"\0" + content)

    async def stat(self, name: str) -> None:
        await self._stat(name.encode())
