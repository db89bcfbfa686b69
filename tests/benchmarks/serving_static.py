"""generate() of transformers with an adapter attached: a contestant of serving.py."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from serving_batches import in_batches
from serving_process import answer_all
from serving_work import Request
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workers.adapter.files import attach

PAD = 0


def start(options: dict[str, Any]) -> Callable[..., Any]:
    """Answer turns."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(options["base"], dtype=torch.float32).eval()
    attach(model, options["adapter"])
    model.generation_config.eos_token_id = None

    @torch.inference_mode()
    def batch(requests: list[Request]) -> None:
        longest = max(len(request.prompt) for request in requests)
        pads = [longest - len(request.prompt) for request in requests]
        ids = [[PAD] * pad + one.prompt for pad, one in zip(pads, requests, strict=True)]
        mask = [[0] * pad + [1] * (longest - pad) for pad in pads]
        model.generate(
            torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            max_new_tokens=max(request.tokens for request in requests),
            do_sample=False,
            pad_token_id=PAD,
        )

    return in_batches(batch, options)


if __name__ == "__main__":
    answer_all(start)
