"""The file of users, edited: comments and the order of the lines stay, and the file is replaced in one step."""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from .line import BYTE_ORDER_MARK, UserLine, is_user_line
from .users import Users, decode_users

__all__ = ["UserFile"]


class UserFile:
    """A file of users; nothing is written before `save`.

    Args:
        path: Where it is; it need not be there yet. A link is followed.

    Raises:
        OSError: It can't be read.
        ValueError: A line is wrong; the text has the path and the line.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(os.path.realpath(path))
        self._lines: list[str] = []
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return
        try:
            text = decode_users(content).removeprefix(BYTE_ORDER_MARK)
            self._lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
            if any(map(is_user_line, self._lines)):
                Users("\n".join(self._lines))  # knows what is wrong with which line
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @property
    def users(self) -> dict[str, UserLine]:
        """The users by their names, in order."""
        made = (UserLine.parse(line.strip()) for line in self._lines if is_user_line(line))
        return {user.name: user for user in made}

    def put(self, user: UserLine) -> None:
        """Replaces the line of the user of this name; appends one if there is none."""
        number = self._number_of(user.name)
        if number is None:
            self._lines.append(str(user))
        else:
            self._lines[number] = str(user)

    def remove(self, name: str) -> None:
        """Removes a user's line, if there is one."""
        number = self._number_of(name)
        if number is not None:
            del self._lines[number]

    def save(self) -> None:
        """Writes the file; a new one can be read by its owner only. Raises OSError if it can't be written."""
        descriptor, temporary = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
        try:
            with open(descriptor, "w", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{line}\n" for line in self._lines)
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileNotFoundError):
                status = self._path.stat()
                os.chmod(temporary, stat.S_IMODE(status.st_mode))
                with suppress(OSError, AttributeError):  # only the superuser may, and not on Windows
                    os.chown(temporary, status.st_uid, status.st_gid)
            os.replace(temporary, self._path)
        except BaseException:
            os.unlink(temporary)
            raise

    def _number_of(self, name: str) -> int | None:
        for number, line in enumerate(self._lines):
            if is_user_line(line) and UserLine.parse(line.strip()).name == name:
                return number
        return None
