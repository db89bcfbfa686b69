"""What the product imports is declared, and what is declared is imported."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OURS = ("cluster", "orchestrator", "search_spaces", "workers")
BY_OTHERS = {
    "accelerate": "transformers' device_map",
    "bitsandbytes": "transformers, for quantised bases",
    "gguf": "transformers, for the demo's base",
}
"""Declared, though only a library of ours imports them."""


def imported() -> Iterator[str]:
    """Top modules of others that the product names, also inside functions."""
    for file in (file for top in OURS for file in (ROOT / top).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Import(names=names):
                    found = [name.name for name in names]
                case ast.ImportFrom(module=str(module), level=0):
                    found = [module]
                case _:
                    found = []
            yield from (name.partition(".")[0] for name in found)


def plain(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    products = [name for name in extras if name not in ("dev", "postgres")]
    listed = [*project["dependencies"], *(one for name in products for one in extras[name])]
    return {plain(re.match(r"[\w.-]+", one)[0]) for one in listed}  # type: ignore[index]


def test_what_is_imported_is_declared_and_the_other_way_round() -> None:
    theirs = {*imported()} - {*OURS, *sys.stdlib_module_names}
    known = packages_distributions()
    wanted = {plain(name) for one in theirs for name in known.get(one, [one])}
    assert wanted - declared() == set(), "imported, but not declared"
    assert declared() - wanted - {*BY_OTHERS} == set(), "declared for nothing"
