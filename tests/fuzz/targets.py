"""The fuzzer's targets, and what must hold for any input; nothing here depends on the fuzzer.

`frames` feeds the bytes to a server's connection over a transport in memory: frame decoder, reassembly, rsocket's
dispatch, handler, routes and store are the real ones. `codecs` feeds them to the parsers of metadata and JSON.
"""

import asyncio
import contextlib
import json
import logging
import struct
from collections.abc import Callable, Iterator
from dataclasses import fields

from rsocket.frame import ErrorFrame

from server import ChatData, Limits
from server.net.connection import ServerConnection
from server.work import Work
from shared.errors import ServerError, TransferError, from_error_frame
from shared.frames.budget import ReassemblyBudget
from shared.frames.codec import FrameHeader, parse_frame
from shared.frames.reassembly import Reassembler
from shared.frames.room import SendRoom
from shared.protocol.messages import (
    ChunkHead,
    DownloadRequest,
    FileRequest,
    ListRequest,
    Receipt,
    UploadEnd,
    UploadRequest,
    find_transfer,
    parse_info,
)
from shared.protocol.metadata import build_metadata, parse_authentication, parse_metadata, parse_routing
from shared.protocol.wire import decode_name, parse_name
from shared.transport.framing import LENGTH_BYTES
from shared.transport.tcp import TcpTransport
from tests.support import (
    CANCEL,
    COMPLETE,
    FOLLOWS,
    METADATA,
    NEXT,
    PAYLOAD,
    REQUEST_CHANNEL,
    REQUEST_FNF,
    REQUEST_RESPONSE,
    REQUEST_STREAM,
    frame,
    item,
    name_item,
    payload,
    request,
    request_n,
    route_item,
    setup,
    stream_ids,
)

# So small that an input of a few kilobytes can exceed each.
LIMITS = Limits(
    max_request_bytes=3000,
    max_connection_bytes=4000,
    max_reassembly_bytes=6000,
    max_setup_bytes=500,
    max_store_bytes=6000,
    max_streams=3,
    max_errors_per_minute=10,
)
FILES = {"a": b"x" * 300, "b": b""}
# Event-loop iterations after each segment; enough for the answer to a request.
ITERATIONS = 25
# Messages that rsocket logs at ERROR for a peer's fault, or at a connection's end.
EXPECTED_LOGS = ("%s: Protocol error %s", "Error", "Runtime error canceling task: %s", "Invalid metadata frame")


class Unexpected(Exception):
    """An input violated what must hold."""


class _MemoryTransport(asyncio.Transport):
    """The socket's side of a connection."""

    def __init__(self, protocol: TcpTransport) -> None:
        super().__init__({"peername": ("fuzzer", 1)})
        self.written = bytearray()
        self._protocol = protocol
        self._is_closing = False
        self._is_paused = False

    @property
    def is_reading(self) -> bool:
        return not self._is_closing and not self._is_paused

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing to do: writes never wait here."""

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Nothing to do: a closed half makes no difference here."""

    def pause_reading(self) -> None:
        self._is_paused = True

    def resume_reading(self) -> None:
        self._is_paused = False

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()


class _Alarm(logging.Handler):
    """Collects log records that no input of a peer may cause."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg not in EXPECTED_LOGS:
            self.records.append(record)


class FramesTarget:
    """Feeds each input to a connection of its own.

    The lowest bit of the first byte puts a SETUP frame before the input; the second byte is the size of the segments.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._unhandled: list[str] = []
        self._loop.set_exception_handler(lambda _, context: self._unhandled.append(repr(context)))
        self._alarm = _Alarm()
        logging.getLogger().addHandler(self._alarm)
        logging.getLogger("pyrsocket").setLevel(logging.ERROR)

    def close(self) -> None:
        logging.getLogger().removeHandler(self._alarm)
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def __call__(self, data: bytes) -> None:
        """Raises Unexpected, or any other exception, for an input that violates what must hold."""
        if len(data) < 2:
            return
        self._alarm.records.clear()
        self._unhandled.clear()
        has_setup, step = data[0] & 1, data[1] or 1 << 16
        try:
            self._loop.run_until_complete(asyncio.wait_for(self._serve(has_setup == 1, step, data[2:]), 20))
        except TimeoutError:
            raise Unexpected("a connection could not be ended") from None
        if self._alarm.records:
            record = self._alarm.records[0]
            raise Unexpected(f"logged: {record.getMessage()}") from (record.exc_info[1] if record.exc_info else None)
        if self._unhandled:
            raise Unexpected(self._unhandled[0])

    async def _serve(self, has_setup: bool, step: int, wire: bytes) -> None:
        data, work, budget = ChatData(dict(FILES)), Work(), ReassemblyBudget(6000)
        connections: list[ServerConnection] = []

        def on_connected(transport: TcpTransport) -> Reassembler:
            connections.append(ServerConnection(transport, data, work, LIMITS, budget, SendRoom(), None))
            return connections[0].reassembler

        protocol = TcpTransport(on_connected, lambda _: connections[0].on_lost())
        transport = _MemoryTransport(protocol)
        protocol.connection_made(transport)
        (connection,) = connections
        held = 0
        for segment in _segments((setup() if has_setup else b"") + wire, step):
            await _receive(protocol, transport, segment)
            held = max(held, budget.used_bytes)
        connection.check(budget.clock())
        transport.close()
        await connection.close()
        await work.settle()
        await data.store.close()
        for _ in range(ITERATIONS):
            await asyncio.sleep(0)
        _check_answers(bytes(transport.written))
        if held > LIMITS.max_connection_bytes:
            raise Unexpected(f"{held} bytes were held")
        streams = stream_ids(connection)
        if budget.used_bytes or work.active or streams:
            raise Unexpected(f"left behind: {budget.used_bytes} bytes, {work.active} operations, streams {streams}")
        if len(asyncio.all_tasks()) > 1 + 1:  # this task, and that of `wait_for`
            raise Unexpected(f"tasks left behind: {asyncio.all_tasks()}")
        begins_with_setup = wire[LENGTH_BYTES : LENGTH_BYTES + 5] == setup()[LENGTH_BYTES : LENGTH_BYTES + 5]
        if not has_setup and not begins_with_setup and (work.started or data.files != FILES):
            raise Unexpected("a request was served before a SETUP frame")


async def _receive(protocol: TcpTransport, transport: _MemoryTransport, segment: bytes) -> None:
    at = 0
    while at < len(segment):
        if transport.is_reading:
            buffer = protocol.get_buffer(-1)
            taken = min(len(buffer), len(segment) - at)
            buffer[:taken] = segment[at : at + taken]
            at += taken
            protocol.buffer_updated(taken)
        elif transport.is_closing():
            return
        await asyncio.sleep(0)
    for _ in range(ITERATIONS):
        await asyncio.sleep(0)


def _segments(wire: bytes, step: int) -> Iterator[bytes]:
    # At most eight or so, because each takes some event-loop iterations.
    step = max(step, len(wire) // 8 + 1)
    for at in range(0, len(wire), step):
        yield wire[at : at + step]


def _check_answers(wire: bytes) -> None:
    """Checks that the server sent whole frames, and that its errors are typed and not internal."""
    at = 0
    while at < len(wire):
        length = int.from_bytes(wire[at : at + LENGTH_BYTES], "big")
        view = memoryview(wire)[at + LENGTH_BYTES : at + LENGTH_BYTES + length]
        if len(view) < length:
            raise Unexpected("the last frame is incomplete")
        answer = parse_frame(FrameHeader.parse(view, 0, length), view)
        if isinstance(answer, ErrorFrame) and answer.stream_id:
            error = from_error_frame(answer.error_code, bytes(answer.data or b""))
            if isinstance(error, ServerError) or not error.code:
                raise Unexpected(f"an error without a reason: {error!r}")
        at += LENGTH_BYTES + length


MESSAGES = (ChunkHead, DownloadRequest, FileRequest, ListRequest, Receipt, UploadEnd, UploadRequest)


def codecs(data: bytes) -> None:
    """Any bytes are parsed or refused with a typed error; what was parsed is the same after a round trip."""
    with contextlib.suppress(TransferError):
        items = parse_metadata(data)
        if parse_metadata(build_metadata(items)) != items:
            raise Unexpected("metadata changed in a round trip")
        for parse in (parse_routing, parse_name, find_transfer):
            with contextlib.suppress(TransferError):
                parse(items)
    for parser in (parse_authentication, decode_name):
        with contextlib.suppress(TransferError):
            parser(data)
    metadata = item(b"chat/file-transfer", data)
    with contextlib.suppress(TransferError):
        parse_info(metadata)
    with contextlib.suppress(TransferError):
        fields_found = find_transfer(metadata)
        for message in MESSAGES:
            with contextlib.suppress(TransferError):
                made = message.from_json(fields_found or {})
                again = message.from_json(json.loads(json.dumps(made.to_json())))
                if made != again:
                    changed = [
                        field.name for field in fields(made) if getattr(made, field.name) != getattr(again, field.name)
                    ]
                    raise Unexpected(f"{message.__name__} changed in a round trip: {changed}")
    from_error_frame(int.from_bytes(data[:4], "big"), data[4:])


def seeds() -> dict[str, dict[str, bytes]]:
    """Target -> name -> initial input."""
    said = b'{"upload_id":"u","digest":null}'
    end = b'{"size":3,"digest":null}'
    upload_metadata = route_item("file.upload") + name_item(b"c")
    transfer = {
        route: route_item(route) + name_item(b"a") + item(b"chat/file-transfer", said)
        for route in (
            "file.upload",
            "file.download",
            "file.stat",
            "file.delete",
            "file.move",
            "file.upload.status",
            "file.upload.discard",
            "files",
        )
    }
    ended_flag, ended = payload(item(b"chat/file-transfer", end), b"xyz")
    wires = {
        "upload": request(1, REQUEST_RESPONSE, upload_metadata, b"x" * 100),
        "fragments": request(1, REQUEST_RESPONSE, upload_metadata, b"x" * 900, flags=FOLLOWS)
        + frame(1, PAYLOAD, NEXT | FOLLOWS, b"y" * 900)
        + frame(1, PAYLOAD, NEXT, b"z"),
        "too much": request(1, REQUEST_RESPONSE, upload_metadata, b"x" * 3000, flags=FOLLOWS)
        + frame(1, PAYLOAD, NEXT | FOLLOWS, b"y" * 900),
        "channel": request(3, REQUEST_CHANNEL, transfer["file.upload"], n=9)
        + frame(3, PAYLOAD, NEXT, b"abc")
        + frame(3, PAYLOAD, NEXT | COMPLETE | ended_flag, ended),
        "channel cancelled": request(3, REQUEST_CHANNEL, transfer["file.upload"], n=1) + frame(3, CANCEL),
        "stream": request(5, REQUEST_STREAM, transfer["file.download"], n=1) + request_n(5, 3) + frame(5, CANCEL),
        "list": request(7, REQUEST_STREAM, transfer["files"], n=1) + request_n(7, 0x7FFFFFFF),
        "fire and forget": request(9, REQUEST_FNF, transfer["files"]),
        "keepalive": frame(0, 0x03, 0x80, bytes(8) + b"data") + frame(0, 0x0C, METADATA, b"push"),
        "error": frame(0, 0x0B, 0, struct.pack(">I", 0x101) + b"bye") + frame(3, 0x0B, 0, struct.pack(">I", 0x201)),
        "lease": frame(0, 0x02, 0, struct.pack(">II", 1000, 5)) + frame(0, 0x3F, 0x200, b"ext"),
        "nothing": bytes(3),
        **{f"{route} once": request(1, REQUEST_RESPONSE, metadata, b"x") for route, metadata in transfer.items()},
    }
    texts = [said, end, b'{"name":"a","size":1,"etag":"e","modified":1.5}', b"[" * 2000, b'{"size":1e400}', b"\xff"]
    return {
        "frames": {
            f"{name} {flag}": bytes([flag, step]) + wire
            for name, wire in wires.items()
            for flag, step in ((1, 0), (0, 9))
        }
        | {"own setup": b"\x00\x00" + setup() + wires["upload"]},
        "codecs": {str(number): text for number, text in enumerate([*texts, *transfer.values()])},
    }


def targets() -> dict[str, Callable[[], Callable[[bytes], None]]]:
    """Name -> the function that makes the target."""
    return {"frames": FramesTarget, "codecs": lambda: codecs}
