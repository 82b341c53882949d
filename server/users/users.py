"""The users of a server, as its file has them, and the check of their passwords."""

import hmac
import secrets
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable
from pathlib import Path
from typing import Final

from argon2 import PasswordHasher, extract_parameters
from argon2.exceptions import VerificationError

from shared.aio import run_blocking
from shared.errors import Unauthenticated
from shared.protocol.metadata import AUTHENTICATION_MIMETYPE, MetadataItem, parse_authentication

from ..fair_lock import FairLock
from .line import BYTE_ORDER_MARK, UserLine, is_user_line
from .rights import User

__all__ = ["Users", "decode_users"]

# 128 checks take less time than a connection has for its SETUP by default.
_MAX_WAITING: Final = 128


class Users:
    """The users of one server, from the lines of their file; raises ValueError if one is wrong, or none is there."""

    def __init__(self, lines: str) -> None:
        self._hasher = PasswordHasher()
        self._users: dict[str, User] = {}
        self._hashes: dict[str, str] = {}
        for number, line in enumerate(lines.removeprefix(BYTE_ORDER_MARK).split("\n"), 1):
            if is_user_line(line):
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
        try:
            return cls(decode_users(content))
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
        try:
            made = UserLine.parse(line)
            if made.name in self._users:
                raise ValueError("each user has a name, and one line")
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        self._hashes[made.name] = made.hashed
        self._users[made.name] = made.user()


def decode_users(content: bytes) -> str:
    """The text of a file of users; raises ValueError, which names the line, if it isn't text."""
    encoding = "utf-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8"  # PowerShell's > and >>
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {number}: the file isn't {encoding.upper()} from here on") from None
