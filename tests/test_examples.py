"""The example pipelines, run with the arguments of a shell: against servers that are right, wrong, or missing."""

import argparse
import asyncio
import gzip
import io
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
import reactivex
from reactivex import Observable
from reactivex import operators as ops

from rx_client import Chunk, FileClient, Progress, Started, TransferEvent
from rx_client.connection.connector import Connector
from rx_client.examples import etl, parallel, pipeline, racing, resumable, slow_consumer
from rx_client.examples.__main__ import EXAMPLES, main
from rx_client.examples.context import Context, WrongResult
from rx_client.examples.own_tests import *  # noqa: F403 - they run here as they do in an application
from rx_client.examples.relay import relay, slow_link
from rx_client.operators import _map_async, _to_async_iter, retry_backoff
from rx_client.requests.response import ResponseRequest
from rx_client.rx.demand import Hold, ItemCredit
from rx_client.transfers.upload import UploadTransfer
from server import ChatData, FileServer, MemoryStore, serve
from shared import ServerError, StorageFull
from tests.support import eventually, raw_server

ROOT = Path(__file__).parents[1]
STDLIB = Path(sysconfig.get_path("stdlib"))
LARGEST_SOURCE = STDLIB / "pydoc_data" / "topics.py"


class Result(NamedTuple):
    """The result of a process."""

    status: int | None
    stdout: str
    stderr: str


@asynccontextmanager
async def a_process(*arguments: str, **options: Any) -> AsyncGenerator[asyncio.subprocess.Process, None]:
    pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE} | options
    process = await asyncio.create_subprocess_exec(sys.executable, "-W", "error", "-m", *arguments, cwd=ROOT, **pipes)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def run_here(*arguments: str) -> Result:
    """What `python -m rx_client.examples` does, without the start of an interpreter."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            status = main(list(arguments))
        except SystemExit as exit_:  # argparse's
            status = exit_.code
    assert status is None or isinstance(status, int)
    return Result(status or 0, stdout.getvalue(), stderr.getvalue())


async def run_examples(*arguments: str) -> Result:
    async with asyncio.timeout(40):
        return await asyncio.to_thread(run_here, *arguments)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Some twenty real files, one of them empty, in a folder whose name isn't ASCII and another."""
    folder = tmp_path / "some files"
    shutil.copytree(STDLIB / "json", folder / "Grüße", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(STDLIB / "email", folder / "email", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "empty").touch()
    return folder


def brief(name: str, folder: Path) -> list[str]:
    """Options that give an example less work than its defaults."""
    if name in ("parallel", "mirror_tree"):
        return ["--folder", str(folder)]
    if name == "dashboard":
        return ["--limit", "3000000"]
    if name in ("resumable", "slow_consumer", "pipeline"):
        return ["--file", str(LARGEST_SOURCE)]
    return []


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# Right results


async def test_the_list_has_all_examples() -> None:
    async with a_process("rx_client.examples") as process, asyncio.timeout(40):
        stdout, stderr = (output.decode() for output in await process.communicate())
    assert (process.returncode, stderr) == (0, "")
    lines = stdout.splitlines()
    for name, example in EXAMPLES.items():
        assert example.summary
        assert [line for line in lines if line.split()[:1] == [name] and line.endswith(example.summary)]


@pytest.mark.parametrize("name", EXAMPLES)
async def test_the_help_of_each_is_its_docstring(name: str) -> None:
    status, stdout, stderr = await run_examples(name, "--help")
    assert (status, stderr) == (0, "")
    assert EXAMPLES[name].about in stdout
    assert "--uri" in stdout


async def test_files() -> None:
    status, stdout, stderr = await run_examples("files")
    assert (status, stderr) == (0, "")
    printed = [re.sub(r"[\d,]+ bytes", "N bytes", line) for line in stdout.splitlines()]
    assert len(printed) == 4
    name = printed[0].split("'")[1]
    assert printed == [
        f"user 1 uploaded '{name}': N bytes",
        "user 2 listed 1 file(s)",
        f"user 2 downloaded '{name}': N bytes",
        f"the download has the bytes of {STDLIB / name}",
    ]


async def test_chat() -> None:
    status, stdout, stderr = await run_examples("chat")
    assert (status, stderr) == (0, "")
    lines = stdout.splitlines()
    assert lines[0] == "server: welcome"
    assert lines[-1] == "7 events of one stream, over one connection"
    shared = [line.removeprefix("alice: look at ") for line in lines if line.startswith("alice: ")]
    received = re.findall(r"^\([\d,]+ bytes of '(\S+)'\)$", stdout, re.MULTILINE)
    assert len(shared) == 3
    assert sorted(received) == sorted(shared)


async def test_parallel(folder: Path) -> None:
    status, stdout, stderr = await run_examples("parallel", "--folder", str(folder))
    assert (status, stderr) == (0, "")
    files = files_of(folder)
    done = f"{len(files)} files, {sum(path.stat().st_size for path in files):,} bytes"
    lines = stdout.splitlines()
    assert lines[0] == f"{len(files)} files of {folder}, 4 at a time"
    assert f"uploaded {len(files)}/{done}" in lines
    assert f"downloaded and compared {len(files)}/{done}" in lines
    assert lines[-1] == f"every byte is as on the disk: {done}"
    assert len(lines) <= 2 + 2 * 6, "progress is sparse in a log"


async def test_etl() -> None:
    status, stdout, stderr = await run_examples("etl")
    assert (status, stderr) == (0, "")
    (uploaded,) = re.findall(r"^uploaded (\d+) CSV files to (etl-\w+)/$", stdout, re.MULTILINE)
    downloaded = re.findall(rf"^downloaded {uploaded[1]}/(\S+)\.csv: ", stdout, re.MULTILINE)
    assert len(downloaded) == int(uploaded[0])
    (json_row,) = [line.split() for line in stdout.splitlines() if line.startswith("json ")]
    sources = list((STDLIB / "json").glob("**/*.py"))
    contents = [path.read_bytes() for path in sources]
    expected = len(sources), sum(content.count(b"\n") for content in contents), sum(map(len, contents))
    assert tuple(int(number.replace(",", "")) for number in json_row[1:]) == expected
    assert re.fullmatch(r"a direct count of [\d,]+ sources gives the same report", stdout.splitlines()[-2])
    assert stdout.splitlines()[-1] == f"deleted all {len(downloaded) + 1} files again"


async def test_racing() -> None:
    status, stdout, stderr = await run_examples("racing")
    assert (status, stderr) == (0, "")
    assert stdout.splitlines()[-3:] == [
        "the first server won",
        "the first server: 2 completed (one is the upload), 0 cancelled, 0 under way",
        "the second server: 1 completed (one is the upload), 1 cancelled, 0 under way",
    ]


async def test_resumable() -> None:
    status, stdout, stderr = await run_examples("resumable")
    assert (status, stderr) == (0, "")
    (size,) = re.findall(r"^'.*': ([\d,]+) bytes, \d+ chunks may be on their way at a time$", stdout, re.MULTILINE)
    assert len(re.findall(r"^kill -9 \d+$", stdout, re.MULTILINE)) == 2
    assert stdout.count("\nthe server ended with status -9; it is started again\n") == 2
    for verb in ("upload", "download"):
        printed = "\n".join(line for line in stdout.splitlines() if line.startswith(f"{verb}: "))
        assert re.search(rf"^{verb}: the connection to the server was lost; retry 1 in ", printed, re.MULTILINE)
        started = re.findall(rf"^{verb}: started at ([\d,]+)$", printed, re.MULTILINE)
        assert len(started) == 2
        assert started[0] == "0"
        assert 2 * number(started[1]) >= number(size)
        assert f"{verb}: {size} of {size} bytes are durable" in printed
        assert re.search(rf"^{verb}: completed, {size} bytes, xxh3-128:[0-9a-f]{{32}}$", printed, re.MULTILINE)
        assert re.search(
            rf"^{verb}: [\d,]+ bytes more than the file has passed, of [\d,]+ at most$", printed, re.MULTILINE
        )
    assert stdout.splitlines()[-1].startswith("the same digest at both ends, and of what came back: xxh3-128:")


async def test_dashboard() -> None:
    status, stdout, stderr = await run_examples("dashboard", "--limit", "3000000")
    assert (status, stderr) == (0, "")
    first, *others, last = stdout.splitlines()
    assert (offset := re.fullmatch(r"\S+: completed, went on at ([\d,]+)", first))
    assert number(offset[1]) > 0
    assert [line.rpartition(": ")[2] for line in others] == ["completed", "completed"]
    assert last.endswith(": cancelled")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
async def test_dashboard_takes_keys_on_a_terminal() -> None:
    import pty
    import termios

    terminal, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    shown = bytearray()

    def sees(text: str) -> bool:
        return text.encode() in shown

    arguments = ("rx_client.examples", "dashboard", "--limit", "20000")
    async with a_process(*arguments, stdin=theirs, stdout=theirs, env={**os.environ, "TERM": "xterm"}) as process:
        asyncio.get_running_loop().add_reader(terminal, lambda: shown.extend(os.read(terminal, 65536)))
        try:
            await eventually(lambda: sees("running"))
            os.write(terminal, b"4c1p")
            await eventually(lambda: sees("paused") and sees("cancelled"))
            os.write(terminal, b"pq")
            async with asyncio.timeout(20):
                assert await process.wait() == 0
            await eventually(lambda: shown.decode().count(": cancelled") == 4)
            assert termios.tcgetattr(theirs) == before, "the terminal is as it was"
        finally:
            asyncio.get_running_loop().remove_reader(terminal)
            os.close(terminal)
            os.close(theirs)


async def test_ui_thread(tmp_path: Path) -> None:
    """Without a window, as where there is no display."""
    path = tmp_path / "upload.bin"
    path.write_bytes(bytes(8_000_000))
    example = ("rx_client.examples.ui_thread", "--no-window")
    async with serve() as server:
        async with a_process(*example, server.uri, str(path)) as process:
            stdout, stderr = await process.communicate()
        assert (process.returncode, stderr) == (0, b"")
        assert server.data.files == {"upload.bin": path.read_bytes()}
        lines = stdout.decode().splitlines()
        assert lines[0] == "started"
        assert "paused" in lines
        assert lines[-1] == "upload.bin is stored: 8,000,000 bytes"
        uri = server.uri
    async with a_process(*example, uri, str(path)) as process:
        stdout, stderr = await process.communicate()
    assert process.returncode == 1
    assert stderr.decode().startswith(f"no connection to {uri}")


async def test_slow_consumer() -> None:
    status, stdout, stderr = await run_examples("slow_consumer")
    assert (status, stderr) == (0, "")
    first, *steps, last = stdout.splitlines()
    (size,) = re.findall(r" ([\d,]+) bytes, 5 ms for each chunk of 262,144$", first)
    assert 3 <= len(steps) <= 11
    for step in steps:
        assert re.fullmatch(rf"consumed [\d,]+ of {size} bytes, the server is \d+\.\d chunks ahead", step)
    assert steps[-1].startswith(f"consumed {size} of {size} bytes")
    assert re.fullmatch(
        r"the server was never more than \d+\.\d chunks ahead of the consumer, of 11 at most "
        r"\(a window of 8, and 3 that are read ahead\)",
        last,
    )


async def test_pipeline() -> None:
    status, stdout, stderr = await run_examples("pipeline")
    assert (status, stderr) == (0, "")
    (size,), (stored,) = (
        re.findall(rf"^the server has '.*{end}': ([\d,]+) bytes$", stdout, re.MULTILINE) for end in ("[^z]", "gz")
    )
    assert 0 < number(stored) < number(size)
    assert f"\ncompressed and stored {stored} bytes\n" in stdout
    assert re.search(rf"^it gunzips to the original: {size} bytes, xxh3-128:", stdout, re.MULTILINE)
    last = r"never more than (\d+) chunks on their way down, [\d,]+ bytes on their way up"
    assert (found := re.fullmatch(last, stdout.splitlines()[-1]))
    assert 1 <= int(found[1]) <= 8


def number(text: str) -> int:
    return int(text.replace(",", ""))


async def test_each_against_a_server_with_files_of_other_clients(folder: Path) -> None:
    async with a_process("server", "--port", "0") as server:
        assert server.stdout is not None
        uri = (await server.stdout.readline()).decode().split()[-1]
        async with FileClient.connect(uri) as files:
            await files.upload("theirs.csv", b"not,what\nwe,expect")
            await files.upload("etl-theirs/report.csv", b"name,lines,bytes\nx,1,1")
            for name in EXAMPLES:
                assert (await run_examples(name, "--uri", uri, *brief(name, folder)))[::2] == (0, ""), name
            listed = await files.list_files().pipe(ops.to_list())
        assert {"theirs.csv", "some files/empty", "pydoc_data/topics.py"} <= set(listed), (
            "the examples used that server"
        )
        assert [
            name for name in listed if re.match("(mirror|dashboard|etl|resumable|slow-consumer|pipeline)-", name)
        ] == ["etl-theirs/report.csv"], "the examples deleted their own files, and no others"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
async def test_progress_is_one_line_on_a_terminal(folder: Path) -> None:
    import pty

    terminal, theirs = pty.openpty()
    async with a_process("rx_client.examples", "parallel", "--folder", str(folder), stdout=theirs) as process:
        os.close(theirs)
        async with asyncio.timeout(40):
            shown = await asyncio.to_thread(read_to_the_end, terminal)
            assert await process.wait() == 0
    count = len(files_of(folder))
    assert shown.count("\r\n") == 3, "the first line, progress, the result"
    for number in range(1, count + 1):
        assert f"\ruploaded {number}/{count} files, " in shown


def read_to_the_end(terminal: int) -> str:
    shown = bytearray()
    with open(terminal, "rb", buffering=0) as stream:
        try:
            while some := stream.read(65536):
                shown += some
        except OSError:
            pass  # Linux reports the closed other end as an error
    return shown.decode()


# Wrong results


class Altered(dict[str, bytes]):
    """Files whose bytes differ from those that were stored."""

    def __getitem__(self, name: str) -> bytes:
        return super().__getitem__(name).replace(b"1", b"2")


class AlteredSources(Altered):
    """As `Altered`, except for compressed files."""

    def __getitem__(self, name: str) -> bytes:
        return dict.__getitem__(self, name) if name.endswith(".gz") else super().__getitem__(name)


class Truncated(dict[str, bytes]):
    """Files without the end of what was stored."""

    def __getitem__(self, name: str) -> bytes:
        return super().__getitem__(name)[:-7]


class Unlisted(dict[str, bytes]):
    """Files that can be downloaded, but aren't listed."""

    def __iter__(self) -> Any:
        return iter(())


@pytest.mark.parametrize(
    ("name", "files", "printed"),
    [
        ("files", Altered, "'pydoc_data/topics.py' came back with other bytes"),
        ("files", Unlisted, "'pydoc_data/topics.py' was uploaded, but isn't listed"),
        ("parallel", Altered, "came back with other bytes than"),
        ("parallel", Truncated, "came back with other bytes than"),
        ("mirror_tree", Altered, "came back with other bytes"),
        ("mirror_tree", Truncated, "came back with other bytes"),
        ("mirror_tree", Unlisted, "was uploaded, and hasn't come back"),
        ("dashboard", Unlisted, "are completed"),
        ("etl", Altered, "a direct count gives another report"),
        ("etl", Truncated, "came back as something that isn't our CSV"),
        ("etl", Unlisted, "a direct count gives another report"),
        ("racing", Truncated, "came back with other bytes"),
        ("resumable", Altered, "the server's digest is "),
        ("slow_consumer", Truncated, "what was consumed isn't what"),
        ("pipeline", Truncated, "ends too early"),
        ("pipeline", AlteredSources, "doesn't gunzip to what"),
    ],
)
async def test_a_wrong_result_is_a_failure(
    name: str, files: Callable[[], dict[str, bytes]], printed: str, folder: Path
) -> None:
    async with serve(data=ChatData(files())) as server:
        status, _, stderr = await run_examples(name, "--uri", server.uri, *brief(name, folder))
    assert status == 1
    assert stderr.startswith(f"{name}: wrong result: ")
    assert printed in stderr
    assert "Traceback" not in stderr


async def test_mirror_tree(folder: Path) -> None:
    status, stdout, stderr = await run_examples("mirror_tree", "--folder", str(folder), "--limit", "10000000")
    assert (status, stderr) == (0, "")
    lines, paths = stdout.splitlines(), files_of(folder)
    nbytes = sum(path.stat().st_size for path in paths)
    for verb in ("uploaded", "downloaded"):
        shown = [line for line in lines if line.startswith(verb)]
        assert re.match(rf"{verb} {len(paths)} files, {nbytes:,} of {nbytes:,} bytes", shown[-1])
    assert lines[-1] == f"every byte is as on the disk, and a second run skips all {len(paths)} files"


async def test_live_mirror() -> None:
    status, stdout, stderr = await run_examples("live_mirror")
    assert (status, stderr) == (0, "")
    assert "ready: 2 files are the same, 1 others were removed" in stdout.splitlines()
    assert stdout.splitlines()[-1] == "the folder was like the server's at every rest"


async def test_racing_fails_if_the_second_server_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResponseRequest, "cancel", lambda self: None)
    monkeypatch.setattr(racing, "_CANCEL_SECONDS", 0.2)
    async with serve() as server:
        with pytest.raises(WrongResult, match="went on with a download that was cancelled"):
            await racing.run(context_for(server.uri))


# Wrong use, and missing servers


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["nosuch"], "invalid choice: 'nosuch'"),
        (["files", "--uri", "http://127.0.0.1:1"], "'http://127.0.0.1:1' is not of the form tcp://HOST[:PORT]"),
        (["files", "--uri", "tcp://127.0.0.1:65536"], "has no valid port"),
        (["files", "--folder", "."], "unrecognized arguments: --folder"),
        (["parallel", "--folder", "no such folder"], "'no such folder' is not a folder"),
        (["mirror_tree", "--limit", "0"], "'0' is not a number of bytes a second"),
        (["pipeline", "--file", "no such file"], "'no such file' is not a file"),
        (["resumable", "--file", str(STDLIB / "argparse.py")], "has less than 524,288 bytes"),
    ],
)
async def test_wrong_use_is_reported(arguments: list[str], printed: str) -> None:
    status, stdout, stderr = await run_examples(*arguments)
    assert (status, stdout) == (2, "")
    assert printed in stderr
    assert "Traceback" not in stderr


async def test_a_folder_without_files_is_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    status, _, stderr = await run_examples("parallel", "--folder", str(tmp_path))
    assert status == 2
    assert f"there are no files below '{tmp_path}'" in stderr


@pytest.mark.parametrize("name", EXAMPLES)
async def test_no_server_at_the_address(name: str) -> None:
    listener = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    uri = f"tcp://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    listener.close()
    status, _, stderr = await run_examples(name, "--uri", uri)
    assert status == 1
    assert len(stderr.splitlines()) == 1
    assert stderr.startswith(f"{name}: failed: no connection to {uri}")


async def test_a_server_that_closes_the_connection() -> None:
    async def hang_up(_: object) -> None:
        """Does nothing; the end of this function closes the connection."""

    async with raw_server(hang_up) as uri:
        status, _, stderr = await run_examples("files", "--uri", uri)
    assert status == 1
    assert len(stderr.splitlines()) == 1
    assert stderr.startswith("files: failed: ")


async def test_a_server_that_refuses_the_upload() -> None:
    class Full(dict[str, bytes]):
        def __setitem__(self, name: str, content: bytes) -> None:
            raise StorageFull("no room")

    async with serve(data=ChatData(Full())) as server:
        assert await run_examples("files", "--uri", server.uri) == (1, "", "files: failed: no room\n")


# What the docstrings promise


def context_for(uri: str, server: FileServer | None = None, **options: object) -> Context:
    return Context(uri, server, argparse.Namespace(**options), io.StringIO())


async def test_parallel_retries_each_file(folder: Path) -> None:
    failed: list[tuple[str, str]] = []

    class Flaky(dict[str, bytes]):
        """Fails the first time for each file, up and down."""

        def once(self, *what: str) -> None:
            if what not in failed:
                failed.append(what)
                raise ServerError("not just now")

        def __setitem__(self, name: str, content: bytes) -> None:
            self.once("up", name)
            super().__setitem__(name, content)

        def __getitem__(self, name: str) -> bytes:
            self.once("down", name)
            return super().__getitem__(name)

    async with serve(data=ChatData(Flaky())) as server:
        await parallel.run(context_for(server.uri, folder=folder))
        assert server.work.failed == len(failed) == 2 * len(files_of(folder))


async def test_parallel_has_four_under_way_at_most(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    under_way, most = 0, {"upload": 0, "download": 0}

    def counted(verb: str) -> Callable[..., Observable[Any]]:
        method: Callable[..., Observable[Any]] = getattr(FileClient, verb)

        def counting(self: FileClient, *arguments: Any) -> Observable[Any]:
            def start(_: object) -> Observable[Any]:
                nonlocal under_way
                under_way += 1
                most[verb] = max(most[verb], under_way)
                return method(self, *arguments)

            def end() -> None:
                nonlocal under_way
                under_way -= 1

            return reactivex.defer(start).pipe(ops.finally_action(end))

        return counting

    for verb in most:
        monkeypatch.setattr(FileClient, verb, counted(verb))
    async with serve() as server:
        await parallel.run(context_for(server.uri, folder=folder))
    assert under_way == 0
    assert most["upload"] <= 4, "reading the file is a part of each, so it may be fewer"
    assert most["download"] == 4


async def test_etl_uploads_its_report_and_deletes_what_it_uploaded() -> None:
    stored: dict[str, bytes] = {}

    class Remembering(dict[str, bytes]):
        def __setitem__(self, name: str, content: bytes) -> None:
            stored[name] = content
            super().__setitem__(name, content)

    files = Remembering({"theirs.csv": b"theirs"})
    async with serve(data=ChatData(files)) as server:
        await etl.run(context_for(server.uri))
    (report,) = [content for name, content in stored.items() if name.endswith("/report.txt")]
    assert report.startswith(b"package")
    assert report.count(b"\n") == len(stored)
    assert files == {"theirs.csv": b"theirs"}


class Forgetful(MemoryStore):
    """Aborts an upload whose connection is lost."""

    async def begin(self, *arguments: Any, **options: Any) -> Any:
        upload = await super().begin(*arguments, **options)
        upload.suspend = upload.abort
        return upload


async def test_resumable_fails_if_an_upload_starts_over() -> None:
    async with serve(data=ChatData(Forgetful({}))) as server:
        with pytest.raises(WrongResult, match="the upload started over"):
            await resumable.run(context_for(server.uri, file=LARGEST_SOURCE))


async def test_resumable_fails_if_bytes_are_sent_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here each attempt also uploads everything under another name, which no event of the transfer shows."""
    attempt = UploadTransfer.attempt
    sides: dict[str, Any] = {"size": None, "overwrite": True, "algorithm": None}

    async def attempt_twice(
        self: UploadTransfer,
        connector: Connector,
        emit: Callable[[TransferEvent], None],
        tasks: set[asyncio.Task[None]],
    ) -> None:
        aside = UploadTransfer("aside", self.source, chunk_bytes=256 * 1024, window=16, upload_id=uuid4().hex, **sides)
        await attempt(aside, connector, lambda _: None, tasks)
        await attempt(self, connector, emit, tasks)

    monkeypatch.setattr(UploadTransfer, "attempt", attempt_twice)
    async with serve() as server:
        with pytest.raises(WrongResult, match=r"the upload of [\d,]+ bytes took [\d,]+ bytes, more than"):
            await resumable.run(context_for(server.uri, file=LARGEST_SOURCE))


@pytest.fixture
def credit_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `limit_rate` (TRAPS 9), a chunk's credit goes back when it arrives, even if the chunk is still in use."""
    monkeypatch.setattr(Chunk, "retain", lambda self: None)
    for operator in (_map_async, _to_async_iter):
        monkeypatch.setattr(operator, "hold", lambda item: Hold(ItemCredit(None)))


@pytest.mark.usefixtures("credit_at_once")
@pytest.mark.parametrize("is_own", [True, False])
async def test_slow_consumer_fails_if_the_server_is_too_far_ahead(is_own: bool) -> None:
    async with serve() as server:
        context = context_for(server.uri, file=None, server=server if is_own else None)
        with pytest.raises(WrongResult, match="bytes ahead of the consumer"):
            await slow_consumer.run(context)


@pytest.mark.usefixtures("credit_at_once")
async def test_pipeline_fails_if_chunks_accumulate() -> None:
    async with serve() as server:
        with pytest.raises(WrongResult, match="chunks were here at a time; the window is 8"):
            await pipeline.run(context_for(server.uri, file=None))


async def test_pipeline_resumes_after_a_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """As its docstring says: it compresses again, and skips what the server has."""
    content = LARGEST_SOURCE.read_bytes()
    async with serve() as server, relay(server.uri) as link, FileClient.connect(link.uri) as files:
        await files.upload("source", content)
        offsets: list[int] = []

        def cut_once(event: TransferEvent) -> None:
            if isinstance(event, Started):
                offsets.append(event.resumed_from)
            elif isinstance(event, Progress) and len(offsets) == 1:
                link.cut()

        source = pipeline.Gzipped(files, "source")
        # With small chunks, because the compressed file is smaller than one default chunk.
        uploading = files.upload_from("source.gz", source, chunk_size=4096, window=4)
        await uploading.pipe(retry_backoff(base=0.01), ops.do_action(cut_once))
        assert len(offsets) == 2
        assert 0 < offsets[1] < len(server.data.files["source.gz"])
        assert gzip.decompress(server.data.files["source.gz"]) == content


async def test_a_slow_link_loses_nothing() -> None:
    content = (STDLIB / "argparse.py").read_bytes()
    async with serve() as server, slow_link(server.uri) as link, FileClient.connect(link.uri) as files:
        await files.upload("argparse.py", content)
        assert await files.download("argparse.py") == content
        assert server.connections == 1
        assert link.passed["up"] > len(content)
        assert link.passed["down"] > len(content)
