"""`python -m rx_client.examples` lists the examples, `python -m rx_client.examples NAME [--uri URI]` runs one."""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from server import serve
from shared import TransferError

from ..connection.options import parse_uri
from . import (
    chat,
    dashboard,
    etl,
    files,
    live_mirror,
    mirror_tree,
    parallel,
    pipeline,
    racing,
    resumable,
    slow_consumer,
)
from .context import Context, WrongResult
from .real_files import add_file_option

_PROG: Final = "python -m rx_client.examples"


class Example(NamedTuple):
    """An example's module.

    Attributes:
        about: Its docstring; the first line is its summary.
        run: Runs it. Raises WrongResult if its result is wrong.
        add_options: Adds the command line options that only this example has.
    """

    about: str
    run: Callable[[Context], Awaitable[None]]
    add_options: Callable[[argparse.ArgumentParser], None] = lambda _: None

    @property
    def summary(self) -> str:
        return self.about.partition("\n")[0]


EXAMPLES: Final = {
    "files": Example(files.__doc__ or "", files.run),
    "chat": Example(chat.__doc__ or "", chat.run),
    "parallel": Example(parallel.__doc__ or "", parallel.run, parallel.add_options),
    "mirror_tree": Example(mirror_tree.__doc__ or "", mirror_tree.run, mirror_tree.add_options),
    "live_mirror": Example(live_mirror.__doc__ or "", live_mirror.run),
    "dashboard": Example(dashboard.__doc__ or "", dashboard.run, dashboard.add_options),
    "etl": Example(etl.__doc__ or "", etl.run),
    "racing": Example(racing.__doc__ or "", racing.run),
    "resumable": Example(resumable.__doc__ or "", resumable.run, add_file_option),
    "slow_consumer": Example(slow_consumer.__doc__ or "", slow_consumer.run, add_file_option),
    "pipeline": Example(pipeline.__doc__ or "", pipeline.run, add_file_option),
}


def main(arguments: list[str] | None = None) -> int:
    """Lists the examples or runs one; returns the exit status: 0 if its result is right, 1 if not."""
    options = _parse(arguments)
    if options.name is None:
        for name, example in EXAMPLES.items():
            print(f"{name:15}{example.summary}")
        print(f"\nRun one with `{_PROG} NAME`, and see its options with `{_PROG} NAME --help`.")
        return 0
    context = Context(options.uri or "", None, options, sys.stdout)
    try:
        asyncio.run(_run(EXAMPLES[options.name], context))
    except (WrongResult, TransferError, OSError) as error:
        context.end_line()
        kind = "wrong result" if isinstance(error, WrongResult) else "failed"
        print(f"{options.name}: {kind}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        context.end_line()
        return 130  # as a shell reports SIGINT
    return 0


async def _run(example: Example, context: Context) -> None:
    if context.uri:
        await example.run(context)
        return
    async with serve() as server:
        context.uri, context.server = server.uri, server
        await example.run(context)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=_PROG, description="Example pipelines for the reactive file client.")
    commands = parser.add_subparsers(dest="name", metavar="NAME", help="the example to run; none lists them")
    raw = argparse.RawDescriptionHelpFormatter
    for name, example in EXAMPLES.items():
        command = commands.add_parser(name, help=example.summary, description=example.about, formatter_class=raw)
        about_uri = "the server, as tcp://HOST[:PORT] (default: one in this process, for this run)"
        command.add_argument("--uri", type=_uri, help=about_uri)
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
