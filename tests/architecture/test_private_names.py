"""Private names of other libraries: which are used, and that each such library is bounded above.

A private name may change with any version, so only versions that were tried are allowed.
"""

import ast
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
OURS = ("cluster", "orchestrator", "search_spaces", "workers")
USED = {
    "datasets": {"_fingerprint"},
    "deepspeed": {
        "_get_norm_groups",
        "_hp_optimizer_states_linked",
        "_lazy_init_hp_params_optimizer_state",
    },
    "ray": {
        "ray._private.grpc_utils.init_grpc_channel",
        "ray._private.ray_constants",
        "ray._private.services.find_gcs_addresses",
        "ray._private.services.find_node_ids",
        "ray._raylet",
        "ray.serve.context._get_global_client",
        "ray.train.torch.config._TorchBackend",
        "ray.train.torch.config._set_torch_distributed_env_vars",
    },
    "starlette": {"starlette._utils.get_route_path"},
    "torch": {
        "_forward_hooks",
        "_forward_pre_hooks",
        "_version",
        "torch.utils._python_dispatch.TorchDispatchMode",
    },
    "transformers": {
        "_apply_gate",
        "_attn_implementation",
        "_can_set_attn_implementation",
        "_commit_hash",
        "_compatible_flash_implementations",
        "_create_batch_processor",
        "_is_stateful",
        "_process_candidates",
        "_supports_flash_attn",
    },
}
"""By library: modules and their names, attributes, and methods that the library calls."""
LIKEWISE = {"optuna", "uvicorn"}
"""Bounded too: Optuna's tables, and what its trials are made from, may change with any version, and
so may uvicorn's protocol class, which our limits of a request's head stand in."""
DOCUMENTED = {"_asdict", "_exit", "_replace"}
"""Public all the same: of named tuples, and of `os`."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def of_others(node: ast.AST) -> Iterator[str]:
    """Modules and names in them that an import, or `import_module`, asks for."""
    match node:
        case ast.ImportFrom(module=str(module), names=names):
            found = [f"{module}.{one.name}" for one in names]
        case ast.Import(names=names):
            found = [one.name for one in names]
        case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(str(name))]):
            found = [name]
        case _:
            found = []
    yield from (name for name in found if name.partition(".")[0] not in OURS)


def attributes(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Attributes that are asked for, and of what."""
    match node:
        case ast.Attribute(value=owner, attr=name):
            yield owner, name
        case ast.Call(
            func=ast.Name("getattr" | "hasattr" | "setattr"),
            args=[owner, ast.Constant(str(name)), *_],
        ):
            yield owner, name
        case ast.Call(func=ast.Name("attrgetter"), args=[ast.Constant(str(name))]):
            yield node, name


def nodes_of(code: str) -> list[ast.AST]:
    return [*ast.walk(ast.parse(code))]


def overridden(nodes: Sequence[ast.AST]) -> Iterator[str]:
    """Methods of this file's classes on others' classes that nothing in the file calls: the
    library does."""
    foreign = {name.rpartition(".")[2] for node in nodes for name in of_others(node)}
    asked = [one for node in nodes for one in attributes(node)]
    called = {name for owner, name in asked if not isinstance(owner, ast.Call)}  # super()
    for one in (node for node in nodes if isinstance(node, ast.ClassDef)):
        if {base.id for base in one.bases if isinstance(base, ast.Name)} & foreign:
            own = [f for f in one.body if isinstance(f, ast.FunctionDef) and not f.decorator_list]
            yield from (function.name for function in own if function.name not in called)


def defined(nodes: Sequence[ast.AST]) -> Iterator[str]:
    """Attributes that classes of this file have."""
    for node in nodes:
        match node:
            case ast.ClassDef(body=body):
                functions = (ast.FunctionDef, ast.AsyncFunctionDef)
                yield from (one.name for one in body if isinstance(one, functions))
                fields = (one.target for one in body if isinstance(one, ast.AnnAssign))
                yield from (one.id for one in fields if isinstance(one, ast.Name))
            case ast.Attribute(value=ast.Name("self" | "cls"), attr=name, ctx=ast.Store()):
                yield name


def private_names(nodes: Sequence[ast.AST], ours: set[str]) -> Iterator[str]:
    """Of other libraries; `ours` are the attributes of all classes of our own."""
    here = {*defined(nodes)}
    for node in nodes:
        for whole in of_others(node):
            if any(map(is_private, whole.split("."))):
                yield whole
        for owner, name in attributes(node):
            known = ours if isinstance(owner, ast.Name) and owner.id in ("self", "cls") else here
            if is_private(name) and name not in known:
                yield name
    yield from filter(is_private, overridden(nodes))


def test_the_private_names_that_are_used_are_known() -> None:
    files = [nodes_of(file.read_text()) for top in OURS for file in (ROOT / top).rglob("*.py")]
    ours = {name for nodes in files for name in defined(nodes)}
    found = {name for nodes in files for name in private_names(nodes, ours)}
    known = {name for names in USED.values() for name in names}
    assert found - DOCUMENTED - known == set(), "new: take a public name, or list it with its bound"
    assert known - found == set(), "listed, and not used any more"


@pytest.mark.parametrize("library", sorted({*USED, *LIKEWISE}))
def test_a_library_whose_private_names_are_used_is_bounded_above(library: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wanted,) = (one for one in map(Requirement, project["dependencies"]) if one.name == library)
    assert [one.version for one in wanted.specifier if one.operator == "<"], str(wanted)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("from ray._private import services", "ray._private.services"),
        ("import torch._dynamo", "torch._dynamo"),
        (
            "from ray.serve.context import _get_global_client",
            "ray.serve.context._get_global_client",
        ),
        ("importlib.import_module('ray._raylet')", "ray._raylet"),
        ("study._storage.get_trial(0)", "_storage"),
        ("getattr(model.config, '_commit_hash', None)", "_commit_hash"),
        ("attrgetter('_version')", "_version"),
        ("from lib import Base\nclass Ours(Base):\n def _hook(self): ...", "_hook"),
        ("from lib import Base\nclass Ours(Base):\n def go(self): self._inner", "_inner"),
        ("def _storage(): ...\nstudy._storage", "_storage"),
    ],
)
def test_a_private_name_is_found(code: str, name: str) -> None:
    assert [*private_names(nodes_of(code), set())] == [name]


@pytest.mark.parametrize(
    "code",
    [
        "from orchestrator.study import _private",
        "class Ours:\n def __init__(self): self._own = 1\n def go(self): return self._own",
        "from lib import Base\nclass Ours(Base):\n def go(self): self._own()\n def _own(self): ...",
        "from orchestrator.study import Ours\nclass One(Ours):\n def go(self): self._inherited",
    ],
)
def test_our_own_are_none_of_others(code: str) -> None:
    nodes = nodes_of(code)
    assert [*private_names(nodes, {"_inherited", *defined(nodes)})] == []
