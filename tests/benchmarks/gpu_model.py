"""What the stages of `gpu_first.py` share: a random model of 8B's shape, and a clock."""

import statistics
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

GPU = torch.cuda.is_available()
DTYPE = torch.bfloat16 if GPU else torch.float32
LARGE = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
TINY = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def llama(layers: int = 32, tiny: bool = not GPU) -> PreTrainedModel:
    """A frozen random Llama, made on the device that there is."""
    config = LlamaConfig(num_hidden_layers=2 if tiny else layers, **(TINY if tiny else LARGE))
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPE)
    try:
        with torch.device("cuda" if GPU else "cpu"):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model.requires_grad_(False).eval()


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if GPU:
        torch.cuda.synchronize()


def timed(turn: Callable[[], object], rounds: int = 8, warm_up: int = 3) -> float:
    """Median seconds of a turn."""
    if not GPU:
        rounds = warm_up = 1
    taken = []
    for round_ in range(warm_up + rounds):
        synchronize()
        begin = time.perf_counter()
        turn()
        synchronize()
        if round_ >= warm_up:
            taken.append(time.perf_counter() - begin)
    return statistics.median(taken)
