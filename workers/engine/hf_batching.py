"""transformers' continuous batching, set up for an engine."""

import time
from collections.abc import Callable
from inspect import signature
from typing import Any

from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
)
from transformers.generation.continuous_batching.cache_allocators import SLIDING_ATTENTION
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.continuous_api import (
    ContinuousBatchingManager,
    ContinuousBatchProcessor,
)
from transformers.generation.continuous_batching.initialization import (
    update_cb_config_after_cache_creation,
)
from transformers.generation.continuous_batching.model_runner import (
    infer_max_single_request_tokens,
)
from transformers.generation.continuous_batching.requests import RequestState, RequestStatus
from transformers.generation.continuous_batching.scheduler import FIFOScheduler

from workers.config.base import InputError
from workers.engine.prefix_cache import PAGE, Salt, SlotCache
from workers.engine.request import Limits
from workers.engine.sampler import Sampler
from workers.layers.ops.random_state import random_state_kept
from workers.models.attention import attend_as_before, attend_by_sequence

ROWS = 256
"""Requests of one forward pass at most: each needs a row of logits as wide as the vocabulary."""

Turn = tuple[int, ...]


class FairScheduler(FIFOScheduler):  # type: ignore[misc]
    """The library's: who decodes comes first. Then prompts are read, here by whose turn it is."""

    def __init__(self, turn_of: Callable[[str], Turn], *args: Any) -> None:
        """`turn_of` says it by a request's name, the smaller the sooner."""
        super().__init__(*args)
        self._turn_of = turn_of

    def _process_candidates(self, candidates: list[RequestState], *rest: Any) -> Any:
        first = sum(state.status == RequestStatus.DECODING for state in candidates)
        prompts = sorted(candidates[first:], key=lambda state: self._turn_of(state.request_id))
        return super()._process_candidates([*candidates[:first], *prompts], *rest)


class Manager(ContinuousBatchingManager):  # type: ignore[misc]
    """The library's manager of a generation thread, with our cache, and a sampler of our own."""

    def __init__(
        self,
        model: PreTrainedModel,
        config: ContinuousBatchingConfig,
        sampler: Sampler,
        salt_of: Callable[[str], Salt],
        turn_of: Callable[[str], Turn],
    ) -> None:
        super().__init__(model, GenerationConfig(do_sample=False, eos_token_id=-1), config)
        self.logit_processor = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([sampler]))
        self._salt_of, self._turn_of = salt_of, turn_of

    def _create_batch_processor(self) -> ContinuousBatchProcessor:
        """As the library's own, which has no other place for a cache of another class."""
        model, settings = self.model, self.continuous_batching_config
        config = model.config.get_text_config()
        cache = SlotCache(
            self._salt_of,
            config=config,
            continuous_batching_config=settings,
            device=model.device,
            distributed_helper=self.distributed_helper,
            dtype=model.dtype,
            model_supports_logits_to_keep="logits_to_keep" in signature(model.forward).parameters,
        )
        update_cb_config_after_cache_creation(settings, cache.num_blocks, cache.max_batch_tokens)
        if SLIDING_ATTENTION in cache.cache_allocators:
            settings.max_blocks_per_request = 0
        with random_state_kept(model.device):  # it seeds torch's generators anew
            return ContinuousBatchProcessor(
                cache=cache,
                config=config,
                generation_config=self.generation_config,
                continuous_batching_config=settings,
                logit_processor=self.logit_processor,
                input_queue=self.input_queue,
                cancel_queue=self.cancel_queue,
                output_router=self.output_router,
                background_thread_status=self.background_thread_status,
                model_device=model.device,
                model_dtype=model.dtype,
                scheduler=FairScheduler(
                    self._turn_of, cache, settings.safety_margin, settings.max_requests_per_batch
                ),
                distributed_helper=self.distributed_helper,
            )


def start_manager(
    model: PreTrainedModel,
    limits: Limits,
    sampler: Sampler,
    salt_of: Callable[[str], Salt],
    turn_of: Callable[[str], Turn],
) -> Manager:
    """Start a generation thread. Raises InputError where the model or the memory does not allow it.

    The loop is greedy, and the sampler leaves it one token to choose. No graphs and no asynchronous
    batches: hooks must run, and see the batch that is computed.
    """
    config = ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=-(-limits.cache_tokens // PAGE),
        max_batch_tokens=limits.max_batch_tokens,
        max_requests_per_batch=min(ROWS, limits.max_batch_tokens),
        allow_block_sharing=True,
        use_async_batching=False,
        use_cuda_graph=False,
        auto_switch_to_flash=False,
        safety_margin=0.0,  # the engine admits what fits
    )
    attend_as_before(model)  # the library refuses a way that it does not know
    try:
        manager = Manager(model, config, sampler, salt_of, turn_of)
    except (ValueError, AttributeError, NotImplementedError) as error:
        raise InputError(f"the base model cannot be batched: {error}") from error
    attend_by_sequence(model)
    manager.start()
    while manager.batch_processor is None:
        if not manager.is_running():
            why = manager.background_thread_status.fatal_error
            raise InputError(f"the engine does not start: {why}") from why
        time.sleep(0.005)
    return manager


def most_rows(limits: Limits) -> int:
    """Requests that run at once at most: each has its row in every pass, and half of a pass is left
    for the prompts of those that come."""
    return max(1, min(ROWS, limits.max_batch_tokens // 2))


def stop_manager(manager: ContinuousBatchingManager, timeout: float | None = None) -> None:
    """Stop the generation thread at once, free its cache, and leave the model as it was."""
    manager.stop(block=True, timeout=timeout, hard_stop=True)
    attend_as_before(manager.model)


def longest_sequence(manager: ContinuousBatchingManager) -> int:
    """Tokens that one request, alone, may have in the cache."""
    return int(infer_max_single_request_tokens(manager.batch_processor.cache))
