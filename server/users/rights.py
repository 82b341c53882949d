"""What a user may do: rights for each prefix of file names, in a file's form `r@ rwd@alice/`."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from typing import Final

from shared.errors import PermissionDenied

__all__ = ["ANYBODY", "Right", "User", "parse_permissions"]


class Right(Enum):
    """What a user may do with a file; MONITOR, which is about all files, asks for the server's statistics."""

    READ = "r"
    WRITE = "w"
    DELETE = "d"
    MONITOR = "s"


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


def parse_permissions(text: str) -> dict[str, frozenset[Right]]:
    """The grants of a line's PERMISSIONS; raises ValueError if they are malformed, or none."""
    grants: dict[str, frozenset[Right]] = {}
    for grant in text.split():
        letters, at, prefix = grant.partition("@")
        if not at or not letters or not set(letters) <= {right.value for right in Right}:
            raise ValueError("a permission has the form r@PREFIX, of the letters r, w, d and s")
        grants[prefix] = grants.get(prefix, frozenset()) | frozenset(map(Right, letters))
    if not grants:
        raise ValueError("there are no permissions")
    return grants
