"""The processes of one test, which work together."""

import multiprocessing
from collections.abc import Callable
from typing import Any

from torch import multiprocessing as torch_multiprocessing
from torch.multiprocessing.spawn import ProcessContext

_IMPORTED = [
    "deepspeed",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
    "workers.train.loop",
]


def run_together(work: Callable[..., None], *arguments: Any, processes: int) -> None:
    """work(rank, *arguments) in so many processes; what one of them raises is raised here."""
    started = start_together(work, *arguments, processes=processes)
    while not started.join():
        pass


def start_together(work: Callable[..., None], *arguments: Any, processes: int) -> ProcessContext:
    """work(rank, *arguments) in so many processes, which go on by themselves.

    They are forked from a process of one thread that has imported what takes each of them ten
    seconds to import.
    """
    multiprocessing.set_forkserver_preload(_IMPORTED)
    started = torch_multiprocessing.start_processes(
        work, arguments, nprocs=processes, join=False, start_method="forkserver"
    )
    assert started is not None
    return started
