"""Greedy answers to prompts, as tokens. Tensor suffixes: B rows, S positions."""

from collections.abc import Callable, Sequence

from transformers import GenerationConfig, PreTrainedModel

from workers.config.base import InputError
from workers.data.batches import collate_prompts
from workers.injection.askers import Askers

Answers = list[list[int]]
"""Tokens, without the one that ends an answer."""


SERVED = ("sdpa", "eager")
"""Ways of attention that endpoints have."""


def batched(  # noqa: PLR0913, PLR0917 -- one batch, whole
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    longest: int,
    ends: Sequence[int],
    rows: int,
    moving: Callable[[], None],
    askers: Askers | None = None,
) -> Answers | None:
    """By continuous batching, as an endpoint answers: at most `rows` at once, and `moving` is
    called before each forward pass. None for a model that cannot be batched so, that computes its
    attention as no endpoint does, or that would be slower: on a GPU, attention sequence by sequence
    has a kernel in half precision only."""
    from workers.engine.greedy import greedy
    from workers.models.sequences import KERNEL_DTYPES

    if model.config._attn_implementation not in SERVED:
        return None
    if model.device.type != "cpu" and model.dtype not in KERNEL_DTYPES:
        return None
    try:
        answers = greedy(model, prompts, longest, ends, rows, moving, askers)
    except InputError:
        return None
    return [_before(ends, ids) for ids in answers]


def padded(  # noqa: PLR0913 -- one batch, whole
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    longest: int,
    ends: Sequence[int],
    *,
    pad: int,
    together: bool = False,
) -> Answers:
    """In one batch, until the last of them has ended; `together` where every worker must take each
    step."""
    ids_BS, mask_BS = collate_prompts(prompts, pad)
    config = GenerationConfig(
        do_sample=False, max_new_tokens=longest, eos_token_id=list(ends), pad_token_id=pad
    )
    whole_BS = model.generate(
        ids_BS.to(model.device),
        attention_mask=mask_BS.to(model.device),
        generation_config=config,
        synced_gpus=together,
    )
    return [_before(ends, ids) for ids in whole_BS[:, ids_BS.shape[1] :].tolist()]


def _before(ends: Sequence[int], ids: list[int]) -> list[int]:
    return ids[: next((at for at, token in enumerate(ids) if token in ends), len(ids))]
