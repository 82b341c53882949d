"""The command line of `rxfiles`: its verbs, and the options that all of them share.

Only the modules of the verbs that a command line names are imported, so that `rxfiles --help` is there at once.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from .._siblings import check_sibling
from .exits import Exit
from .interrupts import Interrupts

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["VERBS", "main"]

VERBS: Final = {
    "put": "Uploads files, folders, or standard input.",
    "get": "Downloads files or folders.",
    "sync": "Makes a folder like another one, here and on the server.",
    "cat": "Writes files to standard output.",
    "ls": "Lists the server's files.",
    "stat": "Shows what the server knows of files.",
    "watch": "Shows files as they change, until it is interrupted.",
    "mv": "Renames files on the server.",
    "rm": "Deletes files on the server.",
    "top": "Shows what the server does, until it is interrupted.",
    "serve": "Serves files until it is interrupted.",
    "users": "Adds, lists and removes a server's users.",
}
"""The verbs, and the first sentences of their help; each but the last two is a function in a module of its name."""

_HELP: Final = """Files on an rxfiles server: verified, and resumed where they stopped.

The server is RXFILES_SERVER, or --server URI behind the verb, as in: rxfiles ls --server tcp://localhost. The user is
RXFILES_USER, with RXFILES_PASSWORD. What each verb's options are: rxfiles VERB --help.
"""

Server = Annotated[
    list[str] | None,
    typer.Option(
        envvar="RXFILES_SERVER",
        metavar="URI",
        help="tcp://HOST[:PORT], or tcps://HOST[:PORT] with TLS. May be repeated: servers with the same files.",
    ),
]
Ca = Annotated[str | None, typer.Option(metavar="FILE", help="Authorities to trust, in place of the system's (PEM).")]
Cert = Annotated[str | None, typer.Option(metavar="FILE", help="This client's certificate and private key (PEM).")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")]
IsQuiet = Annotated[bool, typer.Option("--quiet", "-q", help="Errors only, and what was asked for.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    interrupts = Interrupts()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["serve"]:  # the same command line as that of `python -m server`, by the same parser
            return _serve(given[1:])
        _app(given, interrupts)(given, prog_name="rxfiles")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else Exit.OK
    return Exit.OK


def _app(arguments: Sequence[str], interrupts: Interrupts) -> typer.Typer:
    """The command line, with the verbs that `arguments` may name in full, and of the others their summaries."""
    app = typer.Typer(
        help=_HELP,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain text, which scripts and logs can quote
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_top)
    for name, summary in VERBS.items():
        if name == "users" and name in arguments:
            check_sibling("server")
            app.add_typer(_module(name).app, name=name)
        elif name in arguments and name != "serve":
            app.command(name)(_with_session(name, getattr(_module(name), name), interrupts))
        else:
            app.command(name, help=summary)(_not_named)
    return app


def _module(verb: str) -> "ModuleType":
    return import_module(f".{verb}", __package__)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        from shared.version import find_version  # noqa: PLC0415 - `shared` imports rsocket

        typer.echo(f"rxfiles {find_version()}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
]


def _top(version: Version = False) -> None:
    """Has the options that go before the verb."""


def _serve(arguments: list[str]) -> int:
    check_sibling("server")
    from server.__main__ import main as serve  # noqa: PLC0415 - for this verb only

    return serve(arguments, "rxfiles serve")


def _not_named() -> None:
    raise AssertionError("a verb that no argument names is only listed")


def _with_session(name: str, verb: Callable[..., Any], interrupts: Interrupts) -> Callable[..., None]:
    """The command of a verb: its own options, which its pipeline is made with, and those that all verbs share."""
    from .run import Session  # noqa: PLC0415 - which imports the client
    from .target import Target  # noqa: PLC0415

    _run, *own = inspect.signature(verb).parameters.values()
    shared = inspect.signature(_shared).parameters.values()

    def command(**options: Any) -> None:
        server, ca, cert, as_json, quiet = (options.pop(each.name) for each in shared)
        session = Session(name, interrupts, as_json=as_json, quiet=quiet)
        raise typer.Exit(session.run(lambda: Target.of(server, ca, cert), lambda run: verb(run, **options)))

    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *shared)]
    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    command.__doc__ = verb.__doc__
    return command


def _shared(
    server: Server = None, ca: Ca = None, cert: Cert = None, as_json: Json = False, quiet: IsQuiet = False
) -> None:
    """Has the options that all verbs share."""
