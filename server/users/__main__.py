"""`python -m server.users NAME [PERMISSION...]` prints a user's line for the file; it asks for the password."""

import argparse
import sys
from typing import Final

from .line import UserLine
from .passwords import ask_password

__all__ = ["main"]

_PROG: Final = "python -m server.users"


def main() -> int:
    """Prints the line; returns the process's exit status."""
    parser = argparse.ArgumentParser(prog=_PROG, description="Prints a user's line for the file of users.")
    parser.add_argument("name", metavar="NAME", help="the user's name")
    about = "such as r@ for reading everything, or rwd@alice/ for everything below alice/ (default: everything)"
    parser.add_argument("permissions", metavar="PERMISSION", nargs="*", help=about)
    options = parser.parse_args()
    try:
        print(UserLine.make(options.name, " ".join(options.permissions) or None, ask_password))
    except ValueError as error:
        print(f"{_PROG}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
