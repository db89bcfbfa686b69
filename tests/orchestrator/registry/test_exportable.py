"""What is said of a version or a trial: whether it can be an ordinary checkpoint."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.registry.exportable import Exportable, told
from orchestrator.registry.models import Version
from orchestrator.registry.registry import Registry
from workers.adapter import folder as folders
from workers.config.adapter import AdapterSpec
from workers.config.model import ModelSpec

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
GEMMA = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}


def judged(folder: Path, base: Mapping[str, Any], **shape: object) -> Exportable:
    (folder / "config.json").write_text(json.dumps(base))
    answer = Exportable.of(AdapterSpec.model_validate(shape), ModelSpec(path=str(folder)))
    assert answer is not None
    return answer


@pytest.mark.parametrize(
    ("base", "shape", "architecture"),
    [
        (LLAMA, {}, "MixtralForCausalLM"),
        ({"model_type": "qwen3"}, {"top_k": 3}, "Qwen3MoeForCausalLM"),
        (LLAMA, {"num_experts": 1, "top_k": 1}, "LlamaForCausalLM"),
        (GEMMA, {"num_experts": 1, "top_k": 1}, "Gemma3ForCausalLM"),
        ({"model_type": "gpt2"}, {"num_experts": 1, "top_k": 1}, "gpt2"),
    ],
)
def test_it_names_the_class_of_the_checkpoint(
    tmp_path: Path, base: dict[str, Any], shape: dict[str, object], architecture: str
) -> None:
    answer = judged(tmp_path, base, **shape)
    assert answer.as_dict() == {"architecture": architecture, "why_not": None}
    said = answer.said("home@0123")
    assert said == f"it can be exported as {architecture}: moetune export home@0123 --to FOLDER"


@pytest.mark.parametrize(
    ("base", "shape", "why"),
    [
        (LLAMA, {"routing": "top_p"}, "the nearest is routing: top_k"),
        (LLAMA, {"experts": "linear"}, "the nearest is experts: block"),
        (LLAMA, {"num_experts": [2, 4]}, "the nearest is num_experts: 4"),
        (GEMMA, {}, "the family gemma3_text"),
    ],
)
def test_it_says_why_not_and_what_can(
    tmp_path: Path, base: dict[str, Any], shape: dict[str, object], why: str
) -> None:
    answer = judged(tmp_path, base, **shape)
    assert answer.architecture is None
    assert why in answer.said("home@0123")
    assert answer.said("x").startswith("it cannot be exported as an ordinary checkpoint: ")


def test_nothing_is_said_without_the_base(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone", "nobody/has-this"):
        assert Exportable.of(AdapterSpec(), ModelSpec(path=str(path))) is None
    (tmp_path / "config.json").write_text("[")
    assert Exportable.of(AdapterSpec(), ModelSpec(path=str(tmp_path))) is None


def test_trials_of_one_answer_share_a_line() -> None:
    can, cannot = Exportable("MixtralForCausalLM", None), Exportable(None, "use_dora: no")
    assert told([(3, can), (0, cannot), (1, None), (2, can)]) == [
        "trials 2, 3: moetune export writes MixtralForCausalLM",
        "trial 0: no export as an ordinary checkpoint: use_dora: no",
    ]
    assert told([(1, None)]) == []


Make = Callable[..., Path]


def registered(registry: Registry, source: Path, spec: dict[str, Any] | None = None) -> Version:
    return registry.register("s", 1, source, {}, {"spec": spec} if spec else {})


def test_a_version_is_judged_by_its_own_files(registry: Registry, make_adapter: Make) -> None:
    """Brought in from elsewhere: it has no job."""
    version = registered(registry, make_adapter(1))
    assert Exportable.of_version(registry, version) == Exportable("MixtralForCausalLM", None)
    version = registered(registry, make_adapter(2, routing="top_p"))
    answer = Exportable.of_version(registry, version)
    assert answer is not None
    assert str(answer.why_not).startswith("routing: top_p")


def test_a_trained_version_is_judged_by_its_job(
    registry: Registry, make_adapter: Make, tiny_model_dir: Path
) -> None:
    spec = {"model": {"path": str(tiny_model_dir)}, "adapter": {"gates": "residual"}}
    answer = Exportable.of_version(registry, registered(registry, make_adapter(3), spec))
    assert answer is not None
    assert str(answer.why_not).startswith("gates: residual")


def test_a_version_that_cannot_be_read_is_not_judged(
    registry: Registry, make_adapter: Make
) -> None:
    version = registered(registry, make_adapter(4))
    config = version.folder / folders.CONFIG
    config.unlink()
    assert Exportable.of_version(registry, version) is None
