"""Greedy answers to many prompts by continuous batching: what an answer's end leaves free, the next
prompt takes. For whoever has all prompts at once; requests that come and go want an engine."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

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
from workers.engine.prefix_cache import PAGE, Salt, fresh_salt
from workers.engine.request import Limits
from workers.engine.sampler import Sampler
from workers.injection.askers import Askers
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
    askers: Askers | None = None,
) -> list[list[int]]:
    """The likeliest tokens behind each prompt: up to `longest`, or to one of `ends`, which is told
    too. At most `rows` answers are under way at once, and `passing` is called before each forward
    pass. `askers` of prompts to several adapters. Raises InputError where this model cannot be
    batched so; the model stays as it was.
    """
    if not prompts:
        return []
    with askers.rows.everywhere(None) if askers else nullcontext():
        check_attention(model)
    salt = fresh_salt()
    salts = _salts(askers) if askers else lambda _: salt
    limits = _limits(prompts, longest, rows)
    manager = start_manager(model, limits, Sampler(), salts, lambda _: ())
    try:
        if longest_sequence(manager) < max(map(len, prompts)) + longest:
            raise InputError("the base model cannot be batched: a prompt has no room in its cache")
        with _told(model, manager, passing, askers):
            return _answers(manager, prompts, longest, ends, min(rows, ROWS))
    finally:
        stop_manager(manager)


@contextmanager
def _told(
    model: PreTrainedModel, manager: Manager, passing: Callable[[], None], askers: Askers | None
) -> Iterator[None]:
    def before(*_: object) -> None:
        passing()
        if askers:
            _tell(askers, manager)

    hook = model.register_forward_pre_hook(before)
    try:
        yield
    finally:
        hook.remove()
        if askers:
            askers.rows.clear()


def _salts(askers: Askers) -> Callable[[str], Salt]:
    """Keys and values are an adapter's own: prompts of one share what they begin with."""
    own = {slot: fresh_salt() for slot in set(askers.slots)}
    return lambda name: own[askers.slots[int(name)]]


def _tell(askers: Askers, manager: Manager) -> None:
    """Say whose the tokens of the next forward pass are."""
    batch = manager.batch_processor.inputs_and_outputs.requests_in_batch
    whose = [askers.slots[int(one.state.request_id)] for one in batch]
    by_token = [
        slot for slot, one in zip(whose, batch, strict=True) for _ in range(one.query_length)
    ]
    drawn = [slot for slot, one in zip(whose, batch, strict=True) if one.has_new_token]
    askers.rows.set(by_token, set(askers.slots), drawn)


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
