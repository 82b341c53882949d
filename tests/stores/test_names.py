"""The encoding of names: injective however a file system folds, safe everywhere, reversible."""

import re
import unicodedata

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from server.stores.directory.names import decode, encode, fingerprint, fingerprint_in, is_entry, path_of
from shared.errors import InvalidName
from shared.protocol.wire import check_name

from .support import NAMES


def _is_name(text: str) -> bool:
    try:
        check_name(text)
    except InvalidName:
        return False
    return True


# Few letters, so that two names that differ only a little do come up.
_tricky = st.text("aAbB./\\ %=~0123äÄ\u0308eé\u0301\u017fsSßKk\N{KELVIN SIGN}\u200b", max_size=200).filter(_is_name)
_any = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=1024).filter(_is_name)
_names = _tricky | _any | st.sampled_from(NAMES)


def _forms(entry: str) -> set[str]:
    """What file systems may make of an entry."""
    cases = {entry, entry.lower(), entry.upper(), entry.casefold()}
    return {unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD") for text in cases}


@given(_names)
@example("~" + "0" * 64)
@example("a." * 63)
@example("a" * 126)
@example("a" * 127)
def test_an_entry_is_safe_and_reversible(name: str) -> None:
    entry = encode(name)

    assert re.fullmatch(r"[=~][a-z0-9_.%-]+", entry)
    assert not entry.endswith(".")
    assert len(entry) <= 128
    if (key := fingerprint_in(entry)) is not None:
        assert key == fingerprint(name)
        assert decode(entry) is None
    else:
        assert decode(entry) == name


@given(_names, _names)
def test_no_two_names_share_an_entry(one: str, other: str) -> None:
    assume(one != other)

    assert not _forms(encode(one)) & _forms(encode(other))


@given(st.text("=~%0123abcdef.A/", max_size=150) | st.text(max_size=150))
def test_only_encoded_names_decode(entry: str) -> None:
    name = decode(entry)
    if name is not None:
        assert encode(name) == entry
        check_name(name)


def test_entries_with_capitals_belong_to_no_name() -> None:
    assert decode("=a%2Fb") is None
    assert decode("=A") is None
    assert decode("=%61") is None
    assert fingerprint_in("~" + "A" * 64) is None
    assert fingerprint_in("~" + "a" * 63) is None


@pytest.mark.parametrize(
    "name", ["a.txt", "README.md", "Grüße.txt", "日本語.txt", "two words", "-rf", "a~", "x" * 255, "=a", "a&c"]
)
@pytest.mark.parametrize("is_windows", [False, True])
def test_ordinary_names_can_be_entries(name: str, is_windows: bool) -> None:
    assert is_entry(name, is_windows=is_windows)


@pytest.mark.parametrize(
    "name", ["...", ".hidden", ".rxfiles", "a.", "a ", " a", "a\\b", "a:b", "*", "CON", "nul.txt", "a\u200b"]
)
def test_other_names_can_be_entries_where_no_other_system_reads_them(name: str) -> None:
    assert is_entry(name, is_windows=False)


@pytest.mark.parametrize("name", ["", ".", "..", "x" * 256, "ä" * 128])
@pytest.mark.parametrize("is_windows", [False, True])
def test_names_that_can_be_no_entry(name: str, is_windows: bool) -> None:
    assert not is_entry(name, is_windows=is_windows)


@pytest.mark.parametrize(
    "name",
    [
        *("...", "a.", "a ", "a/b", "a\\b", "a:b", "a|b", 'a"b', "<a>", "a?", "*"),
        *("CON", "con.txt", "Con .txt", "nul", "LPT9.log", "COM¹", "conout$", "PROGRA~1"),
        *("a\u200b", "\u202ea", "a\u00a0", "a\u2028b", "\ue000"),
    ],
)
def test_names_that_windows_refuses_or_obeys(name: str) -> None:
    assert not is_entry(name, is_windows=True)


@given(_names)
def test_a_path_has_no_segment_that_leads_elsewhere(name: str) -> None:
    path = path_of(name)
    if path is not None:
        assert "/".join(path) == name
        assert not {"", ".", ".."} & set(path)
        assert all("/" not in segment and "\0" not in segment for segment in path)
        assert max(len(segment.encode()) for segment in path) <= 255
