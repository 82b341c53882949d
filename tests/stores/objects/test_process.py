"""Server processes on one bucket: one is killed in the middle of an upload, and the other one goes on."""

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager

import pytest
from reactivex import operators as ops

from rx_client import FileClient, Progress, Started
from rx_client.operators import retry_backoff
from tests.stores.support import digest_of
from tests.transfers.helpers import QUICK, content

from .service import BUCKET, CREDENTIALS

PART = 8 * 1024 * 1024


@asynccontextmanager
async def process(endpoint: str, prefix: str):
    """A server process, and its URI; it is stopped in order at the end, if it still runs."""
    command = ("-m", "server", "--port", "0", "--store", f"s3://{BUCKET}/{prefix}", "--s3-endpoint", endpoint)
    server = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE, env={**os.environ, **CREDENTIALS}
    )
    assert server.stdout is not None
    try:
        line = (await server.stdout.readline()).decode()
        assert line.startswith("listening on "), line
        yield server, line.split()[-1]
    finally:
        if server.returncode is None:
            server.terminate()
        await server.wait()


@pytest.mark.objects_long
async def test_an_upload_goes_on_when_its_server_is_killed(endpoint: str, prefix: str) -> None:
    data = content(3 * PART)
    async with process(endpoint, prefix) as (first, uri), process(endpoint, prefix) as (second, other_uri):
        async with FileClient.connect([uri, other_uri], options=QUICK) as files:
            is_killed = False

            def kill(event: object) -> None:
                nonlocal is_killed
                if isinstance(event, Progress) and not is_killed:
                    is_killed = True
                    first.send_signal(signal.SIGKILL)

            upload = files.upload_from("n", data, upload_id="u").pipe(retry_backoff(attempts=8))
            events = await upload.pipe(ops.do_action(kill), ops.to_list())
            starts = [event.resumed_from for event in events if isinstance(event, Started)]
            assert starts[0] == 0
            assert starts[-1] >= PART
            assert await files.download("n") == data
            assert (await files.stat("n")).digest == digest_of(data)
        second.terminate()
        assert await second.wait() == 0
