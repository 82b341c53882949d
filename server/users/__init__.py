"""Users with hashed passwords, and their permissions by prefix of the file's name.

The users' file has one line for each user, `NAME:HASH[:PERMISSIONS]`; empty lines and lines that start with `#` are
skipped. HASH is argon2's; `python -m server.users NAME [PERMISSION...]` asks for a password and prints the line, and
`rxfiles users` edits the file. PERMISSIONS are separated by spaces; each has some of the letters `r` (download, list,
stat), `w` (upload, also over an existing file), `d` (delete) and `s` (the server's statistics, which name all users and
files), an `@`, and the prefix for which they hold; for `s` that is empty.
`r@ rwd@alice/` may read everything, and change what starts with `alice/`. A user without PERMISSIONS may do everything.
"""

from .rights import ANYBODY, Right, User
from .users import Users

__all__ = ["ANYBODY", "Right", "User", "Users"]
