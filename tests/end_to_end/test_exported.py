"""The first layers of SmolLM2-135M with eight experts, through the command: stock transformers says
what we say."""

import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from orchestrator.demo import base_model
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from workers.adapter.digest import base_digest
from workers.adapter.files import attach, save
from workers.adapter.manifest import BaseRecord, Manifest
from workers.config.adapter import AdapterSpec
from workers.config.model import ModelSpec
from workers.data.batches import collate_prompts
from workers.data.text_encoder import TextEncoder
from workers.injection.inject import inject
from workers.models.base import load_base

PROMPTS = [
    *(f"What is the capital of {one}?" for one in ("France", "Italy", "Spain", "Japan", "Peru")),
    *(f"Write a sentence about {one}." for one in ("rain", "bread", "a train", "the sea", "tea")),
    *(f"Please turn on the lamp in the {one}" for one in ("kitchen", "office", "hall", "cellar")),
    *(f"What is {one} plus 12?" for one in (3, 40, 111)),
    *("Why is the sky blue?", "Name three animals.", "Translate to German: good morning"),
]
LAYERS, EXPERTS, NEW_TOKENS = 10, 8, 24


@pytest.fixture(scope="module")
def place(processes: None, smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first layers of the model, and a champion of `home`."""
    place = tmp_path_factory.mktemp("exported")
    base = shutil.copytree(smollm2_dir, place / base_model.NAME)
    AutoModelForCausalLM.from_pretrained(base, num_hidden_layers=LAYERS).save_pretrained(base)
    return promoted(place)


@pytest.fixture(scope="module")
def slow_place(
    processes: None, smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same with the whole model, which is written long enough to be stopped."""
    place = tmp_path_factory.mktemp("slow")
    (place / base_model.NAME).symlink_to(smollm2_dir)
    return promoted(place)


def promoted(place: Path) -> Path:
    """The same folder with, as a version in `runs`, the champion of `home`."""
    base = place / base_model.NAME
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    adapter = inject(model, AdapterSpec(num_experts=EXPERTS, top_k=2, rank=4, alpha=8.0))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapter.named_parameters():
        if name.endswith(("lora_B", "router.weight")):
            parameter.data.normal_(0.0, 0.03, generator=generator)
    manifest = Manifest(base=BaseRecord(path=str(base), digest=base_digest(base)))
    save(adapter, place / "adapter", manifest)
    (place / "runs").mkdir()
    registry = Registry(f"sqlite:///{place}/runs/moetune.db", place / "runs")
    version = registry.register("study", 0, place / "adapter", {})
    promote(registry, version, "home", actor="t", metric="validation/loss", reason="t", force=True)
    return place


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "orchestrator.cli", "export", *map(str, words)]


@torch.no_grad()
def answers(model: PreTrainedModel, prompts: list[tuple[int, ...]], pad: int) -> torch.Tensor:
    """Greedy, of the same length for all."""
    ids_BS, mask_BS = collate_prompts(prompts, pad)
    drawing: dict[str, Any] = {"do_sample": False, "pad_token_id": pad}
    length = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    found = model.generate(input_ids=ids_BS, attention_mask=mask_BS, **drawing, **length)
    assert isinstance(found, torch.Tensor)
    return found[:, ids_BS.shape[1] :]


def test_twenty_prompts_have_the_same_answers(place: Path) -> None:
    words = command("home", "--to", "out", "--dtype", "float32")
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "MixtralForCausalLM, float32: 1.11 GB on disk" in done.stderr
    assert done.stdout.startswith("exported home@")
    base = load_base(ModelSpec(path=str(place / base_model.NAME)))
    encoder, pad = TextEncoder(base.tokenizer), base_model.PAD_TOKEN_ID
    prompts = [encoder.chat([{"role": "user", "content": text}]) for text in PROMPTS]
    bare = answers(base.model, prompts, pad)
    ours = answers(attach(base.model, place / "adapter"), prompts, pad)
    del base
    stock = AutoModelForCausalLM.from_pretrained(place / "out").eval()
    assert type(stock).__name__ == "MixtralForCausalLM"
    assert stock.config.num_local_experts == EXPERTS
    assert len(prompts) == 20
    assert torch.equal(answers(stock, prompts, pad), ours)
    assert not torch.equal(bare, ours), "the adapter must matter"


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_nothing(slow_place: Path, sent: signal.Signals, code: int) -> None:
    folder = slow_place / "stopped" / "out"
    on_ctrl_c = signal.SIG_IGN if sent == signal.SIGTERM else signal.default_int_handler
    writing = subprocess.Popen(
        command("home", "--to", folder, "--dtype", "float32"),
        cwd=slow_place,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, on_ctrl_c),  # noqa: PLW1509
    )
    assert writing.stderr is not None
    said = [next(line for line in writing.stderr if line.startswith("writing "))]
    writing.send_signal(sent)
    said += writing.communicate(timeout=120)[1].splitlines()
    assert (said[-1], writing.returncode) == ("moetune: stopped", code)
    assert list(folder.parent.iterdir()) == []
