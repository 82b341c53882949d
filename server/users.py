"""Users with hashed passwords, and their permissions by prefix of the file's name.

The users' file has one line for each user, `NAME:HASH[:PERMISSIONS]`; empty lines and lines that start with `#` are
skipped. HASH is argon2's; `python -m server.users NAME` asks for a password and prints the line. PERMISSIONS are
separated by spaces; each has some of the letters `r` (download, list, stat), `w` (upload, also over an existing file)
and `d` (delete), an `@`, and the prefix for which they hold. `r@ rwd@alice/` may read everything, and change what
starts with `alice/`. A user without PERMISSIONS may do everything.
"""

import getpass
import hmac
import re
import secrets
import sys
import unicodedata
from base64 import b64decode, b64encode
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import Final, TextIO

from argon2 import PasswordHasher, extract_parameters
from argon2.exceptions import VerificationError

from shared.aio import run_blocking
from shared.errors import PermissionDenied, Unauthenticated
from shared.protocol.metadata import AUTHENTICATION_MIMETYPE, MetadataItem, parse_authentication

from .fair_lock import FairLock

__all__ = ["ANYBODY", "Right", "User", "Users"]

_HASH: Final = re.compile(
    r"\$argon2(?:id|i|d)(?:\$v=(?:16|19))?\$m=([1-9][0-9]*),t=[1-9][0-9]*,p=([1-9][0-9]*)\$([^$]+)\$([^$]+)"
)
_MIN_SALT_BYTES: Final = 8
_MIN_TAG_BYTES: Final = 32
_BYTE_ORDER_MARK: Final = "\ufeff"

# 128 checks take less time than a connection has for its SETUP by default.
_MAX_WAITING: Final = 128


class Right(Enum):
    """What a user may do with a file."""

    READ = "r"
    WRITE = "w"
    DELETE = "d"


@dataclass(frozen=True, slots=True)
class User:
    """The user of a connection.

    Attributes:
        name: Empty where the server has no users.
        grants: The rights for each prefix of file names.
    """

    name: str
    grants: Mapping[str, frozenset[Right]]

    def may(self, right: Right, name: str) -> bool:
        """Whether the user has the right to the file."""
        return any(right in rights and name.startswith(prefix) for prefix, rights in self.grants.items())

    def prefixes(self, right: Right, prefix: str) -> list[str]:
        """What the names begin with of the files to which the user has the right, among those that start with `prefix`.

        They are in order, and none begins with another.
        """
        found: list[str] = []
        granted = {max(prefix, grant, key=len) for grant, rights in self.grants.items() if right in rights}
        for each in sorted(granted):
            if each.startswith(prefix) and self.may(right, each) and not (found and each.startswith(found[-1])):
                found.append(each)
        return found

    def check(self, right: Right, name: str) -> None:
        """Raises PermissionDenied unless the user has the right to the file; to all files, if the name is empty."""
        if not self.may(right, name):
            files = repr(name) if name else "all files"
            raise PermissionDenied(f"you may not {right.name.lower()} {files}", name=name or None)

    def scoped(self, upload_id: str) -> str:
        """The id under which the store knows this user's upload: the same id of another user is another upload."""
        return sha256(f"{self.name}\0{upload_id}".encode()).hexdigest() if self.name else upload_id


ANYBODY: Final = User("", {"": frozenset(Right)})
"""The user of every connection to a server without users: may do everything."""


class Users:
    """The users of one server, from the lines of their file; raises ValueError if one is wrong, or none is there."""

    def __init__(self, lines: str) -> None:
        self._hasher = PasswordHasher()
        self._users: dict[str, User] = {}
        self._hashes: dict[str, str] = {}
        for number, line in enumerate(lines.removeprefix(_BYTE_ORDER_MARK).split("\n"), 1):
            if line.strip() and not line.startswith("#"):
                self._add(number, line.strip())
        if not self._users:
            raise ValueError("there is no user: `python -m server.users NAME` prints a line with one")
        # An unknown user's password is checked against one of these, so that it takes as long as a known user's: they
        # cost the same as the users' hashes, and are as many.
        costs = [extract_parameters(hashed) for hashed in self._hashes.values() or [self._hasher.hash("")]]
        made = {str(cost): type(self._hasher).from_parameters(cost).hash(secrets.token_hex()) for cost in costs}
        self._decoys = [made[str(cost)] for cost in costs]
        # One check at a time: it takes 64 MiB and some 50 ms, and unauthenticated peers cause it.
        self._lock = FairLock(_MAX_WAITING)
        # Digests of the passwords that were right, under a key of this process: a reconnect costs no check.
        self._key = secrets.token_bytes()
        self._verified: dict[str, bytes] = {}

    @classmethod
    def read(cls, path: str | Path) -> "Users":
        """The users in a file; raises OSError if it can't be read, and ValueError if a line is wrong, or none there."""
        content = Path(path).read_bytes()
        encoding = "utf-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8"  # PowerShell's > and >>
        try:
            return cls(content.decode(encoding))
        except UnicodeDecodeError as error:
            number = content.count(b"\n", 0, error.start) + 1
            raise ValueError(f"{path}: line {number}: the file isn't {encoding.upper()} from here on") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    async def authenticate(
        self, items: list[MetadataItem], is_gone: Callable[[], bool] = lambda: False, address: str = ""
    ) -> User:
        """The user whose credentials a SETUP's metadata has: `simple`, or `bearer` with the token `NAME:PASSWORD`.

        Args:
            items: The metadata.
            is_gone: Whether the peer has disconnected; its password isn't checked then.
            address: The peer's; waiting peers are checked in turn by address.

        Raises:
            ServerFull: Too many peers wait to be checked.
            Unauthenticated: The credentials are missing or wrong; the text doesn't say whether the user exists.
            InvalidRequest: They are malformed.
        """
        found = [item.content for item in items if item.mimetype == AUTHENTICATION_MIMETYPE]
        if len(found) != 1:
            raise Unauthenticated("this server requires authentication: give a user name and a password")
        name, password = parse_authentication(found[0])
        digest = hmac.digest(self._key, password, "sha256")
        if not self._is_verified(name, digest):
            async with self._lock.hold(address):
                if is_gone():
                    raise Unauthenticated("the client disconnected before it was authenticated")
                if not self._is_verified(name, digest):  # another connection may have had the same password checked
                    is_right = await run_blocking(None, self._verify, self._hash_of(name), password)
                    if not is_right or name not in self._users:
                        raise Unauthenticated("the user name or the password is wrong")
                    self._verified[name] = digest
        return self._users[name]

    def _hash_of(self, name: str) -> str:
        """The hash to check a password against, whether the user exists or not."""
        decoy = int.from_bytes(hmac.digest(self._key, name.encode(), "sha256")) % len(self._decoys)
        return self._hashes.get(name, self._decoys[decoy])

    def _is_verified(self, name: str, digest: bytes) -> bool:
        return hmac.compare_digest(self._verified.get(name, b""), digest)

    def _verify(self, hashed: str, password: bytes) -> bool:
        try:
            return self._hasher.verify(hashed, password)
        except VerificationError:
            return False

    def _add(self, number: int, line: str) -> None:
        name, _, rest = line.partition(":")
        hashed, colon, permissions = rest.partition(":")
        if not name or name in self._users:
            raise ValueError(f"line {number}: each user has a name, and one line")
        if (flaw := _flaw(name)) is not None:
            raise ValueError(f"line {number}: {flaw}")
        if not _is_complete_hash(hashed):
            raise ValueError(
                f"line {number}: the hash of {name!r} isn't argon2's, or not all of it; "
                "`python -m server.users NAME` prints a line with one"
            )
        if colon and not permissions.strip():
            raise ValueError(f"line {number}: {name!r} has no permissions; leave out the colon to grant everything")
        grants: dict[str, frozenset[Right]] = {}
        for grant in permissions.split():
            letters, at, prefix = grant.partition("@")
            if not at or not letters or not set(letters) <= {right.value for right in Right}:
                raise ValueError(f"line {number}: a permission has the form r@PREFIX, of the letters r, w and d")
            grants[prefix] = grants.get(prefix, frozenset()) | frozenset(map(Right, letters))
        self._hashes[name] = hashed
        self._users[name] = User(name, grants if colon else ANYBODY.grants)


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
    if _BYTE_ORDER_MARK in name:
        return "the name has a byte order mark"
    if any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in name):
        return "the name has a character that no line can have"
    if name.startswith("#"):
        return "the name starts with '#', as comments do"
    if name != name.strip():
        return "the name has white space at an end"
    return None


def _piped_line(stream: TextIO) -> str:
    """The first line without its end, which another system may write as CR LF, and without a byte order mark."""
    return stream.readline().removesuffix("\n").removesuffix("\r").removeprefix(_BYTE_ORDER_MARK)


def main() -> int:
    """Prints a user's line for the file; the process's exit status."""
    if len(sys.argv) != 2:
        print("usage: python -m server.users NAME", file=sys.stderr)
        return 2
    name = sys.argv[1]
    flaw = _flaw(name)
    if flaw is None:
        try:
            password = getpass.getpass() if sys.stdin.isatty() else _piped_line(sys.stdin)
            if password:
                print(f"{name}:{PasswordHasher().hash(password)}")
                return 0
            flaw = "the password is empty"
        except UnicodeError:
            flaw = "the password isn't text"
    print(f"python -m server.users: {flaw}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
