"""What pages call by a path or a module's name is there in the code."""

import ast
import re
from collections.abc import Iterator

import pytest

from cluster.staging import PACKAGES
from tests.docs.pages import OF_THE_PRODUCT, ROOT, Page

OURS = "|".join(PACKAGES)
PATH = re.compile(rf"`((?:{OURS}|tests)/[\w./*-]*)`")
MEMBER = re.compile(rf"\b((?:{OURS})(?:\.\w+)+):(\w+)")
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def paths(text: str) -> Iterator[str]:
    """Paths from the repository's root; an X in one stands for any name."""
    yield from (one for one in PATH.findall(text) if "X" not in one.split("/"))


def members(text: str) -> Iterator[tuple[str, str]]:
    """Modules and what a page takes out of them."""
    yield from MEMBER.findall(text)
    for block in PYTHON.findall(text):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
                yield from ((str(node.module), one.name) for one in node.names)


def has(module: str, name: str) -> bool:
    """Whether a module of ours defines a name or imports it; nothing is imported for that."""
    file = ROOT / f"{module.replace('.', '/')}.py"
    if not file.is_file():
        return False
    known = {name for node in ast.parse(file.read_text()).body for name in _names(node)}
    return name in known


def _names(node: ast.stmt) -> Iterator[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Assign(targets=targets):
            yield from (one.id for one in targets if isinstance(one, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name
        case ast.ImportFrom(names=names):
            yield from (one.asname or one.name for one in names)


@pytest.mark.parametrize("page", OF_THE_PRODUCT, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Page) -> None:
    text = page.path.read_text()
    gone = [path for path in paths(text) if not any(ROOT.glob(path.rstrip("/")))]
    gone += [f"{module}:{name}" for module, name in members(text) if not has(module, name)]
    assert not gone


def test_what_is_gone_is_found_out() -> None:
    text = "`workers/none.py` `orchestrator.serve.none:build` `workers/train/ray_*.py`"
    assert [one for one in paths(text) if not any(ROOT.glob(one))] == ["workers/none.py"]
    assert not any(has(module, name) for module, name in members(text))
    assert has("cluster.staging", "PACKAGES")
    assert not has("cluster.staging", "NONE")
    assert [*members("```python\nfrom workers.none import one\n```\n")] == [("workers.none", "one")]
