"""The same file from two servers: the first one to deliver wins, and the other one stops working on it.

`amb` subscribes to both, passes on whoever speaks first (here with the whole content), and disposes the other, which
reaches that server as a CANCEL. The second server stands behind a slow link, and its own counters show what it did. The
file is of several megabytes, so that the slow server can't be rid of it before: a link's sockets hold some, too.
"""

import asyncio
from typing import Final

import reactivex
from reactivex import operators as ops

from server import serve

from .. import FileClient
from .context import Context, check
from .real_files import largest_of_python, read
from .relay import slow_link

__all__ = ["run"]

# How long the CANCEL may take to get through.
_CANCEL_SECONDS: Final = 5.0


async def run(context: Context) -> None:
    path = await asyncio.to_thread(largest_of_python)
    content = await read(path)
    name = path.name

    async with (
        serve() as slowed,
        slow_link(slowed.uri) as link,
        FileClient.connect(context.uri) as first,
        FileClient.connect(link.uri) as second,
    ):
        await reactivex.merge(first.upload(name, content), second.upload(name, content))
        context.say(f"both servers have {name!r}: {len(content):,} bytes")
        context.say(f"first server: {context.uri}; second server: {slowed.uri}, through a slow link")

        winner, downloaded = await reactivex.amb(
            first.download(name).pipe(ops.map(lambda content: ("first", content))),
            second.download(name).pipe(ops.map(lambda content: ("second", content))),
        )
        context.say(f"the {winner} server won")

        # The connections are still open: what ends the second server's work is the CANCEL alone.
        await slowed.work.drain(_CANCEL_SECONDS)
        for which, server in (("first", context.server), ("second", slowed)):
            if server is not None:
                work = server.work
                context.say(
                    f"the {which} server: {work.completed} completed (one is the upload), {work.cancelled} cancelled, "
                    f"{work.active} under way"
                )
        cancelled, active = slowed.work.cancelled, slowed.work.active

    check(downloaded == content, f"{name!r} came back with other bytes")
    check(winner == "first", "the second server won, in spite of its slow link")
    check((cancelled, active) == (1, 0), "the second server went on with what nobody wants any more")
