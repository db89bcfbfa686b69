"""transformers' continuous batching, set up for an engine."""

import time

from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
)
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager
from transformers.generation.continuous_batching.model_runner import (
    infer_max_single_request_tokens,
)

from workers.engine.attention import attend_as_before, attend_by_sequence
from workers.engine.request import Limits
from workers.engine.sampler import Sampler
from workers.spec import InputError

PAGE = 32
"""Tokens of a cache page: what a request's share of the cache is rounded up to."""
ROWS = 256
"""Requests of one forward pass at most: each needs a row of logits as wide as the vocabulary."""


def start_manager(
    model: PreTrainedModel, limits: Limits, sampler: Sampler
) -> ContinuousBatchingManager:
    """Start a generation thread. Raises InputError where the model or the memory does not allow it.

    The loop is greedy, and the sampler leaves it one token to choose. Blocks are not shared
    between requests: a prefix's keys and values depend on the adapter, and the library's prefix
    cache looks at token ids alone. No graphs and no asynchronous batches: hooks must run, and see
    the batch that is computed.
    """
    config = ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=-(-limits.cache_tokens // PAGE),
        max_batch_tokens=limits.max_batch_tokens,
        max_requests_per_batch=min(ROWS, limits.max_batch_tokens),
        allow_block_sharing=False,
        use_async_batching=False,
        use_cuda_graph=False,
        auto_switch_to_flash=False,
        safety_margin=0.0,  # the engine admits what fits
    )
    attend_as_before(model)  # the library refuses a way that it does not know
    try:
        manager = model.init_continuous_batching(
            GenerationConfig(do_sample=False, eos_token_id=-1), config
        )
    except (ValueError, AttributeError, NotImplementedError) as error:
        raise InputError(f"the base model cannot be batched: {error}") from error
    manager.logit_processor = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([sampler]))
    attend_by_sequence(model)
    manager.start()
    while manager.batch_processor is None:
        if not manager.is_running():
            why = manager.background_thread_status.fatal_error
            raise InputError(f"the engine does not start: {why}") from why
        time.sleep(0.005)
    return manager


def stop_manager(manager: ContinuousBatchingManager, timeout: float | None = None) -> None:
    """Stop the generation thread at once, free its cache, and leave the model as it was."""
    manager.stop(block=True, timeout=timeout, hard_stop=True)
    attend_as_before(manager.model)


def longest_sequence(manager: ContinuousBatchingManager) -> int:
    """Tokens that one request, alone, may have in the cache."""
    return int(infer_max_single_request_tokens(manager.batch_processor.cache))
