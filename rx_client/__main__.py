"""`python -m rx_client` is the command `rxfiles`."""

import sys

from .command.app import main

if __name__ == "__main__":
    sys.exit(main())
