"""The reference has every public name."""

import re

import pytest

import rx_client
import rx_client.operators
import server
from shared import errors
from tests.docs.pages import DOCS

REFERENCE = "\n".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))
ERRORS = set(errors.__all__)  # the reference has them as `shared.errors`


@pytest.mark.parametrize("module", [rx_client, rx_client.operators, server], ids=lambda module: module.__name__)
def test_a_public_name_is_in_the_reference(module: object) -> None:
    name, names = getattr(module, "__name__", ""), set(getattr(module, "__all__", ()))
    described = set(re.findall(rf"^::: {re.escape(name)}\.(\w+)$", REFERENCE, re.MULTILINE))
    aliases = set(re.findall(r"^`(\w+) = ", REFERENCE, re.MULTILINE))
    assert names - described - aliases - ERRORS == set()
