"""The exception tree, and its mapping to ERROR frames and back."""

import inspect
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rsocket.error_codes import ErrorCode

from shared import errors
from shared.errors import TransferError, from_error_frame, is_retryable, to_protocol_error

CLASSES = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, TransferError) and value.__module__ == errors.__name__
]
ON_THE_WIRE = [error for error in CLASSES if error.code]


@pytest.mark.parametrize("error", ON_THE_WIRE)
def test_an_error_comes_back_as_it_was_sent(error: type[TransferError]) -> None:
    sent = to_protocol_error(error("it says: why"))
    assert sent.data == f"{error.code}: it says: why"
    received = from_error_frame(sent.error_code, sent.data.encode(), name="a.txt")
    assert type(received) is error
    assert (str(received), received.message, received.name) == ("it says: why", "it says: why", "a.txt")


def test_each_code_has_one_class() -> None:
    codes = [error.code for error in ON_THE_WIRE]
    assert len(set(codes)) == len(codes) == 19


@pytest.mark.parametrize("error", [e for e in CLASSES if not e.code])
def test_an_error_that_only_the_client_makes_is_sent_as_internal(error: type[TransferError]) -> None:
    assert to_protocol_error(error("secret")).data.startswith("internal: ")


@pytest.mark.parametrize("error", [KeyError("nope"), OSError(2, "No such file", "/etc/secret"), ValueError("SELECT *")])
def test_another_exception_is_sent_without_its_text(error: Exception) -> None:
    sent = to_protocol_error(error)
    assert sent.error_code == ErrorCode.APPLICATION_ERROR
    assert sent.data == "internal: the server failed to serve this request; its log says why"


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (0x201, b"not_found: no file named 'a'", errors.NotFound),
        (0x201, b"'a'", errors.RemoteError),
        (0x201, b"no_such_code: x", errors.RemoteError),
        (0x201, b"", errors.RemoteError),
        (0x204, b"what?", errors.InvalidRequest),
        (0x202, b"later", errors.ServerFull),
        (0x203, b"", errors.RemoteError),
        (0x101, b"not_found: x", errors.ConnectionLost),
        (0x102, b"", errors.ConnectionLost),
        (0x003, b"who are you?", errors.ConnectionFailed),
        (0x301, b"custom", errors.RemoteError),
        (0x201, b"\xff\xfe", errors.RemoteError),
    ],
)
def test_errors_of_other_implementations_are_typed_too(code: int, text: bytes, expected: type[TransferError]) -> None:
    assert type(from_error_frame(code, text)) is expected


@given(st.integers(0, 0xFFFFFFFF), st.binary(max_size=5000))
def test_any_error_frame_becomes_one_printable_line(code: int, data: bytes) -> None:
    error = from_error_frame(code, data)
    assert error.message
    assert error.message.isprintable()
    assert len(error.message) <= 2048 + 100


def test_retryable_are_transient_errors() -> None:
    assert {error.__name__ for error in CLASSES if error.retryable} == {
        "ConnectionFailed",
        "ConnectionLost",
        "ServerError",
        "ServerFull",
        "SourceChanged",
        "Stalled",
        "StorageUnavailable",
        "TooManyStreams",
    }
    assert is_retryable(errors.ConnectionLost("x"))
    assert not is_retryable(errors.ClientClosed("x"))
    assert not is_retryable(ValueError("x"))


def test_the_tree_in_the_modules_docstring_is_right() -> None:
    assert errors.__doc__ is not None
    drawn = {
        (match["name"], bool(match["star"]), match["code"] or "")
        for match in re.finditer(r"── (?P<name>\w+)(?P<star> \*)? *(?P<code>[a-z_]+$)?", errors.__doc__, re.MULTILINE)
    }
    assert drawn == {(error.__name__, error.retryable, error.code) for error in CLASSES if error is not TransferError}


def test_connection_errors_derive_from_the_builtin_ones() -> None:
    assert issubclass(errors.ConnectionFailed, ConnectionError)
    assert issubclass(errors.Stalled, TimeoutError)
