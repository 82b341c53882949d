"""The URIs of servers: what is wrong with one is said, and a password in it isn't repeated."""

import traceback

import pytest

from rx_client import FileClient, parse_uri


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("tcp://localhost", ("localhost", 6565)),
        ("tcps://files.example:1", ("files.example", 1)),
        ("tcp://127.0.0.1:65535/", ("127.0.0.1", 65535)),
        ("tcp://[::1]:7", ("::1", 7)),
        ("TCP://under_score", ("under_score", 6565)),
    ],
)
def test_a_uri(uri: str, expected: tuple[str, int]) -> None:
    assert parse_uri(uri) == expected


PASSWORDS = [
    "tcp://alice:s3cret@localhost",
    "tcp://alice:s3cret@localhost:6565",
    "tcp://s3cret@localhost",
    "tcp://:s3cret@localhost",
    "tcp://alice:s3c/s3cret@localhost",
    "tcp://alice:s3cret#s3cret@localhost",
    "tcp://alice:s3cret@localhost@there",
    "tcp://alice:s3cret@[::1",
    "tcp://alice:s3cret%40@localhost:x",
    "http://alice:s3cret@localhost",
    "alice:s3cret@localhost",
    "tcp://alice:s3cret\u2100@localhost",
]


@pytest.mark.parametrize("uri", PASSWORDS)
async def test_a_password_is_not_repeated_and_its_place_is_said(uri: str) -> None:
    with pytest.raises(ValueError, match=r"auth=\(name, password\)") as raised:
        async with FileClient.connect(uri):
            pass
    assert "s3c" not in "".join(traceback.format_exception(raised.value, chain=True)).replace(repr(uri), "")
    assert "s3c" not in str(raised.value)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


@pytest.mark.parametrize(
    "uri",
    [
        "tcp://localhost?password=s3cret",
        "tcp://localhost#s3cret",
        "tcp://alice:s3cret",
        "tcp://localhost:s3cret/",
        "tcp://[s3cret]",
        "tcp://[s3cret",
        "tcp://local\u2100host/s3cret",
        "tcp://localhost/;s3cret",
    ],
)
def test_what_may_be_a_password_is_not_repeated(uri: str) -> None:
    with pytest.raises(ValueError) as raised:
        parse_uri(uri)
    assert "s3cret" not in str(raised.value)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("http://localhost:1", "'http://localhost:1' is not of the form tcp://HOST[:PORT] or tcps://HOST[:PORT]"),
        ("localhost", "'localhost' is not of the form"),
        ("localhost:6565", "'localhost:6565' is not of the form"),
        ("", "'' is not of the form"),
        ("tcp://", "'tcp://' is not of the form"),
        ("tcp://localhost:65536", "'tcp://localhost:65536' has no valid port"),
        ("tcp://localhost:0", "'tcp://localhost:0' has no valid port"),
        ("tcp://localhost:x", "the URI has no valid port"),
        ("tcp://a..b", "'tcp://a..b' is not of the form"),
        ("tcp://" + "a" * 64, "there can't be such a host"),
    ],
)
def test_what_is_no_uri(uri: str, text: str) -> None:
    with pytest.raises(ValueError) as raised:
        parse_uri(uri)
    assert text in str(raised.value)


@pytest.mark.parametrize("uri", [None, b"tcp://localhost", 6565])
async def test_what_is_no_text_is_a_type_error(uri: object) -> None:
    with pytest.raises(TypeError):
        async with FileClient.connect(uri):  # type: ignore[arg-type]
            pass
