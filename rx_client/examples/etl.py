"""One pipeline from many files to a report: list, filter `*.csv`, download, parse, aggregate, upload the report.

The data is real: for each package of the standard library, a CSV file with the lines and bytes of each of its sources.
`merge(max_concurrent=4)` bounds the downloads, `flat_map` makes rows of a file, and `reduce` makes one summary of them,
so that the files are never in memory together. At the end the run deletes all files under its own prefix.
"""

import asyncio
import csv
import io
import uuid
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Final, NamedTuple

import reactivex
from reactivex import Observable
from reactivex import operators as ops

from .. import FileClient
from .context import Context, WrongResult, check
from .real_files import STANDARD_LIBRARY, python_sources

_MAX_CONCURRENT: Final = 4


class _Row(NamedTuple):
    """One source, as in the CSV files."""

    name: str
    lines: int
    nbytes: int


class _Summary(NamedTuple):
    """All sources of a package, as in the report."""

    package: str
    sources: int = 0
    lines: int = 0
    nbytes: int = 0

    def plus(self, row: _Row) -> "_Summary":
        return _Summary(self.package, self.sources + 1, self.lines + row.lines, self.nbytes + row.nbytes)


async def run(context: Context) -> None:
    packages = await asyncio.to_thread(_measure)
    # Each run has a folder of its own, because a shared server may have CSV files of other clients, or of an older run.
    folder = f"etl-{uuid.uuid4().hex[:8]}"

    async with FileClient.connect(context.uri) as files:
        uploaded = await reactivex.from_iterable(packages.items()).pipe(
            ops.starmap(lambda package, rows: files.upload(f"{folder}/{package}.csv", _to_csv(rows))),
            ops.merge(max_concurrent=_MAX_CONCURRENT),
            ops.count(),
        )
        context.say(f"uploaded {uploaded} CSV files to {folder}/")

        def summarize(name: str) -> Observable[_Summary]:
            return files.download(name).pipe(
                ops.do_action(lambda content: context.say(f"downloaded {name}: {len(content):,} bytes")),
                ops.flat_map(lambda content: reactivex.from_iterable(_from_csv(name, content))),
                ops.reduce(_Summary.plus, _Summary(PurePosixPath(name).stem)),
            )

        stored = await files.list_files().pipe(
            ops.filter(lambda name: PurePosixPath(name).match(f"{folder}/*.csv")),
            ops.map(summarize),
            ops.merge(max_concurrent=_MAX_CONCURRENT),
            ops.to_list(),
            ops.map(_report),
            ops.flat_map(lambda report: files.upload(f"{folder}/report.txt", report)),
        )
        context.say(f"uploaded {stored.name}: {stored.size:,} bytes")
        report = await files.download(stored.name)
        context.say(report.decode(errors="replace").rstrip())
        direct = _report(
            _Summary(package, len(rows), sum(row.lines for row in rows), sum(row.nbytes for row in rows))
            for package, rows in packages.items()
        )
        check(report == direct, f"a direct count gives another report:\n{direct.decode()}")
        context.say(f"a direct count of {sum(map(len, packages.values())):,} sources gives the same report")

        deleted = await files.list_files(prefix=f"{folder}/").pipe(
            ops.map(files.delete),
            ops.merge(max_concurrent=_MAX_CONCURRENT),
            ops.count(),
        )
        context.say(f"deleted all {deleted} files again")
        check(deleted == uploaded + 1, f"{uploaded} CSV files and a report were uploaded, but {deleted} files deleted")


def _measure() -> dict[str, list[_Row]]:
    """The rows of each package; top-level modules count as one package."""
    packages: dict[str, list[_Row]] = {}
    for path in python_sources():
        source = path.relative_to(STANDARD_LIBRARY)
        package = source.parts[0] if len(source.parts) > 1 else "top-level"
        content = path.read_bytes()
        packages.setdefault(package, []).append(_Row(source.as_posix(), content.count(b"\n"), len(content)))
    return packages


def _to_csv(rows: Iterable[_Row]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("name", "lines", "bytes"), *rows])
    return text.getvalue().encode()


def _from_csv(name: str, content: bytes) -> list[_Row]:
    try:
        reader = csv.DictReader(io.StringIO(content.decode(), newline=""), strict=True)
        return [_Row(row["name"], int(row["lines"]), int(row["bytes"])) for row in reader]
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise WrongResult(f"{name!r} came back as something that isn't our CSV: {error!r}") from error


def _report(summaries: Iterable[_Summary]) -> bytes:
    lines = [f"{'package':20} {'sources':>8} {'lines':>10} {'bytes':>12}"]
    for package, sources, count, nbytes in sorted(summaries, key=lambda summary: (-summary.lines, summary.package)):
        lines.append(f"{package:20} {sources:8,} {count:10,} {nbytes:12,}")
    return "\n".join([*lines, ""]).encode()
