"""The conversation on the page about the wire is what a server says."""

import re
from typing import Final

from server import ChatData, serve
from tests.docs.pages import DOCS, blocks
from tests.support import RawPeer

_LINE: Final = re.compile(r"^([<> ]) ((?:[0-9a-f]{2} )*[0-9a-f]{2})(?=\s|$)", re.MULTILINE)


async def test_a_server_answers_as_the_page_says() -> None:
    frames: list[tuple[str, bytes]] = []
    for direction, digits in _LINE.findall(blocks(DOCS / "wire.md", "text")[0].text):
        if direction != " ":
            frames.append((direction, b""))
        frames[-1] = (frames[-1][0], frames[-1][1] + bytes.fromhex(digits))
    assert [direction for direction, _ in frames] == [">", ">", "<", ">", "<"]

    async with serve(data=ChatData({"a.txt": b"hello"})) as server:
        peer = await RawPeer.connect(server.uri)
        for direction, frame in frames:
            if direction == ">":
                await peer.send(frame)
            else:
                answer = await peer.receive()
                assert answer is not None
                head = answer.stream_id.to_bytes(4) + (answer.kind << 10 | answer.flags).to_bytes(2)
                assert (len(head) + len(answer.body)).to_bytes(3) + head + answer.body == frame
        await peer.close()
