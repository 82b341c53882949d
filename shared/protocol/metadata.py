"""The composite metadata of a request: a strict parser and a builder.

rsocket's parser accepts a truncated item as a shorter one, and takes the first of two file names, so a file could be
stored under a wrong name. This one refuses with `InvalidRequest` what isn't well-formed to the last byte. The names are
checked by `shared.protocol.wire.check_name`.

Layout of an item: a byte (1 bit "well known", 7 bits id or length - 1), the mimetype's bytes unless it is well known,
a 24-bit length, the content.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import InvalidRequest

__all__ = [
    "AUTHENTICATION_MIMETYPE",
    "ROUTING_MIMETYPE",
    "MetadataItem",
    "build_bearer",
    "build_metadata",
    "build_routing",
    "build_simple",
    "parse_authentication",
    "parse_metadata",
    "parse_routing",
]

ROUTING_MIMETYPE = b"message/x.rsocket.routing.v0"
AUTHENTICATION_MIMETYPE = b"message/x.rsocket.authentication.v0"

# Those that are built or looked for; the mimetype of every other well-known id is parsed as `#id`.
_WELL_KNOWN_NAMES = {0x7C: AUTHENTICATION_MIMETYPE, 0x7E: ROUTING_MIMETYPE}
_WELL_KNOWN_IDS = {name: number for number, name in _WELL_KNOWN_NAMES.items()}
_WELL_KNOWN_BIT = 0x80
_MAX_MIMETYPE_BYTES = 128
_MAX_CONTENT_BYTES = 0xFFFFFF
_MAX_TAG_BYTES = 255
_SIMPLE, _BEARER = b"\x80", b"\x81"


@dataclass(frozen=True, slots=True)
class MetadataItem:
    """One item of composite metadata: its mimetype and its content, as on the wire."""

    mimetype: bytes
    content: bytes


def parse_metadata(metadata: bytes | bytearray | memoryview) -> list[MetadataItem]:
    """The items of `metadata`, in order; raises InvalidRequest if it ends in the middle of one."""
    data = bytes(metadata)
    items: list[MetadataItem] = []
    offset = 0
    while offset < len(data):
        head = data[offset]
        offset += 1
        if head & _WELL_KNOWN_BIT:
            number = head & ~_WELL_KNOWN_BIT
            mimetype = _WELL_KNOWN_NAMES.get(number, b"#%d" % number)
        else:
            mimetype, offset = _take(data, offset, head + 1, "a mimetype")
        length, offset = _take(data, offset, 3, "an item's length")
        content, offset = _take(data, offset, int.from_bytes(length, "big"), "an item")
        items.append(MetadataItem(mimetype, content))
    return items


def build_metadata(items: Iterable[MetadataItem]) -> bytes:
    """The composite metadata of `items`; raises ValueError if a mimetype is empty, or it or a content is too long."""
    parts: list[bytes] = []
    for item in items:
        number = _WELL_KNOWN_IDS.get(item.mimetype)
        if number is not None:
            parts.append(bytes([_WELL_KNOWN_BIT | number]))
        elif 1 <= len(item.mimetype) <= _MAX_MIMETYPE_BYTES:
            parts.append(bytes([len(item.mimetype) - 1]) + item.mimetype)
        else:
            raise ValueError(f"a mimetype has 1 to {_MAX_MIMETYPE_BYTES} bytes, not {len(item.mimetype)}")
        if len(item.content) > _MAX_CONTENT_BYTES:
            raise ValueError(f"a metadata item has at most {_MAX_CONTENT_BYTES} bytes, not {len(item.content)}")
        parts.append(len(item.content).to_bytes(3, "big"))
        parts.append(item.content)
    return b"".join(parts)


def parse_routing(items: Sequence[MetadataItem]) -> str:
    """A request's route: the first tag of its routing item.

    Raises:
        InvalidRequest: There isn't exactly one routing item, or it is truncated, empty or not UTF-8.
    """
    routings = [item.content for item in items if item.mimetype == ROUTING_MIMETYPE]
    if len(routings) != 1:
        raise InvalidRequest(f"a request has exactly one {ROUTING_MIMETYPE.decode()} item, not {len(routings)}")
    tags: list[bytes] = []
    offset = 0
    while offset < len(routings[0]):
        length = routings[0][offset]
        tag, offset = _take(routings[0], offset + 1, length, "a routing tag")
        tags.append(tag)
    if not tags or not tags[0]:
        raise InvalidRequest("the routing item names no route")
    try:
        return tags[0].decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest("the route is not UTF-8") from None


def build_routing(route: str) -> MetadataItem:
    """The routing item of `route`; raises ValueError if it doesn't have 1 to 255 bytes."""
    tag = route.encode("utf-8")
    if not 1 <= len(tag) <= _MAX_TAG_BYTES:
        raise ValueError(f"a route has 1 to {_MAX_TAG_BYTES} bytes, not {len(tag)}")
    return MetadataItem(ROUTING_MIMETYPE, bytes([len(tag)]) + tag)


def build_simple(username: str, password: str) -> MetadataItem:
    """The authentication item of a user name and a password; raises ValueError if the name has over 65,535 bytes."""
    name = username.encode()
    if len(name) > 0xFFFF:
        raise ValueError(f"a user name has at most {0xFFFF} bytes, not {len(name)}")
    content = _SIMPLE + len(name).to_bytes(2, "big") + name + password.encode()
    return MetadataItem(AUTHENTICATION_MIMETYPE, content)


def build_bearer(token: str) -> MetadataItem:
    """The authentication item of a bearer token."""
    return MetadataItem(AUTHENTICATION_MIMETYPE, _BEARER + token.encode())


def parse_authentication(content: bytes) -> tuple[str, bytes]:
    """The user's name and password in an authentication item; a bearer token is `NAME:PASSWORD`.

    Raises:
        InvalidRequest: It is truncated, not UTF-8, or of another type than `simple` or `bearer`.
    """
    kind, rest = content[:1], content[1:]
    if kind and not kind[0] & _WELL_KNOWN_BIT:
        name, offset = _take(content, 1, kind[0] + 1, "an authentication type")
        kind, rest = {b"simple": _SIMPLE, b"bearer": _BEARER}.get(name), content[offset:]
    try:
        if kind == _SIMPLE:
            length, offset = _take(rest, 0, 2, "a user name's length")
            username, offset = _take(rest, offset, int.from_bytes(length, "big"), "a user name")
            return username.decode("utf-8"), rest[offset:]
        if kind == _BEARER:
            username, _, password = rest.partition(b":")
            return username.decode("utf-8"), password
    except UnicodeDecodeError:
        raise InvalidRequest("a user name must be UTF-8") from None
    raise InvalidRequest("the authentication must be `simple` or `bearer`")


def _take(data: bytes, offset: int, length: int, what: str) -> tuple[bytes, int]:
    end = offset + length
    if end > len(data):
        raise InvalidRequest(f"the metadata ends in the middle of {what}: {end - len(data)} bytes are missing")
    return data[offset:end], end
