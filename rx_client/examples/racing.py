"""The same file from two servers: the first to deliver wins, and the other one stops working on it.

`amb` subscribes to both, emits the items of the one that emits first (here the whole content), and disposes of the
other, whose server gets a CANCEL. The second server is behind a slow link, and its own counters show what it did. The
file has several megabytes, so that it doesn't fit into the buffers of the slow link's sockets.
"""

import asyncio
from typing import Final

import reactivex
from reactivex import operators as ops

from server import serve

from .. import FileClient
from .context import Context, check
from .real_files import largest_file, read
from .relay import slow_link

# The longest time that the CANCEL may take.
_CANCEL_SECONDS: Final = 5.0


async def run(context: Context) -> None:
    path = await asyncio.to_thread(largest_file)
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

        # The connections stay open until then: only the CANCEL ends the second server's work.
        await slowed.work.drain(_CANCEL_SECONDS)
        for which, server in (("first", context.server), ("second", slowed)):
            if server is not None:
                work = server.work
                counts = f"{work.completed} completed (one is the upload), {work.cancelled} cancelled"
                context.say(f"the {which} server: {counts}, {work.active} under way")
        cancelled, active = slowed.work.cancelled, slowed.work.active

    check(downloaded == content, f"{name!r} came back with other bytes")
    check(winner == "first", "the second server won, in spite of its slow link")
    check((cancelled, active) == (1, 0), "the second server went on with a download that was cancelled")
