"""The process of `python -m server`: its arguments, its signals, its exit status."""

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from reactivex import operators as ops

from rx_client import ConnectOptions, FileClient
from shared import ConnectionFailed, Forbidden
from tests.conftest import Mount
from tests.support import PATIENCE, REQUEST_RESPONSE, name_item, raw_peer, request, route_item


@asynccontextmanager
async def server_process(*arguments: str) -> AsyncGenerator[tuple[asyncio.subprocess.Process, str], None]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "server", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            line = (await process.stdout.readline()).decode()
        yield process, line
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    async with asyncio.timeout(PATIENCE):
        _, stderr = await process.communicate()
    return process.returncode, stderr.decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_serves_until_a_signal_and_exits_0_with_clients_connected(number: signal.Signals) -> None:
    async with server_process("--port", "0") as (process, line):
        assert line.startswith("listening on tcp://127.0.0.1:")
        options = ConnectOptions(reconnect_timeout=0.5)
        async with FileClient.connect(line.split()[-1], options=options) as files:
            await files.upload("a", b"x" * 5_000_000)
            assert await files.list_files().pipe(ops.to_list()) == ["a"]
            process.send_signal(number)
            assert await ended(process) == (0, "")
            with pytest.raises(ConnectionFailed):
                await files.download("a")


async def test_it_exits_in_time_with_a_client_that_stopped_reading() -> None:
    async with server_process("--port", "0") as (process, line):
        uri = line.split()[-1]
        async with FileClient.connect(uri) as files:
            await files.upload("large", bytes(100_000_000))
            async with raw_peer(uri) as peer:
                await peer.send(request(1, REQUEST_RESPONSE, route_item("file.download") + name_item(b"large")))
                await peer.receive()
                process.send_signal(signal.SIGTERM)
                assert await ended(process) == (0, "")


async def test_a_port_in_use_is_reported_in_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with server_process("--port", str(port)) as (process, line):
            assert line == ""
            code, stderr = await ended(process)
    assert code == 1
    assert stderr.startswith("can't serve: ")
    assert f"can't listen on 127.0.0.1:{port}: address already in use" in stderr
    assert stderr.count("\n") == 1


async def test_a_metrics_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with server_process("--port", "0", "--metrics-port", str(port)) as (process, line):
            assert line == ""
            code, stderr = await ended(process)
    assert code == 1
    assert stderr.startswith(f"can't serve: --metrics-port {port} of 127.0.0.1: ")
    assert stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["--port", "x"], ["--port", "70000"], ["--nope"], ["--read-only"], ["--auth-file", "missing"]]
)
async def test_bad_arguments_exit_2(arguments: list[str]) -> None:
    async with server_process(*arguments) as (process, _):
        code, stderr = await ended(process)
    assert code == 2
    assert stderr.endswith("; --help shows the usage\n")
    assert stderr.count("\n") == 1


async def test_a_folder_that_is_only_read(mount: Mount) -> None:
    folder = mount("size=1m")
    (folder / "a").write_bytes(b"content")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    async with server_process("--port", "0", "--store", str(folder)) as (process, _):
        code, stderr = await ended(process)
        assert code == 1
        assert stderr.startswith("can't serve: ")
        assert stderr.count("\n") == 1
    async with server_process("--port", "0", "--store", str(folder), "--read-only") as (process, line):
        async with FileClient.connect(line.split()[-1]) as files:
            assert await files.list_files().pipe(ops.to_list()) == ["a"]
            assert await files.download("a") == b"content"
            for refused in (files.upload("a", b""), files.upload_from("b", bytes(1_000_000)), files.delete("a")):
                with pytest.raises(Forbidden):
                    await refused
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == (0, "")


async def test_the_address_can_be_chosen() -> None:
    async with server_process("--host", "127.0.0.2", "--port", "0") as (process, line):
        assert line.startswith("listening on tcp://127.0.0.2:")
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == (0, "")
