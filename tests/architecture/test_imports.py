"""Holds the import rules of the design: who may import whom, and what loads without torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("cluster", "search_spaces", "workers", "orchestrator")
TORCH_BEARING = ("torch", "transformers", "datasets", "deepspeed", "safetensors")
SLOW_TO_LOAD = (*TORCH_BEARING, "ray", "optuna", "sqlalchemy")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module)


def at_import(path: Path) -> ast.Module:
    """The file's tree without the bodies of functions and of `if TYPE_CHECKING`."""

    class Outer(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.If | None:
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else node

    tree = Outer().visit(ast.parse(path.read_text()))
    assert isinstance(tree, ast.Module)
    return tree


@cache
def all_imports(name: str) -> frozenset[str]:
    return frozenset(imported(ast.parse(MODULES[name].read_text())))


@cache
def first_imports(name: str) -> frozenset[str]:
    """Those of its import alone."""
    return frozenset(imported(at_import(MODULES[name])))


def inside(module: str, *folders: str) -> bool:
    return any(module == folder or module.startswith(folder + ".") for folder in folders)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_only_what_its_folder_may(name: str) -> None:
    ours = {module for module in all_imports(name) if inside(module, *FOLDERS)}
    if inside(name, "cluster"):
        forbidden = {module for module in ours if not inside(module, "cluster")}
    elif inside(name, "search_spaces"):
        allowed = ("search_spaces", "workers.config")
        forbidden = {module for module in ours if not inside(module, *allowed)}
    elif inside(name, "workers"):
        forbidden = {module for module in ours if not inside(module, "workers")}
    else:
        forbidden = set()
    assert not forbidden


@pytest.mark.parametrize("name", sorted(MODULES))
def test_only_training_inside_workers_knows_ray(name: str) -> None:
    if inside(name, "workers") and not inside(name, "workers.train"):
        assert not {module for module in all_imports(name) if inside(module, "ray")}


@pytest.mark.parametrize("name", [n for n in sorted(MODULES) if inside(n, "workers.layers")])
def test_layers_know_no_rank(name: str) -> None:
    banned = ("workers.parallel", "torch.distributed", "ray")
    assert not {module for module in all_imports(name) if inside(module, *banned)}


def test_training_and_serving_do_not_know_each_other() -> None:
    """But for the evaluation's generation, which batches as an engine does."""
    for name in MODULES:
        if inside(name, "workers.train") and name != "workers.train.evaluation.generate":
            assert not {m for m in all_imports(name) if inside(m, "workers.engine")}
        if inside(name, "workers.engine"):
            assert not {m for m in all_imports(name) if inside(m, "workers.train")}


@pytest.mark.parametrize("name", [n for n in sorted(MODULES) if inside(n, "orchestrator")])
def test_the_orchestrator_loads_torch_only_inside_functions(name: str) -> None:
    banned = {m for m in first_imports(name) if inside(m, *TORCH_BEARING)}
    assert not banned
    heavy = {m for m in first_imports(name) if inside(m, "workers")}
    for module in heavy:
        assert not _reaches_torch(module), f"{name} imports {module}, which imports torch"


@cache
def _reaches_torch(name: str) -> bool:
    at_once = first_imports(name)
    return any(inside(m, *TORCH_BEARING) for m in at_once) or any(
        _reaches_torch(m) for m in at_once if m in MODULES
    )


def test_there_is_no_import_circle() -> None:
    graph = {name: all_imports(name) & MODULES.keys() for name in MODULES}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"import circle: {' -> '.join(error.args[1])}")


def test_init_files_are_empty() -> None:
    assert [p for p in FILES if p.name == "__init__.py" and p.read_text().strip()] == []


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    "module",
    [
        "workers.config.train",
        "workers.engine.structured_output.probe_process",
        "orchestrator.config.job",
        "search_spaces.space",
        "orchestrator.cli",
    ],
)
def test_specs_and_the_command_line_load_without_the_heavy_packages(module: str) -> None:
    code = f"import sys, {module}; print(sorted({set(SLOW_TO_LOAD)!r} & sys.modules.keys()))"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert shown.stdout.strip() == "[]"


def test_a_ticket_loads_nothing_of_ours() -> None:
    """There is a process of it for every trial that runs, which all load it anew."""
    assert not first_imports("orchestrator.tuning.packs.ticket") & MODULES.keys()


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("module", ["ticket", "starting"])
def test_what_stands_beside_packs_loads_no_torch(module: str) -> None:
    """There is a process of it for every trial that runs, and one for the broker."""
    code = f"import sys, orchestrator.tuning.packs.{module}"
    code += f"; print(sorted({set(TORCH_BEARING)!r} & sys.modules.keys()))"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert shown.stdout.strip() == "[]"
