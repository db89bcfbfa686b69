"""Whether torch's autocast is on where a tensor lies."""

import torch
from torch import Tensor


def is_autocast(tensor: Tensor) -> bool:
    """On `meta`, where a model is looked at, there is none, and torch refuses the question."""
    kind = tensor.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
