"""The outbox of a connection: whose turn it is, what can be withdrawn, and what a peer may provoke."""

import asyncio
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Final

import pytest
from rsocket.frame import CancelFrame, ErrorFrame, Frame, FrameFragmentMixin, KeepAliveFrame
from rsocket.frame_builders import to_payload_frame
from rsocket.payload import Payload

from shared.frames.outbox import FileTurn, Outbox, SkippedFrame, TurnTaker
from shared.frames.outgoing import OutgoingFrame
from tests.transport.pairs import cancel, payload, request_n

PROVOKED: Final = frozenset[type[Frame]]([KeepAliveFrame, ErrorFrame, CancelFrame])
SKIPPED: Final = SkippedFrame()


class Job(TurnTaker):
    """A file that waits for its turn."""

    def __init__(self, executor: Executor | None = None) -> None:
        self.is_stopped = False
        self._executor = executor

    @property
    def executor(self) -> Executor | None:
        return self._executor

    def stop(self) -> None:
        self.is_stopped = True


def large(stream_id: int, fragments: int) -> OutgoingFrame:
    """A payload of so many fragments."""
    data = bytes(100 * fragments)
    return OutgoingFrame(to_payload_frame(stream_id, Payload(data), True, True, 109), SKIPPED)


def stock(stream_id: int, fragments: int) -> FrameFragmentMixin:
    """The same, as rsocket queues it."""
    return to_payload_frame(stream_id, Payload(bytes(100 * fragments)), True, True, 109)


async def drain(outbox: Outbox) -> list[int]:
    """Sends everything; the streams of the frames, 0 for a file's turn."""
    order: list[int] = []
    while not outbox.is_empty:
        entry = await outbox.take()
        if isinstance(entry, FileTurn):
            order.append(0)
        else:
            order.append(entry.stream_id)
            outbox.on_sent(entry)
    return order


@pytest.mark.parametrize("make", [large, stock])
async def test_after_each_fragment_the_others_have_their_turn(
    make: "type[OutgoingFrame]",
) -> None:
    outbox = Outbox(PROVOKED)
    outbox.put(make(1, 3))
    outbox.put(make(3, 2))
    outbox.put(request_n(1, 5))
    outbox.put(Job())
    assert await drain(outbox) == [1, 3, 5, 0, 1, 3, 1]


async def test_the_setup_is_first() -> None:
    outbox = Outbox(PROVOKED)
    outbox.put(large(1, 2))
    assert (await outbox.take()).flags_follows  # type: ignore[union-attr]
    outbox.put(request_n(1, 3))
    outbox.put_first(request_n(1, 5))
    assert await drain(outbox) == [5, 1, 3]


async def test_what_is_put_in_wakes_the_sender() -> None:
    outbox = Outbox(PROVOKED)
    taking = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    assert not taking.done()
    frame = request_n(1, 1)
    outbox.put(frame)
    assert await taking is frame
    taking = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    outbox.put_first(frame)
    assert await taking is frame
    assert outbox.is_empty


async def test_what_is_withdrawn_is_replaced_or_left_out() -> None:
    outbox = Outbox(PROVOKED)
    first, second = large(1, 3), OutgoingFrame(to_payload_frame(3, Payload(bytes(300)), True, True, 109))
    outbox.put(first)
    outbox.put(second)
    assert (await outbox.take()).stream_id == 1  # type: ignore[union-attr]
    assert (await outbox.take()).stream_id == 3  # type: ignore[union-attr]
    first.withdraw()
    second.withdraw()
    assert await outbox.take() is SKIPPED
    assert isinstance(await outbox.take(), CancelFrame)
    assert outbox.is_empty
    # One that was sent as a whole meanwhile leaves nothing.
    sent = large(5, 1)
    assert sent.get_next_fragment() is not None
    outbox.put(sent)
    outbox.put(request_n(1, 7))
    assert (await outbox.take()).stream_id == 7  # type: ignore[union-attr]


async def test_files_that_are_next_share_a_turn() -> None:
    with ThreadPoolExecutor(1) as executor:
        outbox = Outbox(PROVOKED)
        mine = [Job() for _ in range(70)]
        other = [Job(executor) for _ in range(2)]
        for job in (*mine[:2], *other, mine[2]):
            outbox.put(job)
        outbox.put(request_n(1, 1))
        for job in mine[3:]:
            outbox.put(job)
        turns: list[FileTurn | int] = []
        while not outbox.is_empty:
            entry = await outbox.take()
            turns.append(entry if isinstance(entry, FileTurn) else entry.stream_id)
            if len(turns) == 1:
                assert isinstance(entry, FileTurn)
                assert entry.waiting() == 71
                outbox.put(request_n(1, 3))
                assert entry.waiting() == 72, "it is asked while they send"
        jobs = [list(turn.jobs) if isinstance(turn, FileTurn) else turn for turn in turns]
        assert jobs == [mine[:2], other, [mine[2]], 1, mine[3:67], mine[67:], 3]


def _frame(kind: type[Frame], data: bytes = b"", *, responds: bool = False) -> Frame:
    frame = kind()
    frame.stream_id, frame.data = 0, data
    if isinstance(frame, KeepAliveFrame):
        frame.flags_respond = responds
    return frame


async def test_what_a_peer_provokes_is_counted_until_it_is_sent() -> None:
    room: list[int] = []
    outbox = Outbox(PROVOKED, lambda: room.append(outbox.control_bytes))
    frames = [_frame(KeepAliveFrame, b"x" * 100), _frame(ErrorFrame, b"y" * 10), cancel(1)]
    for frame in (*frames, _frame(KeepAliveFrame, b"z" * 1000, responds=True), payload(b"data"), SKIPPED):
        outbox.put(frame)
    assert outbox.control_bytes == 3 * 512 + 110
    first = await outbox.take()
    assert isinstance(first, Frame)
    assert outbox.control_bytes == 3 * 512 + 110, "it isn't in the socket yet"
    outbox.on_sent(first)
    assert outbox.control_bytes == 2 * 512 + 10
    await drain(outbox)
    assert outbox.control_bytes == 0
    assert room == [2 * 512 + 10, 512, 0, 0], "this side's own keepalive counts nothing"


async def test_whatever_waits_for_a_frame_hears_that_it_was_sent() -> None:
    outbox = Outbox(PROVOKED)
    loop = asyncio.get_running_loop()
    waited, given_up = payload(b"1"), payload(b"2")
    waited.sent_future, given_up.sent_future = loop.create_future(), loop.create_future()
    given_up.sent_future.cancel()
    for frame in (waited, given_up):
        outbox.put(frame)
    await drain(outbox)
    assert waited.sent_future.done()
    assert not waited.sent_future.cancelled()


async def test_a_closed_outbox_drops_what_waits_and_what_comes() -> None:
    room: list[None] = []
    outbox = Outbox(PROVOKED, lambda: room.append(None))
    jobs = [Job(), Job()]
    outbox.put(jobs[0])
    outbox.put(large(1, 3))
    outbox.put(cancel(1))
    outbox.close()
    assert outbox.is_empty
    outbox.put(jobs[1])
    outbox.put(payload(b"late"))
    assert outbox.is_empty
    assert [job.is_stopped for job in jobs] == [True, True]
    outbox.on_sent(cancel(1))
    assert not room, "it leads to a connection that has ended"
    outbox.close()
