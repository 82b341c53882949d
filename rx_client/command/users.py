"""`rxfiles users`: the file of a server's users, edited on the server's computer."""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Final

import typer

from server.users.file import UserFile
from server.users.line import UserLine
from server.users.passwords import ask_password
from server.users.rights import parse_permissions

from .exits import Exit
from .failures import describe

__all__ = ["app"]

_EVERYTHING: Final = "everything"

File = Annotated[
    str,
    typer.Option("--auth-file", envvar="RXFILES_AUTH_FILE", metavar="FILE", help="The file, as rxfiles serve has it."),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The user's name.")]
Permissions = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PERMISSION",
        help="Such as r@ to read all files, or rwd@alice/ to read, write and delete those below alice/; "
        "or the word everything.",
    ),
]
IsNew = Annotated[bool, typer.Option("--replace", help="Give a user that is there a new password.")]

app: Final = typer.Typer(
    help="Adds, lists and removes a server's users.\n\nA server that runs reads them when it gets SIGHUP.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def add(name: Name, auth_file: File, permissions: Permissions = None, is_new_password: IsNew = False) -> None:
    """Adds a user.

    Asks for the password; without a terminal, it is the first line of standard input.
    """
    with _errors("add"):
        users = UserFile(auth_file)
        known = users.users.get(name)
        if known is not None and not is_new_password:
            raise ValueError(f"there is a user {name!r} already: give --replace for a new password")
        kept = None if known is None else known.permissions
        granted = _granted(permissions) if permissions else kept
        users.put(UserLine.make(name, granted, ask_password))
        users.save()


@app.command("list")
def list_(auth_file: File) -> None:
    """Lists the users, each with the permissions."""
    with _errors("list"):
        for user in _having(auth_file).users.values():
            print(f"{user.name}\t{user.permissions or _EVERYTHING}")


@app.command()
def remove(name: Name, auth_file: File) -> None:
    """Removes a user."""
    with _errors("remove"):
        users = _having(auth_file, name)
        users.remove(name)
        users.save()


@app.command()
def permissions(name: Name, auth_file: File, permissions: Permissions = None) -> None:
    """Shows a user's permissions, or replaces them by those that are given."""
    with _errors("permissions"):
        users = _having(auth_file, name)
        user = users.users[name]
        if permissions:
            users.put(replace(user, permissions=_granted(permissions)))
            users.save()
        else:
            print(user.permissions or _EVERYTHING)


def _granted(permissions: list[str]) -> str | None:
    """What a line says of permissions; None for everything. Raises ValueError if they are malformed."""
    if permissions == [_EVERYTHING]:
        return None
    parse_permissions(" ".join(permissions))
    return " ".join(permissions)


def _having(auth_file: str, name: str | None = None) -> UserFile:
    """A file that has to be there, and to have this user."""
    os.stat(auth_file)
    users = UserFile(auth_file)
    if name is not None and name not in users.users:
        raise LookupError(f"there is no user {name!r} in {auth_file}: rxfiles users list shows them")
    return users


@contextmanager
def _errors(verb: str) -> Generator[None]:
    """Ends the command with a sentence and an exit code where it fails."""
    try:
        yield
    except (OSError, ValueError, LookupError) as error:
        if isinstance(error, OSError):
            failure = describe(error)
            sentence, code = failure.sentence, failure.code
        else:
            sentence, code = str(error.args[0]), Exit.NOT_FOUND if isinstance(error, LookupError) else Exit.USAGE
        print(f"rxfiles users {verb}: {sentence}", file=sys.stderr)
        raise typer.Exit(code) from None
