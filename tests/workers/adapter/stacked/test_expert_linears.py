"""PEFT's files of when a base's experts were linears of their own, against the formula and PEFT."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from tests.workers.adapter.stacked.test_parts import build, change, configure, logits
from workers.adapter.convert import export_folder, import_folder
from workers.adapter.files import attach, inspect, read
from workers.config.base import InputError
from workers.config.model import ModelSpec
from workers.models.compatibility import check_adapter

MIXTRAL, OTHERS = ("w1", "w3", "w2"), ("gate_proj", "up_proj", "down_proj")
MODULE = {"mixtral": "block_sparse_moe", "qwen3_moe": "mlp"}
NAMES = {"mixtral": MIXTRAL, "qwen3_moe": OTHERS}
EXPERTS, WIDTH, RANK = 4, 32, 3
FEED_FORWARD = {"mixtral": 48, "qwen3_moe": 24}


def old_folder(folder: Path, family: str, linears: tuple[str, ...], **config: object) -> Path:
    """As PEFT wrote it before transformers 5: q_proj, and these linears of each expert."""
    generator = torch.Generator().manual_seed(2)
    inner, tensors = FEED_FORWARD[family], {}

    def drawn(path: str, inside: int, out: int, rank: int = RANK) -> None:
        for leaf, shape in (("lora_A", (rank, inside)), ("lora_B", (out, rank))):
            drawn = torch.randn(shape, generator=generator) * 0.2
            tensors[f"base_model.model.model.layers.{path}.{leaf}.weight"] = drawn

    ranks = config.get("rank_pattern", {})
    for layer in range(2):
        drawn(f"{layer}.self_attn.q_proj", WIDTH, WIDTH)
        for expert in range(EXPERTS):
            for name in linears:
                sizes = (inner, WIDTH) if name in {"w2", "down_proj"} else (WIDTH, inner)
                path = f"{layer}.{MODULE[family]}.experts.{expert}.{name}"
                drawn(path, *sizes, ranks.get(name, RANK))
    values = {
        **{"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 7},
        **{"bias": "none", "target_modules": ["q_proj", *linears], **config},
    }
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(values))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@torch.no_grad()
def merged(family: str, folder: Path, scales: dict[str, float]) -> torch.nn.Module:
    """The base with W + s B A of every tensor pair in the file, by the old names."""
    model, tensors = build(family), load_file(folder / "adapter_model.safetensors")
    weights = dict(model.named_parameters())
    for name, lora_A in tensors.items():
        if "lora_A" not in name:
            continue
        path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        leaf = path.rpartition(".")[2]
        update = tensors[name.replace("lora_A", "lora_B")] @ lora_A * scales[leaf]
        if ".experts." not in path:
            weights[f"{path}.weight"] += update
            continue
        layer, expert = path.split(".")[2], int(path.split(".")[5])
        inner = FEED_FORWARD[family]
        down = leaf in {"w2", "down_proj"}
        weight = "down_proj" if down else "gate_up_proj"
        stacked = weights[f"model.layers.{layer}.mlp.experts.{weight}"][expert]
        first = inner if leaf in {"w3", "up_proj"} else 0
        stacked[first : first + len(update)] += update
    return model


SCALE = 7 / RANK
PLAIN: dict[str, object] = {}
CASES: list[tuple[str, tuple[str, ...], dict[str, object], dict[str, float]]] = [
    ("mixtral", MIXTRAL, PLAIN, {}),
    ("qwen3_moe", OTHERS, PLAIN, {}),
    ("mixtral", ("w2",), PLAIN, {}),
    ("mixtral", ("w3",), PLAIN, {}),
    ("mixtral", ("w1", "w2"), {"use_rslora": True}, dict.fromkeys(MIXTRAL, 7 / RANK**0.5)),
    (
        "qwen3_moe",
        OTHERS,
        {"rank_pattern": {"up_proj": 5, "down_proj": 2}, "alpha_pattern": {"gate_proj": 4}},
        {"up_proj": 7 / 5, "down_proj": 7 / 2, "gate_proj": 4 / RANK},
    ),
    ("mixtral", MIXTRAL, {"target_modules": r".*(q_proj|w[123])"}, {}),
]


@pytest.mark.parametrize(("family", "linears", "config", "scales"), CASES)
def test_it_computes_what_it_did(
    family: str,
    linears: tuple[str, ...],
    config: dict[str, object],
    scales: dict[str, float],
    tmp_path: Path,
) -> None:
    """Imported, checked against a base without its weights, put on, and handed back to PEFT."""
    old = old_folder(tmp_path / "old", family, linears, **config)
    each = dict.fromkeys((*linears, "q_proj"), SCALE) | scales
    each["q_proj"] = 7 / RANK**0.5 if config.get("use_rslora") else SCALE
    wanted, bare = logits(merged(family, old, each)), logits(build(family))
    assert (wanted - bare).norm() > 0.01 * bare.norm()
    ours = import_folder(old, tmp_path / "ours", build(family))
    torch.testing.assert_close(logits(attach(build(family), ours)), wanted, atol=1e-4, rtol=0)
    build(family).config.save_pretrained(tmp_path / "base")
    check_adapter(ModelSpec(path=str(tmp_path / "base")), read(ours), "it")
    back = export_folder(ours, tmp_path / "back")
    theirs = logits(PeftModel.from_pretrained(build(family), back))
    torch.testing.assert_close(theirs, wanted, atol=1e-4, rtol=0)


def test_peft_reads_mixtrals_the_same_way(tmp_path: Path) -> None:
    """It translates such files by itself since transformers 5."""
    old = old_folder(tmp_path / "old", "mixtral", MIXTRAL)
    theirs = logits(PeftModel.from_pretrained(build("mixtral"), old))
    ours = logits(attach(build("mixtral"), old))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_it_is_shown_by_todays_names(tmp_path: Path) -> None:
    shown = inspect(old_folder(tmp_path / "old", "mixtral", MIXTRAL))
    assert shown["target_parameters"] == ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    assert shown["target_modules"] == ["q_proj"]
    assert shown["rank"] == 2 * RANK, "gate's and up's"


FIRST = "base_model.model.model.layers.0.block_sparse_moe"
W2 = f"{FIRST}.experts.2.w2"
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "an expert less": (
        change(lambda t: [t.pop(f"{W2}.lora_{leaf}.weight") for leaf in "AB"]),
        r"layers\.0\.mlp\.experts\.down_proj: not every expert has an A and a B",
    ),
    "no B": (change(lambda t: t.pop(f"{W2}.lora_B.weight")), "not every expert has an A and a B"),
    "another rank": (
        change(lambda t: t.update({f"{W2}.lora_A.weight": torch.zeros(2, 48)})),
        "down_proj: its experts' matrices are of several sizes",
    ),
    "another width": (
        change(
            lambda t: [
                t.update({f"{FIRST}.experts.{e}.w1.lora_A.weight": torch.zeros(3, 31)})
                for e in range(EXPERTS)
            ]
        ),
        "gate_up_proj: its experts' linears are of several sizes",
    ),
    "a router": (
        change(lambda t: t.update({f"{FIRST}.gate.lora_A.weight": torch.zeros(3, 32)})),
        "adapts the router of a base's experts, which is not supported",
    ),
    "dora": (configure(use_dora=True), "use_dora is true, which experts of a base cannot have"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_one_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    folder = old_folder(tmp_path / "old", "mixtral", MIXTRAL)
    damage, reason = DAMAGES[name]
    damage(folder)
    with pytest.raises(InputError, match=reason) as refused:
        read(folder)
    assert "\n" not in str(refused.value)
