"""The forward pass, with logits only from where a target begins.

Tensor suffixes: B rows, S positions, N the last positions, V vocabulary.
"""

import inspect

from torch import Tensor, nn

from workers.data.batches import IGNORED, Batch


def scored_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [B, N, V] and labels [B, N] of the positions from the one that predicts the batch's
    first target token; position n predicts n + 1.

    The output matrix of a small model with a large vocabulary is a fifth of its work, and prompts
    need none of it.
    """
    first = int((batch.labels_BS != IGNORED).any(0).nonzero()[0]) - 1
    labels_BN = batch.labels_BS[:, first:]
    options: dict[str, int] = {}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = labels_BN.shape[1]
    output = model(
        input_ids=batch.input_ids_BS,
        attention_mask=batch.attention_mask_BS,
        use_cache=False,
        **options,
    )
    return output.logits[:, -labels_BN.shape[1] :], labels_BN
