"""The JSON messages: each comes back as it was, and no bytes get past the parser that aren't one."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import FileInfo, InvalidName, InvalidRequest
from shared.protocol.digest import algorithm_of
from shared.protocol.messages import (
    ChunkHead,
    DownloadRequest,
    FileRequest,
    ListRequest,
    MoveRequest,
    Receipt,
    UploadEnd,
    UploadRequest,
    chat_transfer_mimetype,
    check_upload_id,
    find_transfer,
    parse_info,
    transfer_metadata,
)
from shared.protocol.metadata import MetadataItem, build_metadata
from shared.protocol.wire import FRAGMENT_SIZE_BYTES

MESSAGES: list[Any] = [
    DownloadRequest,
    ChunkHead,
    UploadRequest,
    UploadEnd,
    Receipt,
    ListRequest,
    FileRequest,
    MoveRequest,
]

offsets = st.integers(0, 2**63 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)
algorithms = st.sampled_from(["xxh3-128", "sha-256"])
digests = st.builds("{}:{}".format, algorithms, st.text("0123456789abcdef", max_size=32))
upload_ids = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", fullmatch=True)
infos = st.builds(
    FileInfo,
    names,
    offsets,
    st.none() | texts,
    st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**60), 2**60),
    st.none() | digests,
)
messages = st.one_of(
    st.builds(
        DownloadRequest, offsets, st.none() | offsets, st.none() | texts, st.none() | algorithms, st.none() | offsets
    ),
    st.builds(ChunkHead, infos, offsets, offsets, st.none() | digests),
    st.builds(
        UploadRequest,
        upload_ids,
        st.none() | offsets,
        st.none() | algorithms,
        st.booleans(),
        st.booleans(),
        st.none() | upload_ids,
        st.none() | offsets,
    ),
    st.builds(UploadEnd, offsets, st.none() | digests),
    st.builds(Receipt, offsets, st.none() | infos),
    st.builds(ListRequest, st.booleans(), texts),
    st.builds(FileRequest, st.none() | texts, st.none() | upload_ids),
    st.builds(MoveRequest, names, st.booleans(), st.none() | texts),
)
# What an adversary would write: the right keys with anything for a value.
fields = sorted({field.name for kind in [*MESSAGES, FileInfo] for field in dataclasses.fields(kind)})
keys = st.sampled_from(fields)
sane_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


def metadata(*contents: bytes) -> bytes:
    return build_metadata([MetadataItem(chat_transfer_mimetype, content) for content in contents])


@given(message=messages)
@settings(max_examples=300, deadline=None)
def test_a_message_comes_back_as_it_was(message: Any) -> None:
    said = find_transfer(transfer_metadata(message))
    assert said is not None
    assert type(message).from_json(said) == message


@given(info=infos)
@settings(max_examples=100, deadline=None)
def test_an_info_comes_back_as_it_was(info: FileInfo) -> None:
    assert parse_info(transfer_metadata(info)) == info


@given(raw=st.binary(max_size=80))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_an_object_or_refused(raw: bytes) -> None:
    try:
        said = find_transfer(metadata(raw))
    except InvalidRequest:
        return
    assert isinstance(said, dict)


@given(raw=st.binary(max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_metadata_is_parsed_or_refused(raw: bytes) -> None:
    try:
        find_transfer(raw)
    except InvalidRequest:
        pass


@pytest.mark.parametrize("kind", MESSAGES)
@given(said=st.dictionaries(keys, sane_json, max_size=8))
@settings(max_examples=150, deadline=None)
def test_any_object_is_a_message_or_refused(kind: Any, said: dict[str, Any]) -> None:
    found = find_transfer(metadata(json.dumps(said).encode()))
    assert found is not None
    try:
        message = kind.from_json(found)
    except (InvalidRequest, InvalidName):
        return
    assert type(message).from_json(message.to_json()) == message


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"1",
        b'"text"',
        b"null",
        b"{",
        b"{}}",
        b"\xff\xfe",
        b"{'a': 1}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"offset": %s}' % (b"9" * 5000),
    ],
)
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest):
        find_transfer(metadata(raw))


def test_two_items_are_refused_and_none_is_none() -> None:
    with pytest.raises(InvalidRequest, match="more than one"):
        find_transfer(metadata(b"{}", b"{}"))
    assert find_transfer(b"") is None
    assert find_transfer(build_metadata([MetadataItem(b"text/other", b"[")])) is None


@pytest.mark.parametrize("value", [-1, 2**63, 1.0, 1.5, True, "1", [1], {}, float("nan"), float("inf")])
def test_numbers_are_numbers(value: Any) -> None:
    for kind, said in (
        (DownloadRequest, {"offset": value}),
        (DownloadRequest, {"length": value}),
        (DownloadRequest, {"digest_from": value}),
        (UploadRequest, {"upload_id": "i", "size": value}),
        (UploadEnd, {"size": value, "digest": None}),
        (Receipt, {"committed": value}),
        (ChunkHead, {"name": "n", "size": 1, "offset": value, "length": 1}),
    ):
        with pytest.raises(InvalidRequest, match="whole number"):
            kind.from_json(json.loads(json.dumps(said)))


@pytest.mark.parametrize("upload_id", ["", ".", ".a", "a/b", "../x", "a b", "a\n", "a\0", "ä", "a" * 129, "٣"])
def test_upload_ids_are_safe_words(upload_id: str) -> None:
    with pytest.raises(InvalidRequest, match="upload_id"):
        check_upload_id(upload_id)


@pytest.mark.parametrize("digest", ["", "abc", "md5:00", ":", "XXH3-128:00"])
def test_digests_say_an_algorithm_that_we_know(digest: str) -> None:
    with pytest.raises(InvalidRequest):
        algorithm_of(digest)
    with pytest.raises(InvalidRequest):
        UploadEnd.from_json({"size": 0, "digest": digest})


def test_the_longest_name_leaves_room_for_the_largest_chunk() -> None:
    from shared.protocol.messages import MAX_CHUNK_BYTES

    # Four bytes of UTF-8 each, and twelve as JSON escapes; an etag as long as a digest, and both digests.
    name = "\N{GRINNING FACE}" * 256
    digest = "sha-256:" + "0" * 64
    head = ChunkHead(FileInfo(name, 2**63 - 1, digest, 1e300 / 3, digest), 2**63 - 1, 2**63 - 1, digest)
    assert len(transfer_metadata(head)) + MAX_CHUNK_BYTES < FRAGMENT_SIZE_BYTES - 64
