"""The events of transfers: how they are made and matched, and that each names its file."""

import pickle
from pathlib import Path

from reactivex import operators as ops

from rx_client import Completed, ConnectOptions, FileClient, Progress, Retrying, Started, TotalProgress
from rx_client.operators import retry_backoff
from server import serve
from shared.errors import ConnectionFailed, ConnectionLost
from shared.protocol.wire import FileInfo
from tests.transfers.helpers import Recorder

LOST = ConnectionLost("lost")


def test_the_keywords_may_be_left_out() -> None:
    events = [Started("id", 9, 0), Progress(1, 9), Retrying(1, 0.5, LOST)]
    assert [event.name for event in events] == ["", "", ""]
    assert Completed(FileInfo(name="a", size=9)).name == "a"


def test_patterns_and_representations_are_those_of_the_positional_arguments() -> None:
    assert Progress.__match_args__ == ("transferred", "total")
    assert repr(Progress(1, 9)) == "Progress(transferred=1, total=9)"
    assert repr(Progress(1, None, name="a")) == "Progress(transferred=1, total=None, name='a')"
    total = TotalProgress(1, 9, moved=1, seconds_left=0.5)
    assert repr(total) == "TotalProgress(transferred=1, total=9, seconds_left=0.5, moved=1)"
    assert pickle.loads(pickle.dumps(total)) == total


def test_events_of_different_files_differ() -> None:
    assert Progress(1, 9, name="a") != Progress(1, 9, name="b")


async def test_every_event_names_its_file(tmp_path: Path) -> None:
    async with serve() as server, FileClient.connect(server.uri) as files:
        up = await files.upload_from("there/a", bytes(300_000)).pipe(ops.to_list())
        down = await files.download_to("there/a", tmp_path / "here").pipe(ops.to_list())
    for events in (up, down):
        assert {type(event) for event in events} == {Started, Progress, Completed}
        assert {event.name for event in events} == {"there/a"}


async def test_a_retry_before_the_first_event_names_its_file_too() -> None:
    options = ConnectOptions(reconnect_timeout=0.2, reconnect_cap=0.1)
    async with serve() as server, FileClient.connect(server.uri, options=options) as files:
        await server.close()
        upload, heard = files.upload_from("a", b"content").pipe(retry_backoff(1, base=0.01)), Recorder()
        upload.subscribe(heard)
        await heard.ended()
    assert [(type(event), event.name) for event in heard.items] == [(Retrying, "a")]
    assert isinstance(heard.error, ConnectionFailed)
