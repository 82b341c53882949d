"""Who may do what: users with hashed passwords, and permissions by prefix of the file's name.

The file has a line for each user, `NAME:HASH[:PERMISSIONS]`; empty lines and those that start with `#` are left out.
HASH is argon2's; `python -m server.users NAME` asks for a password and prints the line. PERMISSIONS are separated by
spaces: some of the letters `r` (download, list, stat), `w` (upload, in place of a file of that name, too) and `d`
(delete), an `@`, and the prefix that they hold for. `r@ rwd@alice/` may read everything, and change what starts with
`alice/`. Without them a user may do everything.
"""

import asyncio
import getpass
import hmac
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from shared.blocking import run_blocking
from shared.errors import PermissionDenied, Unauthenticated
from shared.metadata import AUTHENTICATION_MIMETYPE, MetadataItem, parse_authentication

__all__ = ["ANYBODY", "Right", "User", "Users"]


class Right(Enum):
    """What a user may do with a file."""

    READ = "r"
    WRITE = "w"
    DELETE = "d"


@dataclass(frozen=True, slots=True)
class User:
    """Who is asking.

    Attributes:
        name: Empty where the server asks nobody who they are.
        grants: The rights that hold for each prefix.
    """

    name: str
    grants: Mapping[str, frozenset[Right]]

    def may(self, right: Right, name: str) -> bool:
        """Whether the user has a right to a file."""
        return any(right in rights and name.startswith(prefix) for prefix, rights in self.grants.items())

    def check(self, right: Right, name: str) -> None:
        """Raises PermissionDenied unless the user has the right to the file."""
        if not self.may(right, name):
            raise PermissionDenied(f"you may not {right.name.lower()} {name!r}", name=name)

    def scoped(self, upload_id: str) -> str:
        """The id that the store knows this user's upload by, so that nobody else's can be the same."""
        if not self.name:
            return upload_id
        return sha256(f"{self.name}\0{upload_id}".encode()).hexdigest()


ANYBODY: Final = User("", {"": frozenset(Right)})
"""The user of a server that doesn't ask: may do everything."""


class Users:
    """The users of one server.

    Args:
        lines: The file's text.

    Raises:
        ValueError: A line isn't as it should be.
    """

    def __init__(self, lines: str) -> None:
        self._hasher = PasswordHasher()
        self._users: dict[str, User] = {}
        self._hashes: dict[str, str] = {}
        for number, line in enumerate(lines.splitlines(), 1):
            if line.strip() and not line.startswith("#"):
                self._add(number, line.strip())
        # What an unknown user's password is checked against, so that it takes as long as a known one's.
        self._nobodys = self._hasher.hash(secrets.token_hex())
        # One at a time: a check takes 64 MiB and some 50 ms, and strangers may ask for it.
        self._turn = asyncio.Semaphore(1)
        # Digests of the secrets that were right, under a key of this process: a reconnect costs no check.
        self._key = secrets.token_bytes()
        self._known: dict[str, bytes] = {}

    @classmethod
    def read(cls, path: str | Path) -> "Users":
        """The users in a file.

        Raises:
            OSError: It can't be read.
            ValueError: A line isn't as it should be.
        """
        return cls(Path(path).read_text(encoding="utf-8"))

    async def authenticate(self, items: list[MetadataItem], is_gone: Callable[[], bool]) -> User:
        """The user whose credentials a SETUP's metadata has: `simple`, or `bearer` with the token `NAME:PASSWORD`.

        Args:
            items: The metadata.
            is_gone: Whether the client has left: nobody is checked then, so that strangers who leave hold up nobody.

        Raises:
            Unauthenticated: There are none, or they are wrong; nobody is told which.
            InvalidRequest: They are malformed.
        """
        found = [item.content for item in items if item.mimetype == AUTHENTICATION_MIMETYPE]
        if len(found) != 1:
            raise Unauthenticated("this server wants to know who you are: give a user name and a password")
        name, password = parse_authentication(found[0])
        tried = hmac.digest(self._key, password, "sha256")
        if not hmac.compare_digest(self._known.get(name, b""), tried):
            async with self._turn:
                if is_gone():
                    raise Unauthenticated("the client left before it was its turn")
                is_right = await run_blocking(None, self._verify, self._hashes.get(name, self._nobodys), password)
            if not is_right or name not in self._users:
                raise Unauthenticated("the user name or the password is wrong")
            self._known[name] = tried
        return self._users[name]

    def _add(self, number: int, line: str) -> None:
        name, _, rest = line.partition(":")
        hashed, _, permissions = rest.partition(":")
        if not name or name in self._users:
            raise ValueError(f"line {number}: each user has a name, and one line")
        try:
            self._hasher.check_needs_rehash(hashed)
        except InvalidHashError:
            raise ValueError(f"line {number}: the hash of {name!r} isn't argon2's") from None
        grants: dict[str, frozenset[Right]] = {}
        for grant in permissions.split():
            letters, at, prefix = grant.partition("@")
            try:
                rights = frozenset(map(Right, letters))
            except ValueError:
                rights = frozenset[Right]()
            if not at or not rights:
                raise ValueError(f"line {number}: a permission has the form r@PREFIX, of the letters r, w and d")
            grants[prefix] = grants.get(prefix, frozenset()) | rights
        self._hashes[name] = hashed
        self._users[name] = User(name, grants or ANYBODY.grants)

    def _verify(self, hashed: str, password: bytes) -> bool:
        try:
            return self._hasher.verify(hashed, password)
        except VerificationError:
            return False


def main() -> int:
    """Prints the line of a user for the file."""
    if len(sys.argv) != 2 or ":" in sys.argv[1]:
        print("usage: python -m server.users NAME", file=sys.stderr)
        return 2
    password = getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    print(f"{sys.argv[1]}:{PasswordHasher().hash(password)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
