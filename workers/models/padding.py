"""Whether rows that are padded on the right need an attention mask.

Under causal attention they do not: no token sees what comes after it, and padding comes last. What
padding itself gets is read by nobody. Without a mask, flash attention can run.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from workers.models.attention import LOOKING, attending
from workers.models.skeleton import skeleton


def needs_mask(config: PretrainedConfig) -> bool:
    """Whether a model of this configuration must be told which tokens are padding: unless each of
    its layers has transformers' attention, that is causal, and none keeps a state along the row.

    A model that cannot be looked at without weights keeps its mask; so does one that would read its
    tokens to warn of padding.
    """
    model = skeleton(deepcopy(config), torch.bfloat16)  # the one type of all kernels without data
    if model._is_stateful or not model._can_set_attn_implementation():
        return True
    causal: list[bool] = []
    token = torch.zeros(1, 2, dtype=torch.long, device="meta")
    try:
        with torch.no_grad(), attending(model, LOOKING, _look):
            model(token, use_cache=False, causal=causal)
    except (ValueError, TypeError, RuntimeError, NotImplementedError):
        return True
    return len(causal) < model.config.get_text_config().num_hidden_layers or not all(causal)


def _look(
    module: nn.Module,
    query: Tensor,
    _key: Tensor,
    value: Tensor,
    _mask: Any = None,
    *,
    causal: list[bool],
    **_options: Any,
) -> tuple[Tensor, None]:
    """Note whether it is causal; nothing is computed."""
    causal.append(bool(getattr(module, "is_causal", False)))
    batch, heads, tokens, _width = query.shape
    return query.new_zeros(batch, tokens, heads, value.shape[-1]), None
