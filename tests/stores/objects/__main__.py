"""All tests of the store in a bucket: the contract of stores, its own tests, transfers, and kills of processes.

`python -m tests.stores.objects` uses SeaweedFS, and with `--moto` the contract's tests use moto.
"""

import argparse
import os
import subprocess
import sys

from tests.stores.support import ALL_OF_IT

from .service import WITH_MOTO


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moto", action="store_true", help="the contract's tests, on moto")
    parser.add_argument("--rounds", type=int, default=30, help="processes to kill")
    options = parser.parse_args()
    environment = {**os.environ, ALL_OF_IT: "1"} | ({WITH_MOTO: "1"} if options.moto else {})
    tests = [] if options.moto else ["tests/stores/objects", "tests/transfers/test_objects.py"]
    pytest = [sys.executable, "-m", "pytest", "-q", "-k", "objects", "tests/stores/test_contract.py", *tests]
    result = subprocess.run(pytest, env=environment, check=False).returncode
    if result or options.moto:
        return result
    kills = [sys.executable, "-m", "tests.stores.objects.crash", "--rounds", str(options.rounds)]
    return subprocess.run(kills, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
