"""MixLoRA's expert_lora: experts of another rank and scale than the attention's LoRA."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import pad
from transformers import PreTrainedModel

from workers.adapter.convert import export_folder, import_folder
from workers.adapter.files import attach
from workers.injection.inject import row_map


def write(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    shape = {
        "peft_type": "MIXLORA",
        "r": 4,
        "lora_alpha": 8,
        "num_experts": 2,
        "top_k": 2,
        "target_modules": {"q_proj": True, "up_proj": True, "fc1": False},
    }
    (folder / "adapter_config.json").write_text(json.dumps({**shape, **config}))
    return folder


def tensors(rank: int, expert_rank: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    made = {}
    for layer in range(2):
        stem = f"mixlora.layers.{layer}"
        made[f"{stem}.mlp.moe_gate.weight"] = torch.randn(2, 32, generator=generator)
        made[f"{stem}.self_attn.q_proj.lora_A.weight"] = torch.randn(rank, 32, generator=generator)
        made[f"{stem}.self_attn.q_proj.lora_B.weight"] = torch.randn(32, rank, generator=generator)
        for expert in range(2):
            place = f"{stem}.mlp.up_proj.experts.{expert}"
            made[f"{place}.lora_A.weight"] = torch.randn(expert_rank, 32, generator=generator)
            made[f"{place}.lora_B.weight"] = torch.randn(48, expert_rank, generator=generator)
    return made


@pytest.mark.parametrize(("rank", "expert_rank"), [(4, 2), (2, 4), (4, 4)])
@pytest.mark.parametrize("rslora", [False, True])
def test_experts_of_their_own_rank_and_scale(
    rank: int,
    expert_rank: int,
    rslora: bool,
    model: PreTrainedModel,
    ids: torch.Tensor,
    tmp_path: Path,
) -> None:
    """Equal to the same adapter written without expert_lora: B scaled, padded by hand."""
    made = tensors(rank, expert_rank)
    own = {"r": expert_rank, "lora_alpha": 3, "use_rslora": rslora}
    folder = write(tmp_path / "own", made, r=rank, lora_alpha=5, expert_lora=own)
    scales = {True: 3 / (expert_rank**0.5 if rslora else expert_rank), False: 5 / rank}
    by_hand = dict(made)
    for name in made:
        lack = 4 - (expert_rank if "experts" in name else rank)
        if "lora_A" in name:
            by_hand[name] = pad(made[name], (0, 0, 0, lack))
        elif "lora_B" in name:
            by_hand[name] = pad(made[name] * scales["experts" in name], (0, lack))
    plain = write(tmp_path / "plain", by_hand, r=4, lora_alpha=4)
    with torch.no_grad():
        found = attach(model, folder, "own")(ids).logits
        attach(model, plain, "plain")
        with row_map(model).everywhere("plain"):
            expected = model(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_expert_lora_travels_as_it_is(tmp_path: Path) -> None:
    made = tensors(4, 2)
    folder = write(tmp_path / "own", made, expert_lora={"r": 2, "lora_alpha": 4})
    back = export_folder(import_folder(folder, tmp_path / "ours"), tmp_path / "back")
    written = load_file(back / "adapter_model.safetensors")
    assert written.keys() == made.keys()
    assert all(torch.equal(written[name], made[name]) for name in made)
    configs = [json.loads((f / "adapter_config.json").read_text()) for f in (folder, back)]
    assert configs[0] == configs[1]
