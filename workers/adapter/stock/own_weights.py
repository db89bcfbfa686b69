"""What a checkpoint has of the embedding and the head, where the adapter trained numbers of them
itself: whole copies, or the rows of some tokens.

Shapes: V vocabulary, N tokens, D width.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from workers.adapter.files import AdapterFiles
from workers.config.base import InputError
from workers.injection.copies import plan_copies


def own_weights(
    model: nn.Module, files: AdapterFiles, where: str
) -> Mapping[str, Callable[[Tensor], Tensor]]:
    """By the weight's name in the model: of the base's own, the adapter's. Of weights that the base
    ties, for each. InputError where the two do not fit; needs no weights."""
    first: dict[nn.Module, str] = {}
    found = {}
    for place, copy in plan_copies(model, files.spec).items():
        name = f"{first.setdefault(copy, place.name)}.{copy.leaf}"
        shape = tuple(files.tensors[name].shape) if name in files.tensors else None
        if shape != tuple(copy.own.shape):
            raise InputError(
                f"{where}: does not fit this base: {name} must be {list(copy.own.shape)}, and is "
                f"{list(shape) if shape else 'not there'}"
            )
        found[f"{place.path}.weight"] = _replacing(files, name)
    return found


def _replacing(files: AdapterFiles, name: str) -> Callable[[Tensor], Tensor]:
    def replaced(weight_VD: Tensor) -> Tensor:
        own = files.tensors[name]
        if not files.spec.train_tokens:
            return own.clone()  # tied ones are written as two
        token_N = torch.tensor(files.spec.train_tokens)
        wide_VD = weight_VD.to(torch.promote_types(weight_VD.dtype, own.dtype))
        return wide_VD.index_copy(0, token_N, own.to(wide_VD.dtype))

    return replaced
