"""A user's line of the file of users, `NAME:HASH[:PERMISSIONS]`: parsed, and made."""

import re
import unicodedata
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from argon2 import PasswordHasher

from .rights import ANYBODY, User, parse_permissions

__all__ = ["BYTE_ORDER_MARK", "UserLine", "is_user_line"]

BYTE_ORDER_MARK: Final = "\ufeff"

_HASH: Final = re.compile(
    r"\$argon2(?:id|i|d)(?:\$v=(?:16|19))?\$m=([1-9][0-9]*),t=[1-9][0-9]*,p=([1-9][0-9]*)\$([^$]+)\$([^$]+)"
)
_MIN_SALT_BYTES: Final = 8
_MIN_TAG_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class UserLine:
    """A user as the file has it.

    Attributes:
        name: The user's.
        hashed: Argon2's hash of the password.
        permissions: Separated by spaces; None if the user may do everything.
    """

    name: str
    hashed: str
    permissions: str | None = None

    @classmethod
    def parse(cls, line: str) -> "UserLine":
        """From a line without white space at its ends; raises ValueError, which says what is wrong with it."""
        name, _, rest = line.partition(":")
        hashed, colon, permissions = rest.partition(":")
        if not name:
            raise ValueError("each user has a name, and one line")
        if (flaw := _flaw(name)) is not None:
            raise ValueError(flaw)
        if not _is_complete_hash(hashed):
            raise ValueError(
                f"the hash of {name!r} isn't argon2's, or not all of it; "
                "`python -m server.users NAME` prints a line with one"
            )
        if colon and not permissions.strip():
            raise ValueError(f"{name!r} has no permissions; leave out the colon to grant everything")
        made = cls(name, hashed, permissions.strip() if colon else None)
        made.user()  # raises what is wrong with the permissions
        return made

    @classmethod
    def make(cls, name: str, permissions: str | None, ask_password: Callable[[], str]) -> "UserLine":
        """For a new password, which is asked for when the rest is right; raises ValueError if something isn't."""
        if (flaw := _flaw(name)) is not None:
            raise ValueError(flaw)
        if permissions is not None:
            parse_permissions(permissions)
        password = ask_password()
        if not password:
            raise ValueError("the password is empty: type one, or give it as the first line of standard input")
        try:
            return cls(name, PasswordHasher().hash(password), permissions)
        except UnicodeError:
            raise ValueError("the password isn't text") from None

    def user(self) -> User:
        """The user with these permissions."""
        return User(self.name, ANYBODY.grants if self.permissions is None else parse_permissions(self.permissions))

    def __str__(self) -> str:
        return f"{self.name}:{self.hashed}" + ("" if self.permissions is None else f":{self.permissions}")


def is_user_line(line: str) -> bool:
    """Whether a line of the file is one of a user: neither empty nor a comment."""
    return bool(line.strip()) and not line.startswith("#")


def _is_complete_hash(text: str) -> bool:
    """Whether `text` is an argon2 hash, with all of its salt and its tag."""
    if (found := _HASH.fullmatch(text)) is None:
        return False
    memory, lanes, salt, tag = found.groups()
    has_all = _decoded_bytes(salt) >= _MIN_SALT_BYTES and _decoded_bytes(tag) >= _MIN_TAG_BYTES
    return has_all and int(memory) >= 8 * int(lanes)


def _decoded_bytes(text: str) -> int:
    """How many bytes are encoded in base64 without padding; 0 if a bit of `text` is wrong."""
    try:
        content = b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        return 0
    return len(content) if b64encode(content).decode().rstrip("=") == text else 0


def _flaw(name: str) -> str | None:
    """Why a line can't begin with this name; None if it can."""
    if not name:
        return "the name is empty"
    if ":" in name:
        return "the name has a colon, which ends it in the file"
    if BYTE_ORDER_MARK in name:
        return "the name has a byte order mark"
    if any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in name):
        return "the name has a character that no line can have"
    if name.startswith("#"):
        return "the name starts with '#', as comments do"
    if name != name.strip():
        return "the name has white space at an end"
    return None
