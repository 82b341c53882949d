"""`python -m server`: serves files until SIGINT or SIGTERM; SIGHUP reads the users and the certificates anew.

`rxfiles serve` is the same command.
"""

import argparse
import asyncio
import dataclasses
import errno
import gc
import ipaddress
import logging
import signal
import socket
import ssl
import sys
from contextlib import AsyncExitStack
from importlib.util import find_spec
from typing import Final, NoReturn

from shared.aio import run_blocking
from shared.files import disk
from shared.version import find_version

from .app import DEFAULT_HOST, DEFAULT_PORT, FileServer, serve
from .data import ChatData
from .heap import map_large_blocks
from .limits import Limits
from .logs import log_to_stderr
from .metrics import serve_metrics
from .stores.base import Store
from .stores.directory.store import DirectoryStore
from .tls import server_tls
from .users import Users

_log = logging.getLogger("server")

_PROG: Final = "python -m server"
_SWITCH_SECONDS: Final = 0.0001
_S3: Final = "s3://"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage, which would hide it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; --help shows the usage\n")


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=prog, description="Serves files over RSocket, until it is interrupted.")
    add = parser.add_argument
    add("--host", default=DEFAULT_HOST, help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=DEFAULT_PORT, help="TCP port; 0 picks a free one (default: %(default)s)")
    where = "folder to keep the files in, or s3://BUCKET/PREFIX (default: memory)"
    add("--store", metavar="PATH", help=where)
    add("--s3-endpoint", metavar="URL", help="the object store's URL, if it isn't AWS; with --store s3://…")
    links = "also serve the targets of links in --store that are inside it (default: links aren't served)"
    add("--follow-links", action="store_true", help=links)
    add("--read-only", action="store_true", help="write nothing to --store, not even a lock; it may be unwritable")
    day = 24 * 60 * 60.0
    expiry = "how long an unfinished upload is kept (default: a day)"
    add("--upload-expiry", metavar="SECONDS", type=float, default=day, help=expiry)
    users = "users that may connect: NAME:HASH[:PERMISSIONS] a line, see rxfiles users and python -m server.users"
    add("--auth-file", metavar="FILE", help=users)
    add("--insecure", action="store_true", help="allow other addresses than loopback ones without --auth-file")
    add("--tls-cert", metavar="FILE", help="certificate chain (PEM); with --tls-key")
    add("--tls-key", metavar="FILE", help="private key (PEM); with --tls-cert")
    add("--tls-client-ca", metavar="FILE", help="authorities whose certificates clients must show (PEM)")
    limits = "may be repeated; NAME is one of " + ", ".join(field.name for field in dataclasses.fields(Limits))
    add("--limit", metavar="NAME=NUMBER", action="append", default=[], help=limits)
    metrics = "answer Prometheus there, at /metrics of --metrics-host; with the extra rxfiles[metrics]"
    add("--metrics-port", metavar="PORT", type=int, help=metrics)
    metrics_host = "address for --metrics-port, which asks for no password (default: %(default)s)"
    add("--metrics-host", metavar="HOST", default=DEFAULT_HOST, help=metrics_host)
    levels = ["debug", "info", "warning", "error"]
    info = "info has a line for each connection and each transfer (default: %(default)s)"
    add("--log-level", default="warning", choices=levels, help=info)
    add("--log-json", action="store_true", help="log a JSON object a line")
    add("--version", action="version", version=f"rxfiles {find_version()}")
    return parser


def _parse(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The command-line arguments; exits with status 2 if they are wrong."""
    options = parser.parse_args(arguments)
    if not 0 <= options.port <= 65535:
        parser.error(f"--port must be 0 to 65535, not {options.port}")
    if options.metrics_port is not None and not 0 <= options.metrics_port <= 65535:
        parser.error(f"--metrics-port must be 0 to 65535, not {options.metrics_port}")
    if options.metrics_port is not None and find_spec("prometheus_client") is None:
        parser.error("--metrics-port needs the package prometheus-client: install rxfiles[metrics]")
    if not options.upload_expiry > 0:
        parser.error(f"--upload-expiry must be more than 0 seconds, not {options.upload_expiry}")
    for name in ("store", "auth_file", "tls_cert", "tls_key", "tls_client_ca"):
        if getattr(options, name) == "":
            parser.error(f"--{name.replace('_', '-')} is empty; leave it out, or give a path")
    if (options.tls_cert is None) != (options.tls_key is None) or (options.tls_client_ca and not options.tls_cert):
        parser.error("--tls-cert and --tls-key go together, and --tls-client-ca with them")
    if options.auth_file is None and not options.insecure and not _is_loopback(options.host):
        parser.error(f"{options.host} can be reached by others: give --auth-file, or --insecure to serve every peer")
    is_folder = options.store is not None and not options.store.startswith(_S3)
    if options.follow_links and not is_folder:
        parser.error("--follow-links goes with --store PATH")
    if options.read_only and not is_folder:
        parser.error("--read-only goes with --store PATH")
    if options.s3_endpoint is not None and (is_folder or options.store is None):
        parser.error("--s3-endpoint goes with --store s3://BUCKET/PREFIX")
    return options


def _secrets(options: argparse.Namespace) -> tuple[Users | None, ssl.SSLContext | None]:
    """The users and the TLS, from their files; raises OSError or ValueError, which name the file."""
    users = None if options.auth_file is None else Users.read(options.auth_file)
    tls = None if options.tls_cert is None else server_tls(options.tls_cert, options.tls_key, options.tls_client_ca)
    return users, tls


def _server(arguments: list[str] | None, prog: str = _PROG) -> tuple[FileServer, argparse.Namespace]:
    """The server for these command-line arguments; exits with status 2 if they are wrong."""
    parser = _parser(prog)
    options = _parse(parser, arguments)
    log_to_stderr(options.log_level.upper(), as_json=options.log_json)
    try:
        limits = _limits(options.limit)
        users, tls = _secrets(options)
    except (OSError, ValueError) as error:
        parser.error(_text(error))
    data = None if options.store is None else ChatData(_store(options, limits, parser))
    expiry = options.upload_expiry
    server = serve(
        options.host, options.port, data=data, upload_expiry_seconds=expiry, limits=limits, users=users, tls=tls
    )
    return server, options


def _store(options: argparse.Namespace, limits: Limits, parser: argparse.ArgumentParser) -> Store:
    """The store that `--store` names; exits with status 2 if it can't be one."""
    if not options.store.startswith(_S3):
        return DirectoryStore(
            options.store, limits.max_file_bytes, follow_links=options.follow_links, read_only=options.read_only
        )
    bucket, _, prefix = options.store.removeprefix(_S3).partition("/")
    if not bucket:
        parser.error("--store s3://BUCKET/PREFIX has no bucket")
    try:
        from .stores.objects import ObjectStore  # noqa: PLC0415 (it needs an extra)
    except ImportError:
        parser.error("--store s3://… needs the client of object stores: pip install 'rxfiles[s3]'")
    return ObjectStore(bucket, prefix, endpoint=options.s3_endpoint, max_file_bytes=limits.max_file_bytes)


def _limits(settings: list[str]) -> Limits:
    numbers: dict[str, float] = {}
    integers = {field.name for field in dataclasses.fields(Limits) if field.type is not float}
    for setting in settings:
        name, _, number = setting.partition("=")
        if name not in Limits.__slots__:
            raise ValueError(f"there is no limit {name!r}")
        try:
            numbers[name] = int(number) if name in integers else float(number)
        except ValueError:
            raise ValueError(f"--limit {name}={number} has no number") from None
    return dataclasses.replace(Limits(), **numbers)


def _text(error: OSError | ValueError) -> str:
    """The error's text, of a file with its name in front, and without a number."""
    if isinstance(error, ssl.SSLError) or not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def _failure(error: OSError, host: str) -> str:
    """Why the server can't begin, and what to do."""
    if isinstance(error, socket.gaierror):
        return f"--host {host}: {_text(error)}"
    if isinstance(error, BlockingIOError):
        return f"{_text(error)}; end that one, or give another --store"
    return _text(error) + ("; give another --port" if error.errno == errno.EADDRINUSE else "")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _renew(server: FileServer, options: argparse.Namespace) -> None:
    """Reads the users and the certificates anew; where one of the files is wrong, all stay as they are."""
    try:
        server.renew(*await run_blocking(None, _secrets, options))
    except (OSError, ValueError) as error:
        _log.error("users and certificates stay as they are: %s", error)
    else:
        _log.info("users and certificates were read anew, for new connections")


async def _serve(server: FileServer, options: argparse.Namespace) -> None:
    stop, hang_up = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if hasattr(signal, "SIGHUP"):
        loop.add_signal_handler(signal.SIGHUP, hang_up.set)

    async def renew_when_asked() -> None:
        while True:
            await hang_up.wait()
            hang_up.clear()
            await _renew(server, options)

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(server)
        if options.metrics_port is not None:
            host = options.metrics_host
            try:
                port = await stack.enter_async_context(serve_metrics(server, host, options.metrics_port))
            except OSError as error:
                raise OSError(f"--metrics-port {options.metrics_port} of {host}: {_text(error)}") from error
            print(f"metrics on http://{f'[{host}]' if ':' in host else host}:{port}/metrics", flush=True)
        print(f"listening on {server.uri}", flush=True)
        renewing = loop.create_task(renew_when_asked())
        await stop.wait()
        renewing.cancel()
        await asyncio.wait([renewing])


def main(arguments: list[str] | None = None, prog: str = _PROG) -> int:
    """Runs the server; returns the process's exit status. `prog` is what the user calls the command."""
    disk.raise_max_descriptors()
    map_large_blocks()
    server, options = _server(arguments, prog)
    # A thread waits for the interpreter after each call to the disk: while the event loop is busy, this long. With
    # Python's default of 5 ms, a listing of some hundred files took 15 s during a flood of bad requests.
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.freeze()  # the collector skips what is here now, which stays
    try:
        asyncio.run(_serve(server, options))
    except OSError as error:
        print(f"can't serve: {_failure(error, options.host)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
