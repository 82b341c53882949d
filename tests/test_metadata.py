"""The composite metadata codec: it parses what it builds and what rsocket builds, and refuses what is malformed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rsocket.extensions.helpers import composite, metadata_item, route

from shared import InvalidName, InvalidRequest
from shared.protocol.metadata import (
    ROUTING_MIMETYPE,
    MetadataItem,
    build_metadata,
    build_routing,
    parse_metadata,
    parse_routing,
)
from shared.protocol.wire import (
    chat_filename_mimetype,
    check_name,
    decode_name,
    encode_name,
    parse_name,
    request_metadata,
)

mimetypes = st.binary(min_size=1, max_size=128)
items = st.lists(st.builds(MetadataItem, mimetypes, st.binary(max_size=300)), max_size=6)
names = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=200)


@given(items)
def test_what_is_built_is_parsed(given_items: list[MetadataItem]) -> None:
    assert parse_metadata(build_metadata(given_items)) == given_items


@given(items, st.data())
def test_truncated_metadata_is_refused_or_ends_between_items(
    given_items: list[MetadataItem], data: st.DataObject
) -> None:
    built = build_metadata(given_items)
    cut = data.draw(st.integers(0, len(built)))
    ends = {len(build_metadata(given_items[:count])) for count in range(len(given_items) + 1)}
    if cut in ends:
        assert build_metadata(parse_metadata(built[:cut])) == built[:cut]
    else:
        with pytest.raises(InvalidRequest, match="missing"):
            parse_metadata(built[:cut])


@given(st.binary(max_size=64))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    try:
        parsed = parse_metadata(data)
    except InvalidRequest:
        return
    assert sum(len(item.content) + 4 for item in parsed) <= len(data) + 3 * len(parsed)


@given(names)
def test_what_rsocket_builds_is_parsed(name: str) -> None:
    built = composite(route("file.upload"), metadata_item(name.encode(), chat_filename_mimetype))
    assert built == request_metadata("file.upload", name)
    parsed = parse_metadata(built)
    assert parse_routing(parsed) == "file.upload"
    assert parse_name(parsed) == name


@given(names)
def test_a_name_survives_the_wire(name: str) -> None:
    if len(name.encode()) <= 1024:
        assert decode_name(encode_name(name)) == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (b"", "empty"),
        (b"\xff\xfe", "UTF-8"),
        (b"a\x00b", "U\\+0000"),
        (b"a\nb", "U\\+000A"),
        (b"\x7f", "U\\+007F"),
        ("\u0085".encode(), "U\\+0085"),
        (b"x" * 1025, "1025"),
        (("ü" * 513).encode(), "1026"),
    ],
)
def test_a_bad_name_is_refused_and_the_text_says_why(name: bytes, reason: str) -> None:
    with pytest.raises(InvalidName, match=reason):
        parse_name([MetadataItem(chat_filename_mimetype, name)])


@pytest.mark.parametrize("name", ["x" * 1024, "ü" * 512, "../x", "CON", "a b", ".", "naïve.txt", "\u202egnp.exe", "🙂"])
def test_every_other_name_is_accepted(name: str) -> None:
    assert check_name(name) == name


def test_a_name_with_lone_surrogates_is_refused() -> None:
    with pytest.raises(InvalidName, match="surrogates"):
        check_name("a\udc80")


@pytest.mark.parametrize("count", [0, 2])
def test_a_request_has_one_name(count: int) -> None:
    with pytest.raises(InvalidRequest, match=f"not {count}"):
        parse_name([MetadataItem(chat_filename_mimetype, b"a")] * count)


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ([], "not 0"),
        ([b"\x01a", b"\x01b"], "not 2"),
        ([b""], "names no route"),
        ([b"\x00"], "names no route"),
        ([b"\x05ab"], "missing"),
        ([b"\x01\xff"], "UTF-8"),
    ],
)
def test_a_request_has_one_route(contents: list[bytes], reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        parse_routing([MetadataItem(ROUTING_MIMETYPE, content) for content in contents])


def test_the_first_tag_is_the_route() -> None:
    assert parse_routing([MetadataItem(ROUTING_MIMETYPE, b"\x01a\x02bc")]) == "a"


@pytest.mark.parametrize("mimetype", [b"", b"x" * 129])
def test_a_mimetype_has_1_to_128_bytes(mimetype: bytes) -> None:
    with pytest.raises(ValueError, match="128"):
        build_metadata([MetadataItem(mimetype, b"")])


@pytest.mark.parametrize("name", ["", "x" * 256])
def test_a_route_has_1_to_255_bytes(name: str) -> None:
    with pytest.raises(ValueError, match="255"):
        build_routing(name)


def test_an_unknown_well_known_id_is_parsed_as_its_number() -> None:
    assert parse_metadata(b"\x81\x00\x00\x02hi") == [MetadataItem(b"#1", b"hi")]
