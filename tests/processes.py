"""The processes of one test, which work together."""

import multiprocessing
from collections.abc import Callable
from typing import Any

from torch import multiprocessing as torch_multiprocessing

_IMPORTED = [
    "deepspeed",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
    "workers.train.loop",
]


def run_together(work: Callable[..., None], *arguments: Any, processes: int) -> None:
    """work(rank, *arguments) in so many processes; what one of them raises is raised here.

    They are forked from a process of one thread that has imported what takes each of them ten
    seconds to import.
    """
    multiprocessing.set_forkserver_preload(_IMPORTED)
    torch_multiprocessing.start_processes(
        work, arguments, nprocs=processes, start_method="forkserver"
    )
