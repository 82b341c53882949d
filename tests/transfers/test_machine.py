"""The transfer's logic without I/O: whatever the order of things, right bytes or a typed error."""

import math
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
from shared.protocol.flow import (
    MAX_REQUEST_N,
    MAX_WINDOW_BYTES,
    Credit,
    Demand,
    RangeReceiver,
    UploadReceiver,
    UploadSender,
)
from shared.protocol.messages import ChunkHead, DownloadRequest, Receipt, UploadEnd


def digest_of(content: bytes) -> Digest:
    digest = Digest()
    digest.update(content)
    return digest


# The ledgers


class DemandMachine(RuleBasedStateMachine):
    """An item is on its way, held by the consumer, or to be requested again; there is a window of them in all."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.missing = 0
        self.window = 0
        self.demand = Demand(1)

    @precondition(lambda self: not self.window)
    @rule(window=st.integers(1, 40))
    def begins(self, window: int) -> None:
        self.window = window
        self.demand = Demand(window)
        assert self.demand.requested == window, "all of it is requested at the start"

    @precondition(lambda self: self.window)
    @rule(count=st.integers(1, 40))
    def arrive(self, count: int) -> None:
        for _ in range(count):
            if not self.demand.outstanding:
                with pytest.raises(ProtocolError):
                    self.demand.on_arrived()
                return
            self.demand.on_arrived()
            self.held += 1

    @precondition(lambda self: self.window)
    @rule(count=st.integers(1, 40))
    def arrive_at_once(self, count: int) -> None:
        if count > self.demand.outstanding:
            with pytest.raises(ProtocolError):
                self.demand.on_arrived(count)
        else:
            self.demand.on_arrived(count)
            self.held += count

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def consumed(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, self.held))
        before = self.demand.outstanding
        more = self.demand.on_consumed(count)
        self.held -= count
        self.missing += count
        # At half a window and not before, all that is missing at once.
        assert more == (self.missing if 2 * self.missing >= self.window else 0)
        assert self.demand.outstanding == before + more
        self.missing -= more

    @invariant()
    def nothing_is_lost_or_made_up(self) -> None:
        if self.window:
            assert self.demand.outstanding + self.held + self.missing == self.window
            assert self.demand.arrived - self.demand.consumed == self.held

    @invariant()
    def it_never_runs_dry(self) -> None:
        """The sender may always continue for a consumer that holds nothing."""
        if self.window and not self.held:
            assert self.demand.outstanding


TestDemand = DemandMachine.TestCase
TestDemand.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class CreditMachine(RuleBasedStateMachine):
    """Items are sent that were requested, and no further ahead of what was confirmed than the window."""

    def __init__(self) -> None:
        super().__init__()
        self.requested = self.sent = 0
        self.unconfirmed: deque[int] = deque()
        self.window = math.inf
        self.credit = Credit()

    @precondition(lambda self: not self.requested)
    @rule(window=st.integers(1, 100))
    def begins(self, window: int) -> None:
        self.window = window
        self.credit = Credit(window)

    @rule(items=st.integers(-2, 50) | st.integers(MAX_REQUEST_N - 2, MAX_REQUEST_N))
    def granted(self, items: int) -> None:
        self.credit.grant(items)
        self.requested = min(self.requested + max(items, 0), self.sent + MAX_REQUEST_N)

    @precondition(lambda self: self.credit.available)
    @rule(nbytes=st.integers(0, 40))
    def sent_one(self, nbytes: int) -> None:
        assert self.sent < self.requested
        assert sum(self.unconfirmed) < self.window
        self.credit.take(nbytes)
        self.sent += 1
        self.unconfirmed.append(nbytes)

    @precondition(lambda self: self.unconfirmed)
    @rule(data=st.data())
    def confirmed(self, data: st.DataObject) -> None:
        for _ in range(data.draw(st.integers(1, len(self.unconfirmed)))):
            self.credit.confirmed_bytes += self.unconfirmed.popleft()

    @rule(window=st.integers(1, 100))
    def the_window_changes(self, window: int) -> None:
        """More may be sent already than a narrower one allows; then nothing is until it isn't."""
        self.credit.window_bytes = self.window = window

    @invariant()
    def nothing_is_lost_or_made_up(self) -> None:
        is_open = sum(self.unconfirmed) < self.window
        assert self.credit.available == (self.requested - self.sent if is_open else 0)
        assert self.credit.sent_bytes - self.credit.confirmed_bytes == sum(self.unconfirmed)


TestCredit = CreditMachine.TestCase
TestCredit.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_an_item_that_was_not_requested_is_not_taken() -> None:
    credit = Credit()
    credit.grant(1)
    credit.take(5)
    with pytest.raises(AssertionError):
        credit.take(5)


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


def receive(receiver: RangeReceiver, data: bytes, head: ChunkHead | None) -> None:
    """Takes an item as either engine does: first what it says, then its bytes."""
    if head is not None:
        receiver.on_head(head)
    receiver.on_bytes(len(data))


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
            receive(receiver, data, head)
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
    receive(receiver, b"ab", ChunkHead(FileInfo("n", 3, "e"), 0, 3))
    with pytest.raises(IntegrityError, match="2 of 3"):
        receiver.complete(None)


class DownloadMachine(RuleBasedStateMachine):
    """The ledgers of both ends of one download, with a link between them that is lost now and then."""

    CONTENT = bytes(range(200))

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.window = 1
        self.credit: Credit | None = None
        self.is_complete = False

    @precondition(lambda self: self.credit is None and not self.is_complete)
    @rule(window=st.integers(1, 8), nbytes=st.integers(1, 60))
    def connect(self, window: int, nbytes: int) -> None:
        request = DownloadRequest(len(self.written), None, "e" if self.written else None, digest_from=0)
        self.to_send = deque(served(self.CONTENT, request, list(range(0, 200, nbytes))))
        self.window = self.asked = window
        self.credit = Credit()
        self.demand = Demand(window)
        self.receiver = RangeReceiver("n", request)
        self.wire: deque[Item] = deque()
        self.held: deque[bytes] = deque()

    @precondition(lambda self: self.credit is not None and self.asked)
    @rule()
    def request_n_arrives(self) -> None:
        assert self.credit is not None
        self.credit.grant(self.asked)
        self.asked = 0

    @precondition(lambda self: self.credit is not None and self.to_send and self.credit.available)
    @rule()
    def send(self) -> None:
        assert self.credit is not None
        item = self.to_send.popleft()
        self.credit.take(len(item[0]))
        self.wire.append(item)

    @precondition(lambda self: self.credit is not None and self.wire)
    @rule()
    def item_arrives(self) -> None:
        data, head = self.wire.popleft()
        self.demand.on_arrived()
        receive(self.receiver, data, head)
        self.held.append(data)

    @precondition(lambda self: self.credit is not None and self.held)
    @rule(data=st.data())
    def consumed(self, data: st.DataObject) -> None:
        self._consume(data.draw(st.integers(1, len(self.held))))

    def _consume(self, count: int) -> None:
        for _ in range(count):
            self.written += self.held.popleft()
        self.asked += self.demand.on_consumed(count)
        if not (self.to_send or self.wire or self.held):
            assert self.receiver.complete(digest_of(self.written)).size == len(self.CONTENT)
            self.is_complete, self.credit = True, None

    @precondition(lambda self: self.credit is not None)
    @rule()
    def connection_is_lost(self) -> None:
        self.credit = None

    @precondition(lambda self: self.is_complete)
    @rule()
    def begins_again(self) -> None:
        self.written, self.is_complete = b"", False

    @invariant()
    def only_the_right_bytes_are_accepted(self) -> None:
        assert self.CONTENT.startswith(self.written)
        assert not self.is_complete or self.written == self.CONTENT

    @invariant()
    def credit_is_neither_lost_nor_made_up(self) -> None:
        if self.credit is not None:
            unused = self.credit.granted - self.credit.taken
            assert self.demand.outstanding == self.asked + unused + len(self.wire)

    @invariant()
    def the_client_holds_no_more_than_its_window(self) -> None:
        if self.credit is not None:
            assert self.demand.arrived - self.demand.consumed == len(self.held) <= self.window

    @invariant()
    def neither_side_waits_for_the_other(self) -> None:
        if self.credit is not None:
            assert self.asked or self.credit.available or self.wire or self.held

    def teardown(self) -> None:
        """However it has come: over a link that is sound from here on, it ends, with the right bytes."""
        if self.credit is None and not self.is_complete:
            self.connect(3, 30)
        while not self.is_complete:
            assert self.credit is not None
            if self.asked:
                self.request_n_arrives()
            elif self.to_send and self.credit.available:
                self.send()
            elif self.wire:
                self.item_arrives()
            else:
                self._consume(len(self.held))


TestDownload = DownloadMachine.TestCase
TestDownload.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


# Uploads


class UploadMachine(RuleBasedStateMachine):
    """A client and a server of one upload, and a link between them that loses, doubles and breaks what is on it.

    The server's store makes parts of a certain size durable, and only those; it announces them with its first receipt.
    """

    CONTENT = bytes(range(200))
    SERVER_WINDOW = 6

    def __init__(self) -> None:
        super().__init__()
        self.window = 3
        self.part = 1
        self.received = b""
        self.durable = 0
        self.published: bytes | None = None
        self.sender: UploadSender | None = None
        self.receiver: UploadReceiver | None = None
        self.is_tampered = False
        self.faults = self.attempts = 0
        self._cut()

    def _cut(self) -> None:
        """The connection is lost, with all that was on it and in the server's memory."""
        self.sender = self.receiver = None
        self.received = self.received[: self.durable]
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
    @rule(window=st.integers(1, 120), part=st.sampled_from([1, 1, 7, 50, 150]), has_size=st.booleans())
    def connect(self, window: int, part: int, has_size: bool) -> None:
        self.is_tampered = not self.CONTENT.startswith(self.received)  # by what an earlier attempt left
        self.window, self.part = max(window, part), part
        self.sender = UploadSender(window)
        size = len(self.CONTENT) if has_size else None
        self.receiver = UploadReceiver(len(self.received), size, "xxh3-128")
        self.demand = Demand(self.SERVER_WINDOW)
        self.receipt = Receipt(self.durable, window=None if part == 1 else part)
        self.asked = self.SERVER_WINDOW

    @precondition(lambda self: self.sender is not None and self.receipt is not None)
    @rule()
    def receipt_arrives(self) -> None:
        assert self.sender is not None
        assert self.receipt is not None
        receipt, self.receipt = self.receipt, None
        sender, is_first = self.sender, self.position is None

        def take() -> None:
            start = sender.on_receipt(receipt)
            assert (start is not None) == is_first
            if start is not None:
                self.position = start
            assert sender.committed == receipt.committed

        self._typed(take)

    @precondition(lambda self: self.asked)
    @rule()
    def request_n_arrives(self) -> None:
        assert self.sender is not None
        self.sender.credit.grant(self.asked)
        self.credit += self.asked
        self.asked = 0

    @precondition(lambda self: self.sender is not None and self.sender.may_send and not self.sender.is_ended)
    @rule(nbytes=st.integers(1, 60))
    def send(self, nbytes: int) -> None:
        assert self.sender is not None
        assert self.position is not None
        assert self.position - self.sender.committed < self.window
        data = self.CONTENT[self.position : self.position + nbytes]
        end = None if data else UploadEnd(len(self.CONTENT), digest_of(self.CONTENT).text())
        self.sender.credit.take(len(data))
        self.sender.is_ended = end is not None
        self.position += len(data)
        self.credit -= 1
        self.wire.append((data, end))

    @precondition(lambda self: self.wire)
    @rule()
    def item_arrives(self) -> None:
        item = self.wire.popleft()

        def take() -> None:
            assert self.receiver is not None
            if self.receiver.end is not None:
                raise InvalidRequest("an item follows the last one")
            self.demand.on_arrived()
            if item[1] is not None:
                self.receiver.on_end(item[1])
            self.stored_next.append(item)

        self._typed(take)

    @precondition(lambda self: self.stored_next)
    @rule(data=st.data())
    def server_stores(self, data: st.DataObject) -> None:
        self._store(data.draw(st.integers(1, len(self.stored_next))))

    def _store(self, count: int) -> None:
        self._typed(lambda: self._store_items(count))

    def _store_items(self, count: int) -> None:
        receiver = self.receiver
        assert receiver is not None
        for _ in range(count):
            data, _ = self.stored_next.popleft()
            receiver.on_bytes(len(data))
            self.received += data
        if not self.stored_next:
            # What a store that makes smaller parts durable has taken before stays durable.
            self.durable = max(self.durable, len(self.received) - len(self.received) % self.part)
        self.receipt = Receipt(self.durable)  # an older one that wasn't taken is left out
        self.asked += self.demand.on_consumed(count)
        if receiver.end is not None and not self.stored_next:
            self._commit(receiver.complete())

    def _commit(self, end: UploadEnd) -> None:
        if digest_of(self.received).text() == end.digest:
            self.published = self.received
        else:
            assert self.is_tampered
        self.durable = 0
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
        self.received, self.durable = b"", 0

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
        """All that was sent arrives, and then the client's COMPLETE: an error, unless the last item was there."""
        while self.wire and self.receiver is not None:
            self.item_arrives()
        if self.stored_next:
            self._store(len(self.stored_next))
        if self.receiver is not None:
            assert self.receiver.end is None, "else the upload would have been committed"
            with pytest.raises(IntegrityError):
                self.receiver.complete()
            self._cut()

    # What always holds

    @invariant()
    def only_the_right_bytes_are_published(self) -> None:
        assert self.published in (None, self.CONTENT)

    @invariant()
    def the_sender_is_within_its_window(self) -> None:
        if self.sender is None:
            return
        credit = self.sender.credit
        assert credit.granted - credit.taken == self.credit
        if self.position is None:
            assert not self.sender.may_send, "the server hasn't said where to begin"
        else:
            assert 0 <= credit.available <= self.credit
            assert self.sender.may_send == (credit.available > 0)
            assert self.sender.committed <= self.durable
            assert credit.window_bytes == self.window

    @invariant()
    def the_server_holds_no_more_than_it_asked_for(self) -> None:
        assert len(self.stored_next) <= self.SERVER_WINDOW

    @invariant()
    def credit_is_neither_lost_nor_made_up(self) -> None:
        if self.receiver is not None and not self.is_tampered:
            assert self.demand.outstanding == self.asked + self.credit + len(self.wire)

    @precondition(lambda self: self.published is None)
    @rule(steps=st.integers(1, 15))
    def a_while_passes(self, steps: int) -> None:
        """Both ends do what there is to do, so that the odd things happen at every depth."""
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
            if self.attempts > 1 and not self.CONTENT.startswith(self.received):
                self.the_part_expires()  # what the link broke before can't be completed
            self.connect(3, 50, has_size=True)
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
    sender.credit.grant(100)
    assert sender.on_receipt(Receipt(offset)) == offset
    for nbytes in sent:
        sender.credit.take(nbytes)
    least, most = offset, offset + sum(sent)
    for committed in receipts:
        if least <= committed <= most:
            assert sender.on_receipt(Receipt(committed)) is None
            least = committed
        else:
            with pytest.raises(ProtocolError):
                sender.on_receipt(Receipt(committed))
        assert sender.committed == least


@pytest.mark.parametrize(
    ("own", "announced", "in_force"),
    [
        (100, None, 100),
        (100, 50, 100),
        (100, 101, 101),
        (100, 2**40, MAX_WINDOW_BYTES),
        (MAX_WINDOW_BYTES, MAX_WINDOW_BYTES + 1, MAX_WINDOW_BYTES),
        (2 * MAX_WINDOW_BYTES, None, 2 * MAX_WINDOW_BYTES),
        (2 * MAX_WINDOW_BYTES, 50, 2 * MAX_WINDOW_BYTES),
    ],
)
def test_a_server_may_widen_the_window_within_a_bound(own: int, announced: int | None, in_force: int) -> None:
    sender = UploadSender(own)
    sender.credit.grant(100)
    sender.on_receipt(Receipt(0, window=announced))
    assert sender.credit.window_bytes == in_force
    sender.credit.take(in_force - 1)
    assert sender.may_send
    sender.credit.take(1)
    assert not sender.may_send
    sender.on_receipt(Receipt(1, window=2**40))  # only the first may
    assert sender.credit.window_bytes == in_force


def test_what_a_client_may_not_send() -> None:
    def receiver(size: int | None = None, algorithm: str | None = None) -> UploadReceiver:
        return UploadReceiver(0, size, algorithm)

    refusals: list[tuple[UploadReceiver, list[bytes | UploadEnd], type[TransferError]]] = [
        (receiver(), [UploadEnd(0, None), UploadEnd(0, None)], InvalidRequest),
        (receiver(1), [b"a", b"b"], IntegrityError),
        (receiver(2), [b"a", UploadEnd(1, None)], IntegrityError),
        (receiver(), [b"a", UploadEnd(2, None)], IntegrityError),
        (receiver(), [b"a"], IntegrityError),
        (receiver(algorithm="sha-256"), [UploadEnd(0, None)], InvalidRequest),
        (receiver(algorithm="sha-256"), [UploadEnd(0, "xxh3-128:00")], InvalidRequest),
    ]

    def take(side: UploadReceiver, items: list[bytes | UploadEnd]) -> None:
        for item in items:
            if isinstance(item, UploadEnd):
                side.on_end(item)
            else:
                side.on_bytes(len(item))
        side.complete()

    for side, items, refusal in refusals:
        with pytest.raises(refusal):
            take(side, items)
