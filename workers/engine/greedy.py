"""Greedy answers to many prompts by continuous batching: what an answer's end leaves free, the next
prompt takes. For whoever has all prompts at once; requests that come and go want an engine."""

import math
from collections.abc import Callable, Sequence

from transformers import PreTrainedModel
from transformers.generation.continuous_batching.requests import GenerationOutput, RequestStatus

from workers.config.base import InputError
from workers.engine.hf_batching import (
    ROWS,
    Manager,
    longest_sequence,
    start_manager,
    stop_manager,
)
from workers.engine.prefix_cache import PAGE, fresh_salt
from workers.engine.request import Limits
from workers.engine.sampler import Sampler
from workers.models.attention import check_attention

LOOK_SECONDS = 1.0
"""How often it is asked whether the generation thread still lives."""


def greedy(  # noqa: PLR0913, PLR0917 -- one batch, whole
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    longest: int,
    ends: Sequence[int],
    rows: int,
    passing: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """The likeliest tokens behind each prompt: up to `longest`, or to one of `ends`, which is told
    too. At most `rows` answers are under way at once, and `passing` is called before each forward
    pass. Raises InputError where this model cannot be batched so; the model stays as it was.
    """
    if not prompts:
        return []
    check_attention(model)
    limits, salt = _limits(prompts, longest, rows), fresh_salt()
    manager = start_manager(model, limits, Sampler(), lambda _: salt, lambda _: ())
    try:
        if longest_sequence(manager) < max(map(len, prompts)) + longest:
            raise InputError("the base model cannot be batched: a prompt has no room in its cache")
        hook = model.register_forward_pre_hook(lambda *_: passing())
        try:
            return _answers(manager, prompts, longest, ends, min(rows, ROWS))
        finally:
            hook.remove()
    finally:
        stop_manager(manager)


def _limits(prompts: Sequence[Sequence[int]], longest: int, rows: int) -> Limits:
    """The cache holds as many of the longest sequence as may be under way: none is ever thrown out.
    A page more for each, since the library asks for room before it knows that it needs none."""
    most = max(map(len, prompts))
    together = min(rows, len(prompts), ROWS)
    pages = math.ceil((most + longest) / PAGE) + 1
    one_pass = min(Limits().max_batch_tokens, sum(map(len, prompts)))
    return Limits(
        max_batch_tokens=max(2 * together, one_pass), cache_tokens=together * pages * PAGE
    )


def _answers(
    manager: Manager,
    prompts: Sequence[Sequence[int]],
    longest: int,
    ends: Sequence[int],
    rows: int,
) -> list[list[int]]:
    """Hands over the prompts, the longest first, each as another one has its answer."""
    waiting = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: dict[int, list[int]] = {}
    running = 0
    while len(answers) < len(prompts):
        while waiting and running < rows:
            index, running = waiting.pop(), running + 1
            manager.add_request(
                list(prompts[index]),
                request_id=str(index),
                max_new_tokens=longest,
                eos_token_id=list(ends) or -1,
            )
        if output := _next(manager):
            answers[int(output.request_id)] = list(output.generated_tokens)
            running -= 1
    return [answers[index] for index in range(len(prompts))]


def _next(manager: Manager) -> GenerationOutput | None:
    """An answer, or None for now. What ends the generation thread ends the caller."""
    output = manager.get_result(timeout=LOOK_SECONDS)
    if output is None or output.status == RequestStatus.FAILED:
        if error := manager.background_thread_status.fatal_error:
            raise error
        if output is not None:
            raise RuntimeError(f"an answer failed: {output.error}")
    return output
