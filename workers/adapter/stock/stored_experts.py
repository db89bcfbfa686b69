"""Where a base's files have the experts that the model stacks, as transformers reads them: each
expert's matrices by themselves, or all of them as they stand in the model.

E experts, R rank, I and O the input and output size of a matrix.
"""

from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from workers.adapter.stock.base_files import BaseFiles
from workers.config.base import InputError


class StoredPart(NamedTuple):
    """What of a stacked weight one tensor of the files holds."""

    name: str
    """The weight's in the model."""
    expert: int | None
    """None: it is all of them."""
    part: int
    """Which of the `parts` that lie below one another in the expert's matrix."""
    parts: int

    def update(self, lora_A_ERI: Tensor, lora_B_EOR: Tensor, *, is_transposed: bool) -> Tensor:
        """B_e A_e of this part."""
        if self.expert is None:
            update_EOI = lora_B_EOR @ lora_A_ERI
            return update_EOI.transpose(1, 2) if is_transposed else update_EOI
        update_OI = lora_B_EOR[self.expert] @ lora_A_ERI[self.expert]
        return update_OI.chunk(self.parts)[self.part]


def stored_experts(
    base: BaseFiles, model: PreTrainedModel, weights: Collection[str]
) -> dict[str, StoredPart]:
    """By name on disk, what of these stacked weights of the model the files' tensors hold. What
    transformers makes by other means than putting them together is left out."""
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    known, prefix = model.state_dict(), model.base_model_prefix
    found: dict[str, StoredPart] = {}
    seen: Counter[tuple[str, str]] = Counter()
    for on_disk in sorted(base.stored, key=dot_natural_key):  # the order in which it stacks them
        name, source = rename_source_key(on_disk, renamings, converters, prefix, known)
        if on_disk in weights or (source is None and name in weights):
            found[on_disk] = StoredPart(name if name in weights else on_disk, None, 0, 1)
        elif source is not None and name in weights:
            sources = next(one for one in converters if source in one.source_patterns)
            if _only_stacks(sources):
                patterns = sources.source_patterns
                place = seen[name, source], patterns.index(source), len(patterns)
                found[on_disk] = StoredPart(name, *place)
                seen[name, source] += 1
    return found


def check_whole(
    found: dict[str, StoredPart], base: BaseFiles, name: str, shape: torch.Size
) -> None:
    """InputError unless the files hold all of the stacked weight of this name and shape."""
    numbers = sum(
        torch.Size(base.stored[on_disk].shape).numel()
        for on_disk, part in found.items()
        if part.name == name
    )
    if numbers != shape.numel():
        raise InputError(
            f"{base.folder}: has no tensors that stack to {name}, which the adapter changes: its "
            "files have it in a way that cannot be merged into"
        )


def _only_stacks(rule: WeightConverter) -> bool:
    """Whether it puts the experts' matrices one behind the other, and an expert's below one
    another."""
    merge, *rest = rule.operations
    below = [isinstance(one, Concatenate) and one.dim == 1 for one in rest]
    stacked = isinstance(merge, MergeModulelist) and merge.dim == 0
    return stacked and (below == [True] or (not below and len(rule.source_patterns) == 1))
