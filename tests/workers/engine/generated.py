"""What an engine's answers are held to."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from workers.adapter.files import attach
from workers.engine.request import AdapterRef


def generated(
    folder: Path, adapter: AdapterRef | None, prompt: tuple[int, ...], *, longest: int
) -> list[int]:
    """transformers' own greedy generate() on the model with the one adapter attached."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    if adapter is not None:
        attach(model, adapter.folder)
    ids = model.generate(torch.tensor([prompt]), max_new_tokens=longest, do_sample=False)
    return ids[0, len(prompt) :].tolist()
