"""The sizes in docs/serving-elsewhere.md are those that `moetune export` plans."""

import json
import re
import struct
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from tests.docs.pages import ROOT
from workers.adapter.files import read
from workers.adapter.raw import write_raw
from workers.adapter.stock.base_files import BaseFiles
from workers.adapter.stock.families import TWINS
from workers.adapter.stock.plan import Merging
from workers.adapter.tensor_names import to_disk
from workers.adapter.written import config_values
from workers.config.adapter import AdapterSpec

BASES: dict[str, dict[str, object]] = {
    "SmolLM2 135M": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "Llama 3.2 1B": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "Llama 3.1 8B": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
"""Their published shapes."""
UP = "mlp.up_proj"


def table() -> dict[str, list[float]]:
    """GB alone, with 4 and with 8 experts, by base."""
    page = (ROOT / "docs" / "serving-elsewhere.md").read_text()
    row = re.compile(r"^\| (.+?) \| ([\d.]+) GB \| ([\d.]+) GB \| ([\d.]+) GB \|$", re.MULTILINE)
    return {name: [*map(float, sizes)] for name, *sizes in row.findall(page)}


def write_base(folder: Path, config: LlamaConfig) -> Path:
    """A base of that shape in bfloat16, whose weights are a hole in its file."""
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    with torch.device("meta"):
        weights = AutoModelForCausalLM.from_config(config).state_dict()
    end, head = 0, {}
    for name, weight in weights.items():
        if not (config.tie_word_embeddings and name == "lm_head.weight"):
            begin, end = end, end + 2 * weight.numel()
            head[name] = {"dtype": "BF16", "shape": [*weight.shape], "data_offsets": [begin, end]}
    text = json.dumps(head).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return folder


def write_adapter(folder: Path, config: LlamaConfig, experts: int) -> Path:
    """The smallest adapter of so many experts."""
    spec = AdapterSpec(num_experts=experts, rank=1, target_modules=(UP,))
    width, wide = config.hidden_size, config.intermediate_size
    tensors = {}
    for layer in range(config.num_hidden_layers):
        place = f"layers.{layer}.{UP}"
        tensors[f"layers.{layer}.mlp.router.weight"] = torch.zeros(experts, width)
        tensors[f"{place}.lora_A"] = torch.zeros(experts, 1, width)
        tensors[f"{place}.lora_B"] = torch.zeros(experts, wide, 1)
    values = config_values(spec, (UP,), "base", "model.layers")
    write_raw(folder, values, to_disk(tensors, spec, "model.layers"))
    return folder


def planned(base: Path, adapter: Path) -> int:
    """How many numbers the checkpoint of the two has; the digest, which reads all, is left out."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    merging = Merging(BaseFiles(base), model, read(adapter), "an adapter")
    return sum(one.numbers for one in merging.sparse(TWINS["llama"]))


@pytest.mark.parametrize("name", BASES)
def test_sizes_are_those_that_the_command_plans(name: str, tmp_path: Path) -> None:
    config = LlamaConfig(**BASES[name])
    base = write_base(tmp_path / "base", config)
    alone = sum(torch.Size(one.shape).numel() for one in BaseFiles(base).stored.values())
    sizes = [
        planned(base, write_adapter(tmp_path / str(experts), config, experts)) for experts in (4, 8)
    ]
    assert table()[name] == [round(2 * numbers / 1e9, 2) for numbers in (alone, *sizes)]


def test_every_row_is_looked_at() -> None:
    assert table().keys() == BASES.keys()
