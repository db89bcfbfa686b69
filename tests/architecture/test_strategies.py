"""Holds that a routing strategy is one file and one entry: nobody else knows any by name."""

import ast

from tests.architecture.test_imports import MODULES, inside
from workers.config.routing import ROUTERS

THEIR_OWN = ("workers.config.routing", "workers.layers.routing")
OTHER_THINGS = {
    ("orchestrator.demo.home", "switch"),  # a kind of device
    ("workers.adapter.routing_keys", "top_p"),  # the key of MoE-PEFT's that its temperature divides
}


def test_no_strategy_is_known_by_name_outside_the_table_and_its_file() -> None:
    named = {
        (name, node.value)
        for name, path in MODULES.items()
        if not inside(name, *THEIR_OWN)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in list(ROUTERS)
    }
    assert named == OTHER_THINGS


def test_only_layers_load_the_strategies_classes() -> None:
    """The table is free of torch: a class is imported when a layer is built."""
    classes = {entry.implementation.partition(":")[0] for entry in ROUTERS.values()}
    assert classes == {name for name in MODULES if inside(name, "workers.layers.routing")} - {
        "workers.layers.routing",
        "workers.layers.routing.base",
    }
    for name, path in MODULES.items():
        imports = {
            node.module
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom)
        }
        assert not imports & classes, name
