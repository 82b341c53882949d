"""`python -m rx_client.examples` lists the examples, `python -m rx_client.examples NAME [--uri URI]` runs one."""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from server import FileServer, serve
from shared import TransferError

from ..connection.connector import parse_uri
from . import etl, files, parallel, pipeline, racing, resumable, slow_consumer
from .context import Context, WrongResult
from .terminal import Terminal

_PROG: Final = "python -m rx_client.examples"


@dataclass(frozen=True)
class Example:
    """What there is to know of an example.

    Attributes:
        about: Its module's docstring; the first line is its summary.
        run: Runs it. Raises WrongResult if what comes out isn't right.
        add_options: Adds the command line options that it alone has.
    """

    about: str
    run: Callable[[Context], Awaitable[None]]
    add_options: Callable[[argparse.ArgumentParser], None] = lambda _: None

    @property
    def summary(self) -> str:
        return self.about.partition("\n")[0]


EXAMPLES: Final = {
    "files": Example(files.__doc__ or "", files.run),
    "parallel": Example(parallel.__doc__ or "", parallel.run, parallel.add_options),
    "etl": Example(etl.__doc__ or "", etl.run),
    "racing": Example(racing.__doc__ or "", racing.run),
    "resumable": Example(resumable.__doc__ or "", resumable.run, resumable.add_options),
    "slow_consumer": Example(slow_consumer.__doc__ or "", slow_consumer.run, slow_consumer.add_options),
    "pipeline": Example(pipeline.__doc__ or "", pipeline.run, pipeline.add_options),
}


def main(arguments: list[str] | None = None) -> int:
    """Lists the examples or runs one; the process's exit status: 0 if its result is right, 1 if not."""
    options = _parse(arguments)
    if options.name is None:
        for name, example in EXAMPLES.items():
            print(f"{name:15}{example.summary}")
        print(f"\nRun one with `{_PROG} NAME`, and see its options with `{_PROG} NAME --help`.")
        return 0
    terminal = Terminal(sys.stdout)
    try:
        asyncio.run(_run(EXAMPLES[options.name], options, terminal))
    except (WrongResult, TransferError, OSError) as error:
        terminal.end_line()
        kind = "wrong result" if isinstance(error, WrongResult) else "failed"
        print(f"{options.name}: {kind}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        terminal.end_line()
        return 130  # as a shell reports SIGINT
    return 0


async def _run(example: Example, options: argparse.Namespace, terminal: Terminal) -> None:
    async def run_at(uri: str, server: FileServer | None) -> None:
        await example.run(Context(uri, terminal.say, terminal.update, terminal.is_interactive, server, options))

    if options.uri is not None:
        await run_at(options.uri, None)
        return
    async with serve() as server:
        await run_at(server.uri, server)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=_PROG, description="Example pipelines for the reactive file client.")
    commands = parser.add_subparsers(dest="name", metavar="NAME", help="the example to run; none lists them")
    for name, example in EXAMPLES.items():
        command = commands.add_parser(
            name,
            help=example.summary,
            description=example.about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument(
            "--uri", type=_uri, help="the server, as tcp://HOST[:PORT] (default: one in this process, for this run)"
        )
        example.add_options(command)
    return parser.parse_args(arguments)


def _uri(text: str) -> str:
    try:
        parse_uri(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


if __name__ == "__main__":
    sys.exit(main())
