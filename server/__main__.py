"""`python -m server`: serves files until SIGINT or SIGTERM."""

import argparse
import asyncio
import logging
import signal
import sys

from .data import ChatData
from .directory_store import DirectoryStore
from .serving import DEFAULT_HOST, DEFAULT_PORT, serve


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m server", description="Serves files over RSocket.")
    parser.add_argument("--host", default=DEFAULT_HOST, help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="TCP port; 0 picks a free one (default: %(default)s)"
    )
    parser.add_argument("--store", metavar="PATH", help="folder to keep the files in (default: memory)")
    parser.add_argument(
        "--upload-expiry",
        metavar="SECONDS",
        type=float,
        default=24 * 60 * 60,
        help="how long an unfinished upload is kept (default: a day)",
    )
    options = parser.parse_args(arguments)
    if not 0 <= options.port <= 65535:
        parser.error(f"--port must be 0 to 65535, not {options.port}")
    return options


async def _serve(options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    data = ChatData(DirectoryStore(options.store)) if options.store is not None else ChatData()
    async with serve(options.host, options.port, data=data, upload_expiry_seconds=options.upload_expiry) as server:
        print(f"listening on {server.uri}", flush=True)
        await stop.wait()


def main(arguments: list[str] | None = None) -> int:
    """Runs the server; the process's exit status."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(_serve(options))
    except OSError as error:
        print(f"can't listen on {options.host}:{options.port}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
