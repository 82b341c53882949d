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
import re
import secrets
import sys
import unicodedata
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import Final

from argon2 import PasswordHasher, extract_parameters
from argon2.exceptions import VerificationError

from shared.aio import run_blocking
from shared.errors import PermissionDenied, ServerFull, Unauthenticated
from shared.protocol.metadata import AUTHENTICATION_MIMETYPE, MetadataItem, parse_authentication

__all__ = ["ANYBODY", "Right", "User", "Users"]

_HASH: Final = re.compile(
    r"\$argon2(?:id|i|d)(?:\$v=(?:16|19))?\$m=([1-9][0-9]*),t=[1-9][0-9]*,p=([1-9][0-9]*)\$([^$]+)\$([^$]+)"
)
_MIN_SALT_BYTES: Final = 8
_MIN_TAG_BYTES: Final = 32

# Who waits to be checked: 128 checks take less than the time that a SETUP has by default.
_MAX_WAITING: Final = 128


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
        # What an unknown user's password is checked against, so that it takes as long as a known one's: for each user a
        # hash that costs the same.
        costs = [extract_parameters(hashed) for hashed in self._hashes.values() or [self._hasher.hash("")]]
        made = {str(cost): type(self._hasher).from_parameters(cost).hash(secrets.token_hex()) for cost in costs}
        self._nobodys = [made[str(cost)] for cost in costs]
        # One at a time: a check takes 64 MiB and some 50 ms, and strangers may ask for it.
        self._turns = _Turns()
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

    async def authenticate(
        self, items: list[MetadataItem], is_gone: Callable[[], bool] = lambda: False, address: str = ""
    ) -> User:
        """The user whose credentials a SETUP's metadata has: `simple`, or `bearer` with the token `NAME:PASSWORD`.

        Args:
            items: The metadata.
            is_gone: Whether the client has left: nobody is checked then, so that strangers who leave hold up nobody.
            address: The client's; where many wait, each address gets its turn.

        Raises:
            ServerFull: Too many wait to be checked.
            Unauthenticated: There are none, or they are wrong; nobody is told which.
            InvalidRequest: They are malformed.
        """
        found = [item.content for item in items if item.mimetype == AUTHENTICATION_MIMETYPE]
        if len(found) != 1:
            raise Unauthenticated("this server wants to know who you are: give a user name and a password")
        name, password = parse_authentication(found[0])
        tried = hmac.digest(self._key, password, "sha256")
        if not self._is_known(name, tried):
            async with self._turns.turn(address):
                if is_gone():
                    raise Unauthenticated("the client left before it was its turn")
                if not self._is_known(name, tried):  # who came with the same secret may have been checked meanwhile
                    is_right = await run_blocking(None, self._verify, self._hash_of(name), password)
                    if not is_right or name not in self._users:
                        raise Unauthenticated("the user name or the password is wrong")
                    self._known[name] = tried
        return self._users[name]

    def _hash_of(self, name: str) -> str:
        """What a user's password is checked against, whether there is such a user or not."""
        known = self._hashes.get(name)
        at = int.from_bytes(hmac.digest(self._key, name.encode(), "sha256")) % len(self._nobodys)
        return self._nobodys[at] if known is None else known

    def _is_known(self, name: str, tried: bytes) -> bool:
        return hmac.compare_digest(self._known.get(name, b""), tried)

    def _add(self, number: int, line: str) -> None:
        name, _, rest = line.partition(":")
        hashed, colon, permissions = rest.partition(":")
        if not name or name in self._users:
            raise ValueError(f"line {number}: each user has a name, and one line")
        if not _is_whole(hashed):
            raise ValueError(
                f"line {number}: the hash of {name!r} isn't argon2's, or not all of it; "
                "`python -m server.users NAME` prints a line with one"
            )
        if colon and not permissions.strip():
            raise ValueError(f"line {number}: {name!r} has no permissions; leave out the colon to grant everything")
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
        self._users[name] = User(name, grants if colon else ANYBODY.grants)

    def _verify(self, hashed: str, password: bytes) -> bool:
        try:
            return self._hasher.verify(hashed, password)
        except VerificationError:
            return False


class _Turns:
    """One turn at a time. The addresses get theirs one after the other; at each the newest comes first.

    So those who wait at one address hold up another by one turn each time, and those who came before at the same one by
    none; with a first-come queue they would by all of theirs. Where too many wait, the address with the most of them
    loses the one who has waited longest.
    """

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def turn(self, address: str) -> AsyncGenerator[None, None]:
        """The turn, for as long as the block takes.

        Raises:
            ServerFull: Too many wait.
        """
        if self._is_taken:
            await self._wait(address)
        self._is_taken = True
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, address: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(address, deque()).append(turn)
        if sum(map(len, self._waiting.values())) > _MAX_WAITING:
            self._refuse_one()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.exception() is None:
                self._pass_on()
            raise

    def _refuse_one(self) -> None:
        # Of addresses with as many each the one that came last: the others have a turn soon.
        address = max(reversed(self._waiting), key=lambda address: len(self._waiting[address]))
        waiting = self._waiting[address]
        turn = waiting.popleft()
        if not waiting:
            del self._waiting[address]
        if not turn.done():
            turn.set_exception(ServerFull("too many want to know whether they may come in; try again later"))

    def _pass_on(self) -> None:
        while self._waiting:
            address = next(iter(self._waiting))
            waiting = self._waiting.pop(address)
            turn = waiting.pop()
            if waiting:
                self._waiting[address] = waiting  # behind the other addresses
            if not turn.done():
                turn.set_result(None)
                return
        self._is_taken = False


def _is_whole(hashed: str) -> bool:
    """Whether it is an argon2 hash, with all of its salt and its tag."""
    found = _HASH.fullmatch(hashed)
    if found is None:
        return False
    memory, lanes, salt, tag = found.groups()
    return (
        int(memory) >= 8 * int(lanes)
        and len(_decoded(salt)) >= _MIN_SALT_BYTES
        and len(_decoded(tag)) >= _MIN_TAG_BYTES
    )


def _decoded(text: str) -> bytes:
    """What is written in base64 without padding; nothing if it isn't, to the last bit."""
    try:
        content = b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        return b""
    return content if b64encode(content).decode().rstrip("=") == text else b""


def _flaw(name: str) -> str | None:
    """Why a line can't begin with this name; None if it can."""
    if not name:
        return "the name is empty"
    if ":" in name:
        return "the name has a colon, which ends it in the file"
    if any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in name):
        return "the name has a character that no line can have"
    if name.startswith("#"):
        return "the name starts with '#', as comments do"
    if name != name.strip():
        return "the name has white space at an end"
    return None


def main() -> int:
    """Prints the line of a user for the file."""
    if len(sys.argv) != 2:
        print("usage: python -m server.users NAME", file=sys.stderr)
        return 2
    name = sys.argv[1]
    flaw = _flaw(name)
    if flaw is None:
        password = getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
        if password:
            print(f"{name}:{PasswordHasher().hash(password)}")
            return 0
        flaw = "the password is empty"
    print(f"python -m server.users: {flaw}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
