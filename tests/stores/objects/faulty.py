"""An HTTP proxy before an object store, with its faults: errors, lost requests, lost answers, ignored conditions."""

import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Literal

import aiohttp
from aiohttp import web
from yarl import URL

Fault = Literal["cut", "lost", "unconditional"] | tuple[int, str] | None
"""What happens to a request: it is cut off before it is done, or its answer is lost afterwards; or it is done without
its conditions, or answered with a status and a code."""

CONDITIONS: Final = ("If-Match", "If-None-Match", "x-amz-copy-source-if-match")


class FaultyService:
    """A proxy; made by `faulty`.

    Attributes:
        fault: Says what happens to the request with this number, method and path with query.
        requests: How many there were.
    """

    def __init__(self, endpoint: str) -> None:
        self.fault: Callable[[int, str, str], Fault] = lambda number, method, path: None
        self.requests = 0
        self._target = URL(endpoint)
        self._session: aiohttp.ClientSession | None = None
        self._runner = web.AppRunner(self._app(), access_log=None, shutdown_timeout=0.1)

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", self._forward)
        return app

    @property
    def endpoint(self) -> str:
        """The proxy's own URL."""
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def open(self) -> None:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()

    async def close(self) -> None:
        await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        fault = self.fault(self.requests, request.method, request.raw_path)
        body = await request.read()
        if isinstance(fault, tuple):
            status, code = fault
            text = f"<Error><Code>{code}</Code><Message>of the test</Message></Error>"
            return web.Response(status=status, text=text, content_type="application/xml")
        if fault == "cut":
            return self._cut(request)
        left_out = {"transfer-encoding", *(name.lower() for name in CONDITIONS if fault == "unconditional")}
        headers = {name: value for name, value in request.headers.items() if name.lower() not in left_out}
        url = URL(f"{str(self._target).rstrip('/')}{request.raw_path}", encoded=True)
        assert self._session is not None
        async with self._session.request(request.method, url, headers=headers, data=io.BytesIO(body)) as answer:
            content = await answer.read()
            if fault == "lost":
                return self._cut(request)
            said = {name: value for name, value in answer.headers.items() if name.lower() != "transfer-encoding"}
            body = io.BytesIO(content) if content else b""
            return web.Response(status=answer.status, body=body, headers=said)

    def _cut(self, request: web.Request) -> web.Response:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()  # which reaches nobody


@asynccontextmanager
async def faulty(endpoint: str) -> AsyncIterator[FaultyService]:
    """A proxy without faults, until `fault` is set."""
    service = FaultyService(endpoint)
    await service.open()
    try:
        yield service
    finally:
        await service.close()
