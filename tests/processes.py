"""The processes of one test, which work together."""

import gc
import multiprocessing
from collections.abc import Callable
from typing import Any, TypeVar

from torch import multiprocessing as torch_multiprocessing
from torch.multiprocessing.spawn import ProcessContext

from workers.parallel.world import World

Result = TypeVar("Result")
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
        _one, (work, *arguments), nprocs=processes, join=False, start_method="forkserver"
    )
    assert started is not None
    return started


def by_first(world: World, compute: Callable[[], Result]) -> Result:
    """What the first of them computes, for all: the others need not do the same."""
    result: Result = world.gather(compute() if world.is_first else None)[0]
    return result


def _one(rank: int, work: Callable[..., None], *arguments: Any) -> None:
    """The garbage collector looks at nothing that was imported, which takes it most of a second
    each time that DeepSpeed or a case asks for it."""
    gc.freeze()
    work(rank, *arguments)
