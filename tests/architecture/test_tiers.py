"""A case that starts a process, a cluster or a browser takes a fixture that puts it in a tier."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.tiers import TIERS

ROOT = Path(__file__).resolve().parents[2]
STARTERS = {
    *(f"subprocess.{name}" for name in ("Popen", "run", "call", "check_call", "check_output")),
    *("os.fork", "os.system", "os.posix_spawn", "pty.fork", "psutil.Popen", "ray.init"),
    *("multiprocessing.Process", "multiprocessing.Pool", "multiprocessing.get_context"),
    *("torch.multiprocessing.spawn", "torch.multiprocessing.start_processes"),
    *("concurrent.futures.ProcessPoolExecutor", "cluster.session.session"),
}
Unit = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class PythonFile:
    """A Python file below tests, with what it defines at its top level."""

    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text())

    @property
    def name(self) -> str:
        return ".".join(self.path.relative_to(ROOT).with_suffix("").parts)

    @cached_property
    def units(self) -> dict[str, Unit]:
        return {node.name: node for node in self.tree.body if isinstance(node, Unit)}

    @cached_property
    def fixtures(self) -> dict[str, Unit]:
        return {name: unit for name, unit in self.units.items() if is_fixture(unit)}

    @cached_property
    def called(self) -> dict[str, set[str]]:
        """Full names of what each of them calls, or hands to what it calls."""
        return {name: set(self._calls(unit)) for name, unit in self.units.items()}

    @cached_property
    def aliases(self) -> dict[str, str]:
        """What the names stand for that it imports, anywhere, or defines."""
        names = {name: f"{self.name}.{name}" for name in self.units}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                names |= {one.asname or one.name: one.name for one in node.names}
            elif isinstance(node, ast.ImportFrom):
                names |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
        return names

    def _calls(self, unit: Unit) -> Iterator[str]:
        for node in ast.walk(unit):
            if isinstance(node, ast.Call):
                yield from map(self._full, (node.func, *node.args))

    def _full(self, node: ast.expr) -> str:
        if isinstance(node, ast.Attribute):
            return f"{self._full(node.value)}.{node.attr}"
        return self.aliases.get(node.id, node.id) if isinstance(node, ast.Name) else ""


FILES = [PythonFile(path) for path in sorted((ROOT / "tests").rglob("*.py"))]


def starting() -> set[str]:
    """Full names of what starts a process, directly or through another function of the tests."""
    calls = {
        f"{file.name}.{name}": called for file in FILES for name, called in file.called.items()
    }
    found = set(STARTERS)
    while more := {name for name, called in calls.items() if name not in found and called & found}:
        found |= more
    return found


def asked(unit: Unit) -> set[str]:
    """Fixtures that a case or a fixture takes, by its arguments or by its marks."""
    if isinstance(unit, ast.ClassDef):
        return set()
    used = [mark for mark in unit.decorator_list if "usefixtures" in ast.unparse(mark)]
    named = {
        node.value for mark in used for node in ast.walk(mark) if isinstance(node, ast.Constant)
    }
    return {one.arg for one in unit.args.args + unit.args.kwonlyargs} | named


def fixtures(file: PythonFile) -> dict[str, Unit]:
    """Those that its cases see: its own, and those of the conftest.py above it."""
    folders = [folder / "conftest.py" for folder in file.path.parents]
    seen = [one for one in FILES if one.path in folders]
    return {name: unit for one in [*seen, file] for name, unit in one.fixtures.items()}


def is_fixture(unit: Unit) -> bool:
    return any("pytest.fixture" in ast.unparse(mark) for mark in unit.decorator_list)


def tiers(unit: Unit, seen: dict[str, Unit]) -> set[str]:
    """The fixtures of tiers that it takes, itself or through others."""
    todo, done = asked(unit), set[str]()
    while todo:
        done |= todo
        todo = {name for one in todo & seen.keys() for name in asked(seen[one])} - done
    return done & TIERS.keys()


def unmarked(file: PythonFile, starters: set[str]) -> Iterator[str]:
    """Cases and fixtures of a file that start a process and are of no tier."""
    seen = fixtures(file)
    for name, unit in file.units.items():
        case = name.startswith("test_") and not is_endurance(unit)
        starts = (case or is_fixture(unit)) and file.called[name] & starters
        if starts and name not in TIERS and not tiers(unit, seen):
            yield f"{file.path.relative_to(ROOT)}::{name}"


def is_endurance(unit: Unit) -> bool:
    return any("endurance" in ast.unparse(mark) for mark in unit.decorator_list)


def test_what_starts_a_process_takes_a_fixture_that_says_so() -> None:
    starters = starting()
    found = [name for file in FILES for name in unmarked(file, starters)]
    assert not found, f"take one of the fixtures {', '.join(TIERS)}: {', '.join(found)}"


def test_a_file_that_uses_the_cluster_names_it() -> None:
    """tests/balance.py knows by that which files one process is to have."""
    for file in FILES:
        seen = fixtures(file)
        cases = [unit for name, unit in file.units.items() if name.startswith("test_")]
        if any("ray_cluster" in tiers(unit, seen) for unit in cases):
            assert "ray_cluster" in file.path.read_text(), file.name
