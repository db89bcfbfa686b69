"""How what the host has gets onto a device."""

import torch
from torch import Tensor


def onto(device: torch.device, tensor: Tensor) -> Tensor:
    """A tensor of the host's on the device, for which nobody waits: a GPU fetches it from memory
    that stays where it is, when it comes to it. From any other the host waits until a GPU has done
    all that it still had to do."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
