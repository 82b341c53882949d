"""What the file lane's threads share: spare buffers, and the right to a socket."""

import asyncio
import socket
import time

import pytest

from shared.files.crew import Crew
from shared.files.sockets import LaneSocket
from shared.files.threads import SocketTurn, SpareBuffers
from tests.files.support import promptly
from tests.support import eventually


class _Emptied(list[bytearray]):
    """Has something when it is asked, and nothing when that is to be taken: another thread was faster."""

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return 1


def test_another_thread_takes_the_last_spare_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    buffers = SpareBuffers(4, 1_000_000)
    monkeypatch.setattr(buffers, "_spares", _Emptied())
    assert len(buffers.borrow(100_000)) >= 100_000


def test_a_few_buffers_of_moderate_size_are_kept() -> None:
    buffers = SpareBuffers(2, 1000)
    small, enough, large, third = bytearray(10), bytearray(1000), bytearray(1001), bytearray(500)
    for each in (large, small, enough, third):
        buffers.give_back(each)
    assert buffers.borrow(100) is enough
    assert len(buffers.borrow(100)) == 100, "one that is too small is of no use"
    assert buffers.borrow(0) is not third


async def test_a_turn_is_lost_at_the_disk_alone() -> None:
    turn = SocketTurn()
    assert turn.leave_disk(), "it was never there"
    turn.enter_disk()
    assert not turn.revoke_if_held_up(), "not yet"
    assert turn.leave_disk()
    time.sleep(0.06)
    assert not turn.revoke_if_held_up(), "it is back"
    turn.enter_disk()
    await eventually(turn.revoke_if_held_up, seconds=0.5)
    assert turn.is_revoked
    assert not turn.leave_disk()


async def test_nothing_waits_for_the_socket_of_a_connection_that_has_ended() -> None:
    """It may be closed between the end of a thread and the wait that is to follow."""
    left, right = socket.socketpair()
    with right:
        crew = Crew(LaneSocket(fileno=left.detach()))
        crew.close()
        assert crew.is_closed
        await promptly(crew.until_writable())
        await promptly(crew.until_readable(asyncio.get_running_loop().create_future()))
