"""Two clients share a file: one uploads it, the other lists the files, downloads it and compares.

This is the `files_example` of the rsocket-py tutorial, with a real file. Each call returns an observable, which does
nothing until it is subscribed to; awaiting it subscribes, and returns its last value.
"""

import asyncio

from reactivex import operators as ops

from .. import FileClient
from .context import Context, check
from .real_files import STANDARD_LIBRARY, python_sources, read


async def run(context: Context) -> None:
    path = max(await asyncio.to_thread(python_sources), key=lambda path: path.stat().st_size)
    name = path.relative_to(STANDARD_LIBRARY).as_posix()
    content = await read(path)

    async with FileClient.connect(context.uri) as user1, FileClient.connect(context.uri) as user2:
        uploaded = await user1.upload(name, content)
        context.say(f"user 1 uploaded {uploaded.name!r}: {uploaded.size:,} bytes")

        listed = await user2.list_files().pipe(ops.to_list())
        context.say(f"user 2 listed {len(listed):,} file(s)")
        check(name in listed, f"{name!r} was uploaded, but isn't listed")

        downloaded = await user2.download(name)
        context.say(f"user 2 downloaded {name!r}: {len(downloaded):,} bytes")

    check(downloaded == content, f"{name!r} came back with other bytes")
    context.say(f"the download has the bytes of {path}")
