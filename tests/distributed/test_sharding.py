"""FSDP2 and ZeRO give what one process gives, and no worker holds the base whole."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from tests.distributed.sharding_cases import (
    LAYOUTS,
    OTHER_OPTIMIZERS,
    PLAIN,
    RELAY,
    STEPS,
    VOCABULARY,
    WITH_EXPERT_PARALLELISM,
    Layout,
    Run,
    Trace,
    micro_batches,
)
from tests.processes import by_first, run_together
from tests.tiny import write_mixture
from workers.adapter.digest import base_digest
from workers.config.base import override
from workers.config.parallel import ParallelSpec
from workers.config.train import TrainSpec
from workers.models.base import load_base
from workers.parallel.mesh import Mesh
from workers.parallel.update import State
from workers.run.record import Metrics, RunPlan
from workers.train.forward import batch_loss
from workers.train.loop import TrainingRun

MICRO = 2
NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture(scope="module")
def large_model_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of about 100 MB, so that its weights stand out in a process's memory."""
    folder = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=4,
    )
    return save(LlamaForCausalLM(config), folder, tiny_model_dir)


@pytest.fixture(scope="module")
def gpt2_model_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Biases, weights that are kept transposed, and other names for everything."""
    config = GPT2Config(
        vocab_size=VOCABULARY + 4, n_embd=32, n_layer=2, n_head=2, n_positions=64, **NO_DROPOUT
    )
    return save(GPT2LMHeadModel(config), tmp_path_factory.mktemp("gpt2"), tiny_model_dir)


def save(model: PreTrainedModel, folder: Path, tokenizer: Path) -> Path:
    model.save_pretrained(folder)
    for file in tokenizer.glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.usefixtures("processes")
def test_two_workers_equal_one_process(
    tiny_model_dir: Path,
    gpt2_model_dir: Path,
    large_model_dir: Path,
    make_spec: Callable[..., TrainSpec],
    tmp_path: Path,
) -> None:
    specs = [
        make_spec(
            optimizer__lr=5e-4,
            parallel__workers=2,
            parallel__strategy=strategy,
            parallel__zero_stage=3,
            parallel__ep_size=ep_size,
            model__activation_checkpointing=ep_size > 1,
            evaluation__generate=True,
            evaluation__max_new_tokens=8,
            evaluation__rows_per_task=3,  # shares of unequal size
            evaluation__batch_size=2,
        )
        for strategy, ep_size in (("fsdp2", 1), ("deepspeed", 1), ("fsdp2", 2))
    ]
    models = tiny_model_dir, gpt2_model_dir, large_model_dir
    run_together(two_workers, models, specs, tmp_path, processes=2)


@pytest.mark.usefixtures("processes")
def test_a_mixture_s_own_experts_in_shards(tiny_model_dir: Path, tmp_path: Path) -> None:
    mixture = write_mixture(tiny_model_dir, tmp_path / "mixture")
    run_together(adapting_experts, mixture, tmp_path, processes=2)


@pytest.mark.usefixtures("processes")
def test_four_workers_go_on_where_one_stopped(tiny_model_dir: Path, tmp_path: Path) -> None:
    run_together(four_workers, tiny_model_dir, tmp_path, processes=4)


def two_workers(
    rank: int, models: tuple[Path, Path, Path], specs: Sequence[TrainSpec], folder: Path
) -> None:
    model, gpt2, large = models
    with worker(rank, 2, folder) as mesh:
        check_memory(large, mesh)  # First: what was used before may be used again unseen.
        check_parity(model, "block", mesh, LAYOUTS)
        check_parity(model, "linear dora", mesh, PLAIN)
        check_parity(gpt2, "block", mesh, PLAIN)
        check_parity(model, "even block", mesh, WITH_EXPERT_PARALLELISM)
        for layout in OTHER_OPTIMIZERS:
            check_optimizer(model, mesh, layout)
        check_relay(model, mesh)
        for spec in specs:
            check_training(spec, folder / f"{spec.parallel.strategy}-{spec.parallel.ep_size}", mesh)


def adapting_experts(rank: int, model: Path, folder: Path) -> None:
    with worker(rank, 2, folder) as mesh:
        again = [Layout("fsdp2", checkpointing=True), Layout("deepspeed", 3, checkpointing=True)]
        shared = [
            Layout(strategy, ep_size=2, checkpointing=checkpointing)
            for strategy in ("ddp", "fsdp2")
            for checkpointing in (False, True)
        ]
        check_parity(model, "stacked", mesh, [Layout(), *PLAIN, *again, *shared])
        check_parity(model, "only stacked", mesh, [PLAIN[0], *shared])


def four_workers(rank: int, model: Path, folder: Path) -> None:
    with worker(rank, 4, folder) as mesh:
        saved, expected = by_first(mesh.world, partial(halves, Layout(), model, "block", 1))
        run = Run.of(Layout("fsdp2"), model, "block", mesh)
        run.update.load_whole_state(saved)
        run.train(range(2, STEPS), 1).trace().compare(second(expected), 1e-5)


def halves(layout: Layout, model: Path, adapter: str, micro: int) -> tuple[State, Trace]:
    """Where one process stands after two steps, and the trace of these and the others."""
    alone = Run.of(layout, model, adapter).train(range(2), micro)
    saved = alone.update.whole_state()
    return saved, alone.train(range(2, STEPS), micro).trace()


def second(trace: Trace) -> Trace:
    """The same without its first two steps."""
    return replace(trace, losses=trace.losses[2:], norms=trace.norms[2:])


@contextmanager
def worker(rank: int, world: int, folder: Path) -> Iterator[Mesh]:
    """This process as one of a process group's."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # As Ray and torchrun set it.
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=world)
    yield Mesh.of(ParallelSpec(workers=world))
    dist.barrier()
    dist.destroy_process_group()


def check_parity(model: Path, adapter: str, mesh: Mesh, layouts: Sequence[Layout]) -> None:
    """Loss, norm, parameters and optimizer after some steps are one process's."""
    for dtype in dict.fromkeys(one.dtype for one in layouts):
        tolerance = TOLERANCE[dtype]
        expected = by_first(mesh.world, partial(traced, Layout(dtype=dtype), model, adapter))
        for layout in (one for one in layouts if one.dtype is dtype):
            trace = traced(layout, model, adapter, mesh)
            try:
                trace.compare(expected, tolerance)
            except AssertionError as error:
                raise AssertionError(f"{layout}, {adapter}: {error}") from None


def traced(layout: Layout, model: Path, adapter: str, mesh: Mesh | None = None) -> Trace:
    """Of some steps."""
    return Run.of(layout, model, adapter, mesh).train(range(STEPS), MICRO).trace()


def check_optimizer(model: Path, mesh: Mesh, layout: Layout) -> None:
    """As `check_parity`, with another optimizer; and it goes on from the state of one process."""
    plain = Layout(
        dtype=layout.dtype, optimizer=layout.optimizer, momentum=layout.momentum, lr=layout.lr
    )
    saved, expected = by_first(mesh.world, partial(halves, plain, model, "even block", MICRO))
    trace = traced(layout, model, "even block", mesh)
    resumed = Run.of(layout, model, "even block", mesh)
    resumed.update.load_whole_state(saved)
    again = resumed.train(range(2, STEPS), MICRO).trace()
    try:
        trace.compare(expected, TOLERANCE[layout.dtype])
        again.compare(second(expected), TOLERANCE[layout.dtype])
    except AssertionError as error:
        raise AssertionError(f"{layout}: {error}") from None


def check_relay(model: Path, mesh: Mesh) -> None:
    """A state saved in one layout goes on in any other; gradients that were dropped leave nothing
    behind."""
    expected = by_first(mesh.world, partial(figures, model))
    state: State | None = None
    schedule: dict[str, Any] = {}
    for step, layout in enumerate(RELAY):
        run = Run.of(layout, model, "even block", mesh)
        if state is not None:
            run.update.load_whole_state(state)
            run.step.load_schedule_state(schedule)
        drop_one(run)
        ours = run.train([step], MICRO).results[0]
        both = ours.losses["loss"], ours.grad_norm
        assert both == pytest.approx(expected[step], rel=1e-5), layout
        state = mesh.world.gather(run.update.whole_state())[0]
        schedule = run.step.schedule_state()


def figures(model: Path) -> list[tuple[float, float]]:
    """One process's loss and norm at each step of the relay."""
    alone = Run.of(Layout(), model, "even block").train(range(len(RELAY)), MICRO)
    return [(one.losses["loss"], one.grad_norm) for one in alone.results]


def drop_one(run: Run) -> None:
    """Take a step up to its end, and drop it there."""
    world = run.update.world
    for batch in micro_batches(99, MICRO, world.rank, world.size):
        run.update.backward(batch_loss(run.base, batch))
    run.update.reduce()
    run.update.clip(1.0)
    run.update.drop()


def check_memory(model: Path, mesh: Mesh) -> None:
    """While FSDP2's base is read, and after, a worker has its share of it and little else."""
    spec = Layout("fsdp2").spec(model, "block", mesh.world.size)
    # Of a type other than the files': on a CPU, the same would be mapped from them and not copied.
    spec = override(spec, {"model.dtype": "bfloat16"}, "test")
    with Watch() as sharded:
        base = load_base(spec.model, spec.parallel)
    with Watch() as plain:
        expected = load_base(spec.model)
    size = sum(weight.nbytes for weight in expected.model.parameters())
    assert plain.growth > 0.9 * size, "this test cannot see weights"
    assert sharded.growth < 0.65 * size
    local = sum(
        weight.to_local().nbytes if isinstance(weight, DTensor) else weight.nbytes
        for weight in base.model.parameters()
    )
    assert local <= size / mesh.world.size * 1.01
    assert base_digest(base.model) == base_digest(expected.model)


class Watch:
    """How far a process's own memory (what it has mapped from files not counted) grows; looked at
    whenever a module is given a weight, and at the end."""

    def __enter__(self) -> Self:
        self._before, self.growth = own_memory(), 0
        self._handle = register_module_parameter_registration_hook(lambda *_: self._look())
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()
        self._look()

    def _look(self) -> None:
        self.growth = max(self.growth, own_memory() - self._before)


def own_memory() -> int:
    """Bytes of anonymous memory of this process."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def check_training(spec: TrainSpec, folder: Path, mesh: Mesh) -> None:
    """A whole run, evaluation by generating included, gives one process's figures, and goes on from
    its checkpoint."""
    expected = by_first(mesh.world, partial(advanced, spec, folder))
    (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
    mesh.world.barrier()
    run = TrainingRun(spec, RunPlan(folder, "s"))
    assert_close(run.advance(), expected[0])
    run.save(folder / "checkpoint")
    mesh.world.barrier()
    resumed = TrainingRun(spec, RunPlan(folder, "s"))
    resumed.load(folder / "checkpoint")
    assert_close(resumed.advance(), expected[1])


def advanced(spec: TrainSpec, folder: Path) -> list[Metrics]:
    """One process's first two reports."""
    alone = TrainingRun(
        spec.model_copy(update={"parallel": ParallelSpec()}),
        RunPlan(folder, "s"),
        world=Mesh().world,
    )
    return [alone.advance(), alone.advance()]


def assert_close(ours: Metrics, theirs: Metrics) -> None:
    for name in ("loss", "cross_entropy", "grad_norm"):
        assert ours["train"][name] == pytest.approx(theirs["train"][name], rel=1e-5)
    assert ours["validation"]["loss"] == pytest.approx(theirs["validation"]["loss"], rel=1e-5)
    assert ours["validation"]["score"] == theirs["validation"]["score"]
