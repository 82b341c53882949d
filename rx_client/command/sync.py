"""`rxfiles sync`: one folder becomes like another, here and at the server, or there and here."""

from typing import Annotated, Final

import reactivex
import typer
from reactivex import Observable
from reactivex import operators as ops

from .. import Completed, Failed, Skipped, rate_limit
from ..operators import transfer_all
from ..transfers.trees import TreeOptions
from .comparing import Plan, Tree, compare
from .directions import Direction, FromServer, ToServer
from .failures import RUN_AGAIN, RefusedError, UsageError
from .folders import as_folder
from .happenings import Change, Happening, Note
from .options import BwLimit, DryRun, Exclude, Include, Retries, Transfers
from .pipelines import failure_alone, fit_or_failed, steady, with_total
from .run import Run
from .words import parse_rate

__all__ = ["sync"]

_REMOTE: Final = "remote:"

Source = Annotated[str, typer.Argument(metavar="SOURCE", help="A folder, or remote:PREFIX for one of the server.")]
Target = Annotated[str, typer.Argument(metavar="TARGET", help="The same; one of both is remote.")]
Delete = Annotated[bool, typer.Option("--delete", help="Delete files of the target that the source hasn't.")]
MaxDelete = Annotated[int | None, typer.Option(min=0, metavar="N", help="Do nothing if more would be deleted.")]
Checksum = Annotated[
    bool, typer.Option("--checksum", help="Compare digests of files with the same size and time, too.")
]


def sync(
    run: Run,
    source: Source,
    target: Target,
    dry_run: DryRun = False,
    delete: Delete = False,
    max_delete: MaxDelete = None,
    checksum: Checksum = False,
    include: Include = None,
    exclude: Exclude = None,
    transfers: Transfers = 4,
    bwlimit: BwLimit = None,
    retries: Retries = 5,
) -> Observable[Happening]:
    """Makes a folder like another one, here and on the server.

    Files with the same size and time are the same, or with the same size and digest; others are transferred. What is
    done is printed. With --delete, files are deleted after all transfers have succeeded; never, if the source is empty.
    """
    if max_delete is not None and not delete:
        raise UsageError("--max-delete goes with --delete")
    make, folder, prefix = _direction(source, target)
    each, limit = steady(retries, run.period), rate_limit(parse_rate(bwlimit))
    way = make(run.files, folder, prefix, transfers=transfers, each=each, limit=limit)
    run.again = RUN_AGAIN
    is_selected = TreeOptions(include, exclude, 1, None, True).selector("")

    def carry_out(before: Tree, after: Tree, plan: Plan) -> Observable[Happening]:
        steps = [planned(way, plan, before)] if dry_run else [done(run, way, plan, before)]
        try:
            plan.check(before, after, max_delete)
        except RefusedError as error:
            steps = [*(steps if dry_run else []), reactivex.throw(error)]
        notes: list[Happening] = []
        if plan.same:
            notes.append(Note(f"{plan.same} {'file is' if plan.same == 1 else 'files are'} the same"))
        elif not before.entries:
            notes.append(Note("the source has no files"))
        if delete and not before.is_complete:
            notes.append(Note("nothing is deleted, since files of the source have failed"))
        return reactivex.concat(*steps, reactivex.from_iterable(notes))

    def compared(trees: tuple[Tree, Tree]) -> Observable[Happening]:
        plan = compare(*trees, delete=delete, checksum=checksum)
        return plan.pipe(ops.flat_map(lambda plan: carry_out(*trees, plan)))

    return reactivex.zip(way.source(is_selected), way.target(is_selected)).pipe(ops.flat_map(compared))


def planned(way: Direction, plan: Plan, before: Tree) -> Observable[Happening]:
    """What would be done."""
    transfers = (
        Change(way.action, way.at_server(name), reason=why, is_planned=True) for name, why in plan.transfers.items()
    )
    deletions = (Change("delete", way.target_name(name), is_planned=True) for name in plan.deletions)
    return reactivex.from_iterable([*before.left_out, *transfers, *deletions])


def done(run: Run, way: Direction, plan: Plan, before: Tree) -> Observable[Happening]:
    """The transfers, and then, if all have succeeded, the deletions."""
    failed: list[Failed] = []

    def with_change(event: Happening) -> Observable[Happening]:
        if isinstance(event, Failed):
            failed.append(event)
        if not isinstance(event, Completed):
            return reactivex.just(event)
        return reactivex.of(
            event, Change(way.action, event.name, reason=plan.transfers[event.name.removeprefix(way.prefix)])
        )

    def delete_one(name: str) -> Observable[Happening]:
        change = Change("delete", way.target_name(name))
        return way.delete(name, plan.deletions[name]).pipe(ops.map(lambda _: change), failure_alone(name))

    def deletions(_: object) -> Observable[Happening]:
        if failed and plan.deletions:
            return reactivex.just(Note("nothing is deleted, since files have failed"))
        return reactivex.from_iterable(plan.deletions).pipe(ops.map(delete_one), transfer_all(4))

    left_out = reactivex.from_iterable(before.left_out)
    if not plan.transfers:
        return reactivex.concat(left_out, reactivex.defer(deletions))
    # What can't be read is found again on the way.
    known = {way.at_server(each.name) for each in before.left_out}
    transferred = way.transfer(plan.transfers.__contains__).pipe(
        ops.filter(lambda event: not (isinstance(event, Failed | Skipped) and event.name in known)),
        ops.map(fit_or_failed("`rxfiles get` it alone, with --to PATH")),
        with_total(run.period, reactivex.just(plan.nbytes)),
        ops.concat_map(with_change),
    )
    return reactivex.concat(left_out, transferred, reactivex.defer(deletions))


def _direction(source: str, target: str) -> tuple[type[Direction], str, str]:
    """The direction, the local folder, and what the names of the server's folder begin with."""
    match source.startswith(_REMOTE), target.startswith(_REMOTE):
        case False, True:
            return ToServer, source, as_folder(target.removeprefix(_REMOTE))
        case True, False:
            return FromServer, target, as_folder(source.removeprefix(_REMOTE))
        case _:
            raise UsageError("one folder is here, the other one on the server: such as sync photos remote:photos")
