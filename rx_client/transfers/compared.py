"""The running digest of an upload, compared on its way with what is known of the content.

Known may be what an earlier attempt of this process has sent, and what servers have received: their digests of ranges
that follow each other, where the one that goes on hasn't received the bytes itself. It is sent the digest of the rest.
"""

from collections.abc import Sequence

from shared.errors import ProtocolError, SourceChanged
from shared.protocol.digest import Digest, DigestLink, algorithm_of
from shared.protocol.messages import Receipt

__all__ = ["ComparedDigest", "check_links"]


def check_links(receipt: Receipt, algorithm: str | None, name: str) -> Sequence[DigestLink]:
    """The digests in a first receipt; raises ProtocolError unless they are of what the server has."""
    links = receipt.digests or ()
    if any(algorithm_of(link.digest) != algorithm for link in links) or (links and links[-1].end > receipt.committed):
        raise ProtocolError("the server compares other bytes than it has, or with another digest", name=name)
    return links


class ComparedDigest(Digest):
    """A running digest of a whole content; `update` raises SourceChanged where that isn't the known one.

    Args:
        algorithm: Of the digests.

    Attributes:
        links: What servers have received. Those that were compared stay in it.
        rest: Of the bytes behind the last of the links that were compared.
        compared: How many were.
        expected: What the content must begin with; None if that isn't known, or was compared.
    """

    __slots__ = ("compared", "expected", "links", "rest")

    def __init__(self, algorithm: str) -> None:
        super().__init__(algorithm)
        self.links: Sequence[DigestLink] = ()
        self.rest: Digest | None = None  # the same as this one, as long as there are no links
        self.compared = 0
        self.expected: Digest | None = None

    def copy(self) -> "ComparedDigest":
        copied = ComparedDigest(self.algorithm)
        copied.length, copied._hasher = self.length, self._hasher.copy()
        copied.links, copied.compared = self.links, self.compared
        copied.rest = None if self.rest is None else self.rest.copy()
        return copied

    @property
    def rest_digest(self) -> str | None:
        """What the server verifies beside the whole digest; None where there are no links."""
        return None if self.rest is None else self.rest.text()

    def may_follow(self, links: Sequence[DigestLink]) -> bool:
        """Whether it can be compared with these links from here on: it was with those that are behind it."""
        compared = self.compared
        is_behind = len(links) == compared or (len(links) > compared and self.length <= links[compared].end)
        return is_behind and list(links[:compared]) == list(self.links[:compared])

    def follow(self, links: Sequence[DigestLink]) -> None:
        """Compares with these links from here on; ask `may_follow` first.

        Raises:
            SourceChanged: What was added isn't what the server has.
        """
        self.links = links
        self._compare()

    def update(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            ends = [end for end in (self._next_end, self._expected_end) if end is not None]
            until = min([len(view), *(end - self.length for end in ends)])
            super().update(view[:until])
            if self.rest is not None:
                self.rest.update(view[:until])
            view = view[until:]
            self._compare()

    @property
    def is_compared(self) -> bool:
        """Whether nothing is left to compare."""
        return self.expected is None and self.compared == len(self.links)

    @property
    def _next_end(self) -> int | None:
        return self.links[self.compared].end if self.compared < len(self.links) else None

    @property
    def _expected_end(self) -> int | None:
        return None if self.expected is None else self.expected.length

    def _compare(self) -> None:
        if self.expected is not None and self.expected.length == self.length:
            if self.expected.text() != self.text():
                raise SourceChanged("the source isn't what it was before any more")
            self.expected = None
        while self._next_end == self.length:
            link = self.links[self.compared]
            if (self if self.rest is None else self.rest).text() != link.digest:
                raise SourceChanged("the source isn't what the server has received of it")
            self.compared += 1
            self.rest = Digest(self.algorithm, self.length)
