"""Whether a folder of lm-eval's task files is data alone: what in it would run code is refused.

lm-eval imports what `!function` names, runs scripts of metrics that it does not know, and renders
templates without a sandbox. A template may reach the values of a row, which are data, and call
methods of theirs that no module has a dangerous namesake of (`|replace` is there for `.replace`);
what is Jinja's own, or leads from a value to its class, leads to Python.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, TemplateSyntaxError, nodes

from workers.config.base import InputError, one_line

FLAG = "--run-task-code"
CODE_FIELDS = (
    *("class", "custom_dataset", "hf_evaluate", "trust_remote_code", "unsafe_code", "use_prompt"),
)
"""Fields that lead to code unless they are empty."""
METHODS = (
    *("capitalize", "lower", "lstrip", "rstrip", "strip", "title", "upper", "zfill"),
    *("join", "partition", "rpartition", "rsplit", "split", "splitlines"),
    *("count", "endswith", "find", "index", "startswith"),
    *("items", "keys", "values"),
)
JINJAS = (
    *("caller", "cycler", "dict", "joiner", "lipsum"),
    *("loop", "namespace", "range", "self", "super"),
)
"""Names of a template that are objects of Python."""
PATTERNS = ("*.yaml", "*.yml")


def check_task_files(folder: Path, own_tasks: Path, metrics: frozenset[str]) -> None:
    """InputError for the first file that would run code. It may include files of the folder and of
    `own_tasks` (lm-eval's), and name these metrics."""
    files = sorted(file for pattern in PATTERNS for file in folder.rglob(pattern))
    if not files:
        raise InputError(f"--tasks-folder {folder}: holds no YAML file")
    looked_at = frozenset(file.resolve() for file in files)
    for file in files:
        rules = _Rules(file, looked_at, own_tasks.resolve(), metrics)
        for found in rules.code(_read(file)):
            raise InputError(f"{file}: {found}, which runs code; allow it with {FLAG}")


class _Loader(yaml.SafeLoader):
    """Keeps what a tag of lm-eval's names, without importing it."""


class _Function(str):
    """What stands behind `!function`."""


_Loader.add_constructor("!function", lambda _, node: _Function(node.value))


def _read(file: Path) -> Any:
    try:
        return yaml.load(file.read_text(), _Loader)  # noqa: S506 (safe, and one tag)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{file}: cannot be read as YAML: {one_line(error)}") from None


@dataclass(frozen=True)
class _Rules:
    """What a file may name."""

    file: Path
    looked_at: frozenset[Path]
    own_tasks: Path
    metrics: frozenset[str]

    def code(self, value: Any) -> Iterator[str]:
        """What in a value would run code, in words."""
        if isinstance(value, list):
            for one in value:
                yield from self.code(one)
        elif isinstance(value, dict):
            for name, one in value.items():
                yield from self._field(name, one)
                yield from self.code(name)
                yield from self.code(one)
        elif isinstance(value, _Function):
            yield f"has !function {value}"
        elif isinstance(value, str):
            yield from _templates(value, self.file)

    def _field(self, name: Any, value: Any) -> Iterator[str]:
        if name in CODE_FIELDS and value:
            yield f"has {name}"
        if name == "metric" and type(value) is str and value not in self.metrics:
            yield f"has the metric {value!r}, which is none of lm-eval's own"
        if name == "include":
            yield from self._included(value)

    def _included(self, value: Any) -> Iterator[str]:
        for one in value if isinstance(value, list) else [value]:
            path = (self.file.resolve().parent / str(one)).resolve()
            if path not in self.looked_at and not path.is_relative_to(self.own_tasks):
                yield f"includes {one}, which is no YAML file of the folder"


def _templates(text: str, file: Path) -> Iterator[str]:
    if "{" not in text:
        return
    try:
        parsed = Environment(autoescape=False).parse(text)  # noqa: S701 (nothing is rendered)
    except TemplateSyntaxError as error:
        raise InputError(f"{file}: has a wrong template: {one_line(error)}") from None
    if any(map(_leads_to_python, parsed.find_all(nodes.Node))):
        yield f"has a template that may reach Python: {text[:60]!r}"


def _leads_to_python(node: nodes.Node) -> bool:
    match node:
        case nodes.Call(node=nodes.Getattr(attr=name)):
            return name not in METHODS
        case nodes.Name(name=name):
            return name in JINJAS
        case nodes.Filter(name=name):
            return name == "attr"
        case nodes.Getattr(attr=name):
            return name.startswith("_")
    return isinstance(node, nodes.Call | nodes.CallBlock | nodes.Macro)
