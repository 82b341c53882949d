"""The tutorial's chat beside its files: messages and the files that they share are one stream, over one connection.

Bob's client asks for messages with `FileClient.requests`, which makes requests for an application's own routes, and
for the files that they mention with `FileClient.download`. Both have the same demand, errors and connection, and
compose with the same operators. He keeps the files at the server of `--uri`; the chat's own server is here.
"""

import asyncio
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import reactivex
from reactivex import Observable, Subject
from reactivex import operators as ops
from rsocket.payload import Payload

from server import Items, Model, Request, Route, serve
from shared.protocol.wire import request_metadata

from .. import FileClient
from ..operators import to_async_iter
from .context import Context, check
from .real_files import python_sources, read

__all__ = ["run"]

_SEND: Final = "message"
_INCOMING: Final = "messages.incoming"
_FILES: Final = 3
_MAX_AHEAD: Final = 16


@dataclass(frozen=True)
class Message:
    """What a user says; perhaps about a file."""

    user: str
    content: str
    file: str | None = None

    def to_payload(self, route: str | None = None) -> Payload:
        return Payload(json.dumps(asdict(self)).encode(), None if route is None else request_metadata(route))

    @staticmethod
    def of(payload: Payload) -> "Message":
        return Message(**json.loads(bytes(payload.data or b"")))


@dataclass(frozen=True)
class Attachment:
    """A file that a message was about."""

    file: str
    content: bytes


async def run(context: Context) -> None:
    paths = sorted(await asyncio.to_thread(python_sources), key=lambda path: -path.stat().st_size)[:_FILES]

    async with (
        FileClient.connect(context.uri) as archive,
        serve(routes=_chat_routes(Subject[Message]())) as server,
        FileClient.connect(server.uri) as alice,
        FileClient.connect(server.uri) as bob,
    ):
        welcomed = asyncio.Event()

        def show(event: Message | Attachment) -> None:
            welcomed.set()
            match event:
                case Message(user, content):
                    context.say(f"{user}: {content}")
                case Attachment(file, content):
                    context.say(f"({len(content):,} bytes of {file!r})")

        def keep(event: Message | Attachment) -> Observable[Message | Attachment]:
            is_file = isinstance(event, Attachment)
            kept = archive.upload(event.file, event.content) if is_file else reactivex.just(None)
            return kept.pipe(ops.map(lambda _: event))

        received = _chat(bob).pipe(ops.do_action(show), ops.flat_map(keep), ops.take(1 + 2 * len(paths)), ops.to_list())
        listening = asyncio.ensure_future(received)
        await welcomed.wait()
        await reactivex.concat(*(_share(alice, path) for path in paths))
        events = await listening

        for path in paths:
            kept = await archive.download(path.name)
            check(kept == await read(path), f"{path.name!r} came with other bytes")

    context.say(f"{len(events)} events of one stream, over one connection")


def _chat(files: FileClient) -> Observable[Message | Attachment]:
    """Emits each message as it comes, and the file that it is about once that is here."""

    def with_attachment(message: Message) -> Observable[Message | Attachment]:
        said: Observable[Message | Attachment] = reactivex.just(message)
        if (file := message.file) is None:
            return said
        return reactivex.concat(said, files.download(file).pipe(ops.map(lambda content: Attachment(file, content))))

    # There may be no message for hours; keepalives show that the connection works.
    request = Payload(b"", request_metadata(_INCOMING))
    incoming = files.requests.request_stream(request, _MAX_AHEAD, progress_timeout=math.inf)
    return incoming.pipe(ops.map(Message.of), ops.flat_map(with_attachment))


def _share(files: FileClient, path: Path) -> Observable[Payload]:
    """Uploads a file, and says so in the chat."""
    message = Message("alice", f"look at {path.name}", path.name).to_payload(_SEND)
    return read(path).pipe(
        ops.flat_map(lambda content: files.upload(path.name, content)),
        ops.flat_map(lambda _: files.requests.request_response(message)),
    )


def _chat_routes(messages: Subject[Message]) -> list[Route[None]]:
    """The chat's own routes; the server serves them beside ours, with the same limits, counting and typed errors."""

    async def send(request: Request[None]) -> Payload:
        messages.on_next(Message.of(request.payload))
        return Payload(b"")

    async def incoming(_: Request[None]) -> Items:
        welcome = Message("server", "welcome")
        async with messages.pipe(ops.start_with(welcome), to_async_iter(_MAX_AHEAD)) as coming:
            async for message in coming:
                yield message.to_payload()

    return [
        Route(_SEND, Model.REQUEST_RESPONSE, send, right=None),
        Route(_INCOMING, Model.REQUEST_STREAM, incoming, right=None),
    ]
