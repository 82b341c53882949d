"""The transfer's logic without I/O: whatever the order of things, right bytes or a typed error."""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shared import FileInfo, IntegrityError, InvalidRequest, ProtocolError, TransferError
from shared.protocol.digest import Digest
from shared.protocol.flow import Demand, RangeReceiver, UploadReceiver, UploadSender
from shared.protocol.messages import ChunkHead, DownloadRequest, Receipt, UploadEnd


def digest_of(content: bytes) -> Digest:
    digest = Digest()
    digest.update(content)
    return digest


# Demand


class DemandMachine(RuleBasedStateMachine):
    """Items are on the wire, held by the consumer, or owed to the sender, and a window in all."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.owed = 0
        self.window = 0
        self.demand = Demand(1)

    @precondition(lambda self: not self.window)
    @rule(window=st.integers(1, 40))
    def begins(self, window: int) -> None:
        self.window = window
        self.demand = Demand(window)

    @precondition(lambda self: self.window)
    @rule(count=st.integers(1, 40))
    def arrive(self, count: int) -> None:
        for _ in range(count):
            if not self.demand.outstanding:
                with pytest.raises(ProtocolError):
                    self.demand.received()
                return
            self.demand.received()
            self.held += 1

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def released(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, self.held))
        before = self.demand.outstanding
        more = self.demand.released(count)
        self.held -= count
        self.owed += count
        # At half a window and not before, all that is owed at once.
        assert more == (self.owed if 2 * self.owed >= self.window else 0)
        assert self.demand.outstanding == before + more
        self.owed -= more

    @precondition(lambda self: self.window)
    @rule(window=st.integers(1, 80))
    def widened(self, window: int) -> None:
        more = self.demand.widen(window)
        assert more == max(window - self.window, 0), "all that is new at once, and nothing is taken back"
        self.window += more
        assert self.demand.window == self.window

    @invariant()
    def nothing_is_lost_or_made_up(self) -> None:
        if self.window:
            assert self.demand.outstanding + self.held + self.owed == self.window
            assert self.demand.held == self.held

    @invariant()
    def it_never_runs_dry(self) -> None:
        """Of a consumer that holds nothing, the sender may always go on."""
        if self.window and not self.held:
            assert self.demand.outstanding


TestDemand = DemandMachine.TestCase
TestDemand.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("window", [0, -1, 2**31])
def test_a_window_outside_its_range(window: int) -> None:
    with pytest.raises(ValueError, match="window"):
        Demand(window)
    if window < 1:
        with pytest.raises(ValueError, match="window"):
            UploadSender(window)


# Downloads

Item = tuple[bytes, ChunkHead | None]


def served(content: bytes, request: DownloadRequest, cuts: list[int], etag: str = "e") -> list[Item]:
    """What a right server sends for `request`: a head with the first and the last item."""
    start = request.offset
    end = len(content) if request.length is None else min(len(content), start + request.length)
    info = FileInfo("n", len(content), etag)
    edges = sorted({start, end, *(start + cut % max(end - start, 1) for cut in cuts)})
    pieces = [content[a:b] for a, b in pairwise(edges)] or [b""]
    begin = start if request.digest_from is None else request.digest_from
    head = ChunkHead(info, start, end - start)
    last = replace(head, range_digest=digest_of(content[begin:end]).text())
    heads = [head, *[None] * (len(pieces) - 1)]
    heads[-1] = last
    return list(zip(pieces, heads, strict=True))


def drop(items: list[Item], at: int) -> list[Item]:
    return items[:at] + items[at + 1 :]


def double(items: list[Item], at: int) -> list[Item]:
    return items[: at + 1] + items[at:]


def swap(items: list[Item], at: int) -> list[Item]:
    return items[:at] + items[at : at + 2][::-1] + items[at + 2 :]


def flip(items: list[Item], at: int) -> list[Item]:
    data, head = items[at]
    changed = bytes([data[0] ^ 1]) + data[1:] if data else b"!"
    return [*items[:at], (changed, head), *items[at + 1 :]]


def move(items: list[Item], at: int) -> list[Item]:
    data, head = items[at]
    return [*items[:at], (data, head and replace(head, offset=head.offset + 1)), *items[at + 1 :]]


def exchange(items: list[Item], at: int) -> list[Item]:
    data, head = items[at]
    other = head and replace(head, info=replace(head.info, etag="other"))
    return [*items[:at], (data, other), *items[at + 1 :]]


def unsigned(items: list[Item], at: int) -> list[Item]:
    data, head = items[at]
    return [*items[:at], (data, head and replace(head, range_digest=None)), *items[at + 1 :]]


FAULTS: list[Callable[[list[Item], int], list[Item]]] = [drop, double, swap, flip, move, exchange, unsigned]


@given(
    content=st.binary(max_size=60),
    offset=st.integers(0, 60),
    length=st.none() | st.integers(0, 70),
    covered=st.integers(0, 60),
    is_matched=st.booleans(),
    cuts=st.lists(st.integers(0, 100), max_size=6),
    faults=st.lists(st.tuples(st.sampled_from(FAULTS), st.integers(0, 10)), max_size=3),
)
@settings(max_examples=400, deadline=None)
def test_a_download_gives_the_range_or_a_typed_error(
    content: bytes,
    offset: int,
    length: int | None,
    covered: int,
    is_matched: bool,
    cuts: list[int],
    faults: list[tuple[Callable[[list[Item], int], list[Item]], int]],
) -> None:
    offset = min(offset, len(content))
    request = DownloadRequest(offset, length, "e" if is_matched else None, digest_from=max(0, offset - covered))
    whole = items = served(content, request, cuts)
    for fault, at in faults:
        if items:
            items = fault(items, at % len(items))
    receiver = RangeReceiver("n", request)
    assert request.digest_from is not None
    digest = digest_of(content[request.digest_from : offset])
    got = b""
    try:
        for data, head in items:
            assert receiver.offset == offset + len(got)
            receiver.item(data, head)
            got += data
            digest.update(data)
        info = receiver.complete(digest)
    except (ProtocolError, IntegrityError):
        assert items != whole
    else:
        assert got == content[offset:][:length]
        assert info.size == len(content)
        assert not is_matched or info.etag == "e"


def test_a_download_without_a_digest_still_counts_its_bytes() -> None:
    request = DownloadRequest(digest=None)
    receiver = RangeReceiver("n", request)
    receiver.item(b"ab", ChunkHead(FileInfo("n", 3, "e"), 0, 3))
    with pytest.raises(IntegrityError, match="2 of 3"):
        receiver.complete(None)


# Uploads


class UploadMachine(RuleBasedStateMachine):
    """A client and a server of one upload, and a link between them that loses, doubles and breaks what is on it."""

    CONTENT = bytes(range(200))
    SERVER_WINDOW = 6

    def __init__(self) -> None:
        super().__init__()
        self.window = 3
        self.server_window = self.SERVER_WINDOW
        self.durable = b""
        self.published: bytes | None = None
        self.sender: UploadSender | None = None
        self.receiver: UploadReceiver | None = None
        self.is_tampered = False
        self.faults = self.attempts = 0
        self._cut()

    def _cut(self) -> None:
        """The connection is lost, with all that was on it and in the server's memory."""
        self.sender = self.receiver = None
        self.position: int | None = None
        self.wire: deque[tuple[bytes, UploadEnd | None]] = deque()
        self.stored_next: deque[tuple[bytes, UploadEnd | None]] = deque()
        self.receipt: Receipt | None = None
        self.asked = self.credit = 0

    def _typed(self, call: Callable[[], Any]) -> None:
        """Either side may refuse what comes from a link that tampers, and only that."""
        try:
            call()
        except (ProtocolError, IntegrityError, InvalidRequest):
            assert self.is_tampered, "a refusal without a cause"
            self._cut()

    # What both ends do

    @precondition(lambda self: self.sender is None and self.published is None)
    @rule(window=st.integers(1, 8), has_size=st.booleans())
    def connect(self, window: int, has_size: bool) -> None:
        self.is_tampered = not self.CONTENT.startswith(self.durable)  # by what an earlier attempt left
        self.window = window
        self.sender = UploadSender(window)
        size = len(self.CONTENT) if has_size else None
        self.receiver = UploadReceiver(len(self.durable), size, "xxh3-128", self.SERVER_WINDOW)
        self.receipt = Receipt(len(self.durable))
        self.asked = self.server_window = self.SERVER_WINDOW

    @precondition(lambda self: self.sender is not None and self.receipt is not None)
    @rule()
    def receipt_arrives(self) -> None:
        assert self.sender is not None
        assert self.receipt is not None
        receipt, self.receipt = self.receipt, None
        sender, is_first = self.sender, self.position is None

        def take() -> None:
            start = sender.receipt(receipt)
            assert (start is not None) == is_first
            if start is not None:
                self.position = start
            assert sender.committed == receipt.committed

        self._typed(take)

    @precondition(lambda self: self.asked)
    @rule()
    def request_n_arrives(self) -> None:
        assert self.sender is not None
        self.sender.requested(self.asked)
        self.credit += self.asked
        self.asked = 0

    @precondition(lambda self: self.sender is not None and self.sender.may_send and not self.sender.is_ended)
    @rule(nbytes=st.integers(1, 60))
    def send(self, nbytes: int) -> None:
        assert self.sender is not None
        assert self.position is not None
        assert len([1 for data, _ in self.wire if data]) < self.window + self.faults
        data = self.CONTENT[self.position : self.position + nbytes]
        end = None if data else UploadEnd(len(self.CONTENT), digest_of(self.CONTENT).text())
        self.sender.sends(len(data), is_last=end is not None)
        self.position += len(data)
        self.credit -= 1
        self.wire.append((data, end))

    @precondition(lambda self: self.sender is not None)
    @rule(window=st.integers(1, 12))
    def the_client_changes_its_window(self, window: int) -> None:
        """What was sent may be more than a narrower one; then nothing is sent until it isn't."""
        assert self.sender is not None
        self.sender.window = self.window = window

    @precondition(lambda self: self.receiver is not None)
    @rule(window=st.integers(1, 12))
    def the_server_widens_its_window(self, window: int) -> None:
        assert self.receiver is not None
        self.asked += self.receiver.widen(window)
        self.server_window = max(self.server_window, window)

    @precondition(lambda self: self.wire)
    @rule()
    def item_arrives(self) -> None:
        item = self.wire.popleft()

        def take() -> None:
            assert self.receiver is not None
            self.receiver.item(*item)
            self.stored_next.append(item)

        self._typed(take)

    @precondition(lambda self: self.stored_next)
    @rule(data=st.data())
    def server_stores(self, data: st.DataObject) -> None:
        self._store(data.draw(st.integers(1, len(self.stored_next))))

    def _store(self, count: int) -> None:
        assert self.receiver is not None
        for _ in range(count):
            self.durable += self.stored_next.popleft()[0]
        self.receipt = Receipt(len(self.durable))  # an older one that wasn't taken is left out
        self.asked += self.receiver.stored(count)
        if self.receiver.end is not None and not self.stored_next:
            self._commit(self.receiver.end)

    def _commit(self, end: UploadEnd) -> None:
        if digest_of(self.durable).text() == end.digest:
            self.published = self.durable
        else:
            assert self.is_tampered
        self.durable = b""
        self._cut()

    @precondition(lambda self: self.published is not None)
    @rule()
    def the_same_id_is_a_new_upload(self) -> None:
        self.published = None
        self.attempts = self.faults = 0

    # What befalls them

    @precondition(lambda self: self.sender is not None)
    @rule()
    def connection_is_lost(self) -> None:
        self._cut()

    @precondition(lambda self: self.sender is None and self.durable)
    @rule()
    def the_part_expires(self) -> None:
        self.durable = b""

    @precondition(lambda self: self.wire)
    @rule(data=st.data(), how=st.sampled_from(["drop", "double", "flip"]))
    def the_link_tampers(self, data: st.DataObject, how: str) -> None:
        if self.faults == 3:
            return  # else hardly an upload would ever come through
        self.faults += 1
        at = data.draw(st.integers(0, len(self.wire) - 1))
        items = list(self.wire)
        if how == "flip" and items[at][0]:
            content, end = items[at]
            items[at] = (bytes([content[0] ^ 1]) + content[1:], end)
        elif how == "double":
            items.insert(at, items[at])
        else:
            del items[at]
        self.wire = deque(items)
        self.is_tampered = True

    @precondition(lambda self: self.receiver is not None)
    @rule()
    def the_client_completes(self) -> None:
        """All that was sent arrives, and then the client's COMPLETE: fine after the last item, and not before."""
        while self.wire and self.receiver is not None:
            self.item_arrives()
        if self.receiver is not None:
            if self.receiver.end is None:
                with pytest.raises(IntegrityError):
                    self.receiver.complete()
                self._cut()
            else:
                self.receiver.complete()

    # What always holds

    @invariant()
    def only_the_right_bytes_are_published(self) -> None:
        assert self.published in (None, self.CONTENT)

    @invariant()
    def the_sender_is_within_its_window(self) -> None:
        if self.position is not None and self.sender is not None:
            assert 0 <= self.sender.room <= self.credit
            assert self.sender.may_send == (self.sender.room > 0)
            assert self.sender.committed <= len(self.durable)
            assert self.credit > 0 or not self.sender.may_send

    @invariant()
    def the_server_holds_no_more_than_it_asked_for(self) -> None:
        assert len(self.stored_next) <= self.server_window

    @invariant()
    def credit_is_neither_lost_nor_made_up(self) -> None:
        if self.receiver is not None and not self.is_tampered:
            assert self.receiver._demand.outstanding == self.asked + self.credit + len(self.wire)

    @precondition(lambda self: self.published is None)
    @rule(steps=st.integers(1, 15))
    def a_while_passes(self, steps: int) -> None:
        """Everybody does what there is to do, so that the odd things happen at every depth."""
        for _ in range(steps):
            if self.published is None:
                self._step()
                self.the_sender_is_within_its_window()
                self.credit_is_neither_lost_nor_made_up()

    def teardown(self) -> None:
        """However it has come: over a link that is sound from here on, it ends, with the right bytes."""
        self.attempts = 0
        while self.published is None:
            self._step()
            assert self.attempts <= 3, "a sound link, and no end"

    def _step(self) -> None:
        if self.sender is None:
            self.attempts += 1
            if self.attempts > 1 and not self.CONTENT.startswith(self.durable):
                self.the_part_expires()  # what the link broke before can't be completed
            self.connect(3, has_size=True)
        elif self.receipt is not None:
            self.receipt_arrives()
        elif self.asked:
            self.request_n_arrives()
        elif self.sender.may_send and not self.sender.is_ended:
            self.send(30)
        elif self.wire:
            self.item_arrives()
        elif self.stored_next:
            self._store(len(self.stored_next))
        else:
            assert self.is_tampered, "both sides wait for each other"
            self._cut()  # something got lost on the way: a deadline's business


TestUpload = UploadMachine.TestCase
TestUpload.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


@given(
    offset=st.integers(0, 50),
    receipts=st.lists(st.integers(0, 60), min_size=1, max_size=6),
    sent=st.lists(st.integers(1, 10), max_size=4),
)
@settings(max_examples=200, deadline=None)
def test_receipts_take_nothing_back_and_confirm_nothing_unsent(
    offset: int, receipts: list[int], sent: list[int]
) -> None:
    sender = UploadSender(8)
    sender.requested(100)
    assert sender.receipt(Receipt(offset)) == offset
    for nbytes in sent:
        sender.sends(nbytes, is_last=False)
    least, most = offset, offset + sum(sent)
    for committed in receipts:
        if least <= committed <= most:
            assert sender.receipt(Receipt(committed)) is None
            least = committed
        else:
            with pytest.raises(ProtocolError):
                sender.receipt(Receipt(committed))
        assert sender.committed == least


def test_what_a_client_may_not_send() -> None:
    def receiver(size: int | None = None, algorithm: str | None = None) -> UploadReceiver:
        return UploadReceiver(0, size, algorithm, 2)

    refusals: list[tuple[UploadReceiver, list[tuple[bytes, UploadEnd | None]], type[TransferError]]] = [
        (receiver(), [(b"a", None)] * 3, InvalidRequest),
        (receiver(), [(b"", None)], InvalidRequest),
        (receiver(), [(b"", UploadEnd(0, None)), (b"a", None)], InvalidRequest),
        (receiver(), [(b"", UploadEnd(0, None)), (b"", UploadEnd(0, None))], InvalidRequest),
        (receiver(1), [(b"ab", None)], IntegrityError),
        (receiver(2), [(b"a", UploadEnd(1, None))], IntegrityError),
        (receiver(), [(b"a", UploadEnd(2, None))], IntegrityError),
        (receiver(algorithm="sha-256"), [(b"", UploadEnd(0, None))], InvalidRequest),
        (receiver(algorithm="sha-256"), [(b"", UploadEnd(0, "xxh3-128:00"))], InvalidRequest),
    ]
    for side, items, refusal in refusals:
        *before, last = items
        for item in before:
            side.item(*item)
        with pytest.raises(refusal):
            side.item(*last)
