"""Object stores on this machine: SeaweedFS, which all processes of a test run share, and moto as a second opinion."""

import asyncio
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

BUCKET: Final = "rxfiles-tests"
CREDENTIALS: Final = {
    "AWS_ACCESS_KEY_ID": "any",
    "AWS_SECRET_ACCESS_KEY": "any",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}

WITH_MOTO: Final = "OBJECT_STORE_TESTS_WITH_MOTO"
"""An environment variable: whether the tests use moto."""

_START_SECONDS: Final = 40.0


def new_prefix() -> str:
    """A prefix of its own for a test."""
    return f"{uuid4().hex}/"


@contextmanager
def shared_service(folder: Path) -> Iterator[str]:
    """A service for all processes that give the same folder: the first one starts it, the last one stops it."""
    start = start_moto if os.environ.get(WITH_MOTO) else start_seaweedfs
    folder.mkdir(exist_ok=True)
    with _locked(folder) as record:
        if not record:
            record.update(zip(("pid", "endpoint"), start(folder / "data"), strict=True))
        record["users"] = record.get("users", 0) + 1
        endpoint = str(record["endpoint"])
    try:
        yield endpoint
    finally:
        with _locked(folder) as record:
            record["users"] -= 1
            if not record["users"]:
                stop(record["pid"], signal.SIGKILL)  # nothing of it is kept
                shutil.rmtree(folder / "data", ignore_errors=True)
                record.clear()


def start_seaweedfs(folder: Path) -> tuple[int, str]:
    """Starts it with an empty folder, and makes the bucket; returns its process and endpoint."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    master, volume, filer, s3 = _free_ports(4)
    command = [
        *(str(Path(sys.executable).with_name("weed")), "-logtostderr=true", "server", "-s3", f"-dir={folder}"),
        *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-volume.preStopSeconds=0"),
        *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=1024", "-volume.max=40"),
    ]
    return _started(command, folder, f"http://127.0.0.1:{s3}")


def start_moto(folder: Path) -> tuple[int, str]:
    """Starts moto, and makes the bucket; returns its process and endpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    (port,) = _free_ports(1)
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    return _started(command, folder, f"http://127.0.0.1:{port}")


def stop(pid: int, number: int = signal.SIGTERM) -> None:
    """Ends a service that was started here, with all of its processes."""
    deadline = time.monotonic() + 10
    with suppress(ProcessLookupError):
        os.killpg(pid, number)
        while time.monotonic() < deadline:
            with suppress(ChildProcessError):  # another process may have started it
                os.waitpid(pid, os.WNOHANG)
            os.killpg(pid, 0)
            time.sleep(0.05)
        os.killpg(pid, signal.SIGKILL)


def _started(command: list[str], folder: Path, endpoint: str) -> tuple[int, str]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder, start_new_session=True
        )
    try:
        _wait_until_ready(process, endpoint, folder / "log")
    except BaseException:
        stop(process.pid, signal.SIGKILL)
        raise
    process.returncode = 0  # it may outlive this process: no warning, and `stop` waits for it
    return process.pid, endpoint


def _wait_until_ready(process: "subprocess.Popen[bytes]", endpoint: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        assert process.poll() is None, f"the object store has ended: {log.read_text()[-2000:]}"
        try:
            with urllib.request.urlopen(endpoint, timeout=5):
                pass
        except urllib.error.HTTPError:
            pass  # it answers
        except OSError:
            assert time.monotonic() < deadline, "the object store doesn't answer"
            time.sleep(0.1)
            continue
        try:
            asyncio.run(make_bucket(endpoint))
        except Exception:
            assert time.monotonic() < deadline, "no bucket can be made"
            time.sleep(0.2)
        else:
            return


async def make_bucket(endpoint: str) -> None:
    """Makes the bucket, and writes to it: some services answer before they can."""
    async with client(endpoint) as s3:
        try:
            await s3.create_bucket(Bucket=BUCKET)
        except s3.exceptions.BucketAlreadyExists:
            pass
        await s3.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
        await s3.delete_object(Bucket=BUCKET, Key="ready")


def client(endpoint: str):
    """Another S3 client."""
    os.environ.update(CREDENTIALS)
    config = AioConfig(s3={"addressing_style": "path"}, retries={"total_max_attempts": 3})
    return get_session().create_client("s3", endpoint_url=endpoint, config=config)


@contextmanager
def _locked(folder: Path) -> Iterator[dict]:
    path = folder / "service.json"
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        record = json.loads(file.read() or "{}")
        try:
            yield record
        finally:
            file.seek(0)
            file.truncate()
            file.write(json.dumps(record))
            file.flush()


def _free_ports(count: int) -> list[int]:
    """Ports that are free, and so are those 10,000 above, where SeaweedFS has its other protocol."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            port = port if port < 55_000 else port - 20_000
            try:
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            if port not in found:
                found.append(port)
    return found


def scratch() -> Path:
    """A folder for a service of one's own."""
    return Path(tempfile.mkdtemp(prefix="objects-"))
