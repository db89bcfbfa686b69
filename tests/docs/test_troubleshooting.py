"""docs/troubleshooting.md lists messages that the code really has."""

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from cluster.staging import PACKAGES
from tests.docs.pages import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
GAP = "…"
"""What stands for a value, in the page and here."""
PYDANTIC = "Input should be …, not …"
"""Its beginning is pydantic's."""


def headings() -> list[str]:
    return re.findall(r"^### `(.*)`$", PAGE.read_text(), re.MULTILINE)


@cache
def texts() -> tuple[str, ...]:
    """All texts of the code, with a gap for each value that is put into them."""
    paths = (path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py")))
    return tuple(text for path in paths for text in _texts(ast.parse(path.read_text())))


def _texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                part.value if isinstance(part, ast.Constant) else GAP for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def is_said(message: str) -> bool:
    """Whether the words of a message stand in one text of the code, in this order."""
    words = [re.escape(part.strip()) for part in message.split(GAP) if part.strip(" :;?.,()")]
    pattern = re.compile(".*".join(words), re.DOTALL)
    return any(pattern.search(text) for text in texts())


@pytest.mark.parametrize("message", [one for one in headings() if one != PYDANTIC])
def test_a_message_of_the_page_is_one_of_the_code(message: str) -> None:
    assert is_said(message), f"no text of the code says: {message}"


def test_what_no_code_says_is_found_out() -> None:
    assert not is_said("the disk is full of …, wanted are … cheeses")


def test_the_page_is_read() -> None:
    assert len(headings()) > 40
    assert PYDANTIC in headings()
