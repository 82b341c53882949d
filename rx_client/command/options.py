"""The options that several verbs have, each defined once."""

from typing import Annotated

import typer

__all__ = [
    "BwLimit",
    "DigestName",
    "DryRun",
    "Exclude",
    "IgnoreExisting",
    "Include",
    "NoOverwrite",
    "Recursive",
    "Retries",
    "Transfers",
]

Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Also folders, with all that is below them.")]

Include = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Of a folder, only files whose names below it match, such as '*.csv'; '*' also matches slashes. "
        "May be repeated.",
    ),
]

Exclude = Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Of a folder, not these. May be repeated.")]

Transfers = Annotated[int, typer.Option(min=1, max=256, metavar="N", help="Files at a time.")]

BwLimit = Annotated[
    str | None,
    typer.Option("--bwlimit", metavar="RATE", help="Bytes a second, of all files together, such as 500K or 10M."),
]

Retries = Annotated[
    int, typer.Option(min=0, metavar="N", help="Retries of a file in a row without progress; each resumes it.")
]

IgnoreExisting = Annotated[bool, typer.Option("--ignore-existing", help="Skip files that exist at the target.")]

NoOverwrite = Annotated[bool, typer.Option("--no-overwrite", help="Fail for files that exist at the target.")]

DigestName = Annotated[
    str, typer.Option("--digest", metavar="NAME", help="How bytes are verified: xxh3-128, sha-256 or none.")
]

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
