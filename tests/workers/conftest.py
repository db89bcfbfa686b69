"""Random models of each family that adapters must fit."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import nn

FAMILIES = ("llama", "phi3", "gpt2", "phi", "gpt_neox")


def _build(family: str, changes: Mapping[str, object]) -> nn.Module:
    import transformers

    sizes: dict[str, object] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = transformers.AutoConfig.for_model(family, **sizes | dict(changes))
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.fixture
def build_model() -> Callable[..., nn.Module]:
    """Builds a random causal LM of a family (2 layers, width 32, 64 tokens), in eval mode; takes
    changes of its configuration."""

    def build(family: str, **changes: object) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return _build(family, changes).eval()

    return build


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Every family: gated, fused, Conv1D and plain feed-forward blocks."""
    name: str = request.param
    return name
