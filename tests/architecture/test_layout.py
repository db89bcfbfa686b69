"""Holds the layout: one folder a noun, imports that point down, folders that can be looked over."""

import ast

import pytest

from tests.architecture.test_imports import FILES, MODULES, all_imports, module_name

LEVELS = {
    "orchestrator": [
        "config jobs openai store templates",
        "auth doctor registry telemetry",
        "rollout router_health tuning",
        "completion disk evaluation monitoring replicas",
        "candidates gateway output report",
        "serve",
        "client",
        "demo retraining",
        "json_schema",
        "commands",
        "cli",
    ],
    "workers": [
        "config",
        "layers run",
        "injection losses",
        "data parallel",
        "adapter",
        "models",
        "engine",
        "train",
    ],
}
"""Folders and files at the top of a package, lowest level first. Each imports from lower ones only,
so that no two import each other; what is new is entered on the lowest level that does."""
FILES_OF_ITS_OWN = 20


def level(module: str) -> int:
    package, name = module.split(".")[:2]
    for number, names in enumerate(LEVELS[package]):
        if name in names.split():
            return number
    pytest.fail(f"{package}/{name} stands on no level: enter it in LEVELS")


@pytest.mark.parametrize("name", [name for name in sorted(MODULES) if name.count(".") > 0])
def test_a_folder_imports_from_lower_levels_only(name: str) -> None:
    package, folder = name.split(".")[:2]
    if package not in LEVELS:
        return
    here = level(name)
    for module in all_imports(name) & MODULES.keys():
        if module.startswith(f"{package}.") and module.split(".")[1] != folder:
            assert level(module) < here, f"{name} imports {module}, which does not lie below it"


def test_no_folder_holds_more_files_than_one_can_look_over() -> None:
    counts: dict[str, int] = {}
    for path in FILES:
        if path.name != "__init__.py":
            folder = module_name(path).rpartition(".")[0]
            counts[folder] = counts.get(folder, 0) + 1
    assert {folder: n for folder, n in counts.items() if n > FILES_OF_ITS_OWN} == {}


def test_one_class_name_has_one_meaning() -> None:
    places: dict[str, list[str]] = {}
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(name)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
