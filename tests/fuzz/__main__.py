"""`python -m tests.fuzz`: fuzzes each target for a time with atheris; exits with 1, its input saved, if one failed."""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

TARGETS = ("frames", "codecs")
ARTIFACTS = Path(__file__).parent / "found"


def _fuzz(name: str, arguments: list[str]) -> None:
    """Fuzzes one target in this process, and never returns."""
    import atheris

    # Only modules that are imported here are instrumented, so none of them may have been imported before.
    with atheris.instrument_imports(include=["server", "shared", "rsocket"]):
        from tests.fuzz.targets import targets
    target = targets()[name]()
    atheris.Setup([sys.argv[0], *arguments], target)
    atheris.Fuzz()


def _run(name: str, seconds: int) -> int:
    """Fuzzes one target in a process of its own, and returns the exit status."""
    from tests.fuzz.targets import seeds

    ARTIFACTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds()[name].values()):
            (Path(corpus) / f"seed-{number}").write_bytes(seed)
        print(f"fuzzing {name} for {seconds} s", flush=True)
        arguments = [
            f"-max_total_time={seconds}", "-max_len=8192", "-timeout=30", "-rss_limit_mb=1024", "-print_final_stats=1",
            f"-artifact_prefix={ARTIFACTS / name}-", corpus,
        ]  # fmt: skip
        done = subprocess.run([sys.executable, "-m", "tests.fuzz", "--only", name, "--", *arguments], check=False)
    return done.returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzzes the parsers of a peer's bytes.")
    parser.add_argument("--seconds", type=int, default=90, help="the time for each target (default: %(default)s)")
    parser.add_argument("--replay", metavar="FILE", help="runs one saved input, named TARGET-..., and shows its error")
    parser.add_argument("--only", choices=TARGETS, help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.replay is not None:
        from tests.fuzz.targets import targets

        path = Path(options.replay)
        targets()[path.name.partition("-")[0]]()(path.read_bytes())
        return 0
    if importlib.util.find_spec("atheris") is None:
        print("the fuzzer isn't installed: pip install -e '.[fuzz]'", file=sys.stderr)
        return 2
    if options.only is not None:
        _fuzz(options.only, options.rest)
    failed = [name for name in TARGETS if _run(name, options.seconds)]
    for name in failed:
        print(f"{name} failed; its input is in {ARTIFACTS}; see --replay", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
