"""A pass that does not fit into memory: the run goes on in smaller ones, as if it had begun so."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.workers.train.greedy import ask, greedy, rows, tokens
from tests.workers.train.one_trial import trial
from workers.config.train import TrainSpec
from workers.run.events import read_events
from workers.run.record import RunPlan, read_progress, read_rows, reason
from workers.train.inputs import Inputs
from workers.train.loop import TrainingRun
from workers.train.out_of_memory import DoesNotFitError, is_out_of_memory

SpecMaker = Callable[..., TrainSpec]
LOSSES = {"loss__z_loss_weight": 1e-3, "loss__contrastive_weight": 0.01}
WAYS = {
    "padded": {},
    "dropout": {"adapter__dropout": 0.2, "adapter__routing": "switch", **LOSSES},
    "linear experts": {"adapter__experts": "linear", "adapter__dropout": 0.1},
    "checkpointing": {"model__activation_checkpointing": True, "adapter__dropout": 0.1},
    "streaming": {"data__streaming": True, "data__streaming_buffer": 16, "adapter__dropout": 0.1},
}


def weights(run: TrainingRun) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.adapter.state_dict().items()}


def begun(spec: TrainSpec, folder: Path, inputs: Inputs | None = None) -> TrainingRun:
    folder.mkdir(exist_ok=True)
    return TrainingRun(spec, RunPlan(folder, "study"), inputs=inputs)


def to_the_end(run: TrainingRun) -> None:
    while not run.done:
        run.advance()


def said(folder: Path) -> list[tuple[int | None, str]]:
    return [(one.step, one.message) for one in read_events(folder) if one.kind == "memory"]


def assert_equal(one: TrainingRun, other: TrainingRun) -> None:
    for name, tensor in weights(other).items():
        assert torch.equal(one.adapter.state_dict()[name], tensor), name
    for part in ("loss", "grad_norm"):
        assert one.metrics["train"][part] == other.metrics["train"][part]
    assert one.metrics["validation"] == other.metrics["validation"]


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("way", WAYS)
def test_it_equals_a_run_that_began_with_the_smaller_passes(
    make_spec: SpecMaker, tmp_path: Path, way: str, backward: bool
) -> None:
    """From 8 rows to 4 to 2: the second pass of four fails after the first one's gradients."""
    changes = WAYS[way] | {"data__record_rows": True}
    whole, small = make_spec(**changes), make_spec(optimizer__micro_batch_size=2, **changes)
    run = begun(whole, tmp_path / "run")
    hook = greedy(run.inputs.base.model, rows(2), mode="training", backward=backward)
    to_the_end(run)
    hook.remove()
    wanted = begun(small, tmp_path / "small")
    to_the_end(wanted)
    assert_equal(run, wanted)
    assert said(tmp_path / "run") == [
        (0, f"out of memory: {smaller}; the batch stays 8 rows")
        for smaller in (
            "4 rows at most in a forward pass from here on (before: all rows)",
            "2 rows at most in a forward pass from here on (before: 4 rows)",
        )
    ]
    assert said(tmp_path / "small") == []
    assert read_rows(tmp_path / "run") == read_rows(tmp_path / "small")
    run.close()
    wanted.close()


def test_what_was_accumulated_before_is_dropped(make_spec: SpecMaker, tmp_path: Path) -> None:
    """The third of four passes fails, once; the step begins anew."""
    seen: list[int] = []

    def fits(hidden_BSD: torch.Tensor) -> bool:
        seen.append(len(hidden_BSD))
        return len(seen) != 3

    plain = {"adapter__dropout": 0.1, "optimizer__steps": 2}
    run = begun(make_spec(optimizer__micro_batch_size=2, **plain), tmp_path / "run")
    hook = greedy(run.inputs.base.model, fits, mode="training", backward=True)
    to_the_end(run)
    hook.remove()
    assert seen == [2] * 3 + [1] * 16
    wanted = begun(make_spec(optimizer__micro_batch_size=1, **plain), tmp_path / "small")
    to_the_end(wanted)
    assert_equal(run, wanted)


def test_packed_passes_are_halved_by_their_tokens(make_spec: SpecMaker, tmp_path: Path) -> None:
    spec = make_spec(data__packing=True, adapter__dropout=0.1)
    run = begun(spec, tmp_path / "run")
    first = sum(len(one) for one in run.taking.batches.micro_batches(0)[0])
    hook = greedy(run.inputs.base.model, tokens(first // 2), mode="training")
    to_the_end(run)
    hook.remove()
    ((step, message), *_) = said(tmp_path / "run")
    assert step == 0
    assert f"{first // 2} tokens at most in a forward pass from here on (before: all" in message
    limit = run.taking.fitting.training
    assert limit.tokens is not None
    for step in range(4):
        for passed in run.taking.batches.micro_batches(step, limit):
            assert len(passed) == 1 or sum(map(len, passed)) <= limit.tokens
    wanted = begun(spec, tmp_path / "small")
    wanted.taking.fitting.training = limit
    to_the_end(wanted)
    assert_equal(run, wanted)


@pytest.mark.parametrize("way", ["padded", "packed"])
def test_a_run_that_goes_on_keeps_what_it_has_found(
    make_spec: SpecMaker, tmp_path: Path, way: str
) -> None:
    spec = make_spec(data__packing=way == "packed", adapter__dropout=0.1)
    run = begun(spec, tmp_path / "run")
    held = {"padded": rows(4), "packed": tokens(400)}[way]
    hook = greedy(run.inputs.base.model, held)
    run.advance()
    (tmp_path / "state").mkdir()
    run.save(tmp_path / "state")
    run.advance()
    assert len(said(tmp_path / "run")) > 0
    run.adapter.remove()
    again = begun(spec, tmp_path / "again", run.inputs)
    again.load(tmp_path / "state")
    assert again.taking.fitting.training == run.taking.fitting.training
    assert again.taking.fitting.evaluation == run.taking.fitting.evaluation != spec.evaluation_limit
    again.advance()
    hook.remove()
    assert said(tmp_path / "again") == []
    assert_equal(again, run)


@pytest.mark.parametrize("generate", [False, True])
def test_an_evaluation_goes_on_with_fewer_rows(
    make_spec: SpecMaker, tmp_path: Path, generate: bool
) -> None:
    spec = make_spec(optimizer__steps=2, evaluation__generate=generate)
    whole = begun(spec, tmp_path / "whole")
    to_the_end(whole)
    whole.adapter.remove()
    run = begun(spec, tmp_path / "run", whole.inputs)
    hook = greedy(run.inputs.base.model, rows(5), mode="evaluation")
    to_the_end(run)
    hook.remove()
    assert [message.partition(" from")[0] for _, message in said(tmp_path / "run")] == [
        f"out of memory: {count} rows at most in an evaluation's pass" for count in (8, 4)
    ]
    got, wanted = run.metrics["validation"], whole.metrics["validation"]
    assert got["loss"] == pytest.approx(wanted["loss"], rel=1e-6)
    assert got.get("score") == wanted.get("score")
    for layer, expected in wanted["routing"].items():
        assert got["routing"][layer]["load"] == pytest.approx(expected["load"])
    run.close()


@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_one_row_that_does_not_fit_ends_the_run_with_a_line(
    make_spec: SpecMaker, tmp_path: Path, mode: str
) -> None:
    run = begun(make_spec(), tmp_path / "run")
    before = weights(run)
    hook = greedy(run.inputs.base.model, rows(0), mode=mode)
    with pytest.raises(DoesNotFitError) as failed:
        run.advance()
    hook.remove()
    assert reason(failed.value) == (
        "out of memory with one row in a forward pass: set model.activation_checkpointing, or "
        "lower data.max_length (128), adapter.rank (4) or adapter.num_experts (4)"
    )
    if mode == "training":
        for name, tensor in weights(run).items():
            assert torch.equal(tensor, before[name]), name
    run.close()


def test_a_tune_actor_goes_on_and_its_record_says_so(make_spec: SpecMaker, tmp_path: Path) -> None:
    spec, folder = make_spec(), tmp_path / "study" / "trials" / "T000"
    worker = trial(spec, folder)
    worker._inputs = Inputs.load(spec)
    hook = greedy(worker._inputs.base.model, rows(4))
    while not worker.train()["done"]:
        pass
    worker.stop()
    hook.remove()
    wanted = begun(make_spec(optimizer__micro_batch_size=4), tmp_path / "small")
    to_the_end(wanted)
    last = read_progress(folder)[-1]
    assert last["train"]["loss"] == wanted.metrics["train"]["loss"]
    assert any("4 rows at most in a forward pass" in message for _, message in said(folder))


def test_only_a_want_of_memory_is_taken_for_one() -> None:
    with pytest.raises(RuntimeError) as failed:
        ask()
    assert is_out_of_memory(failed.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator: "))


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from workers.config.train import TrainSpec
from workers.run.record import RunPlan
from workers.train.loop import TrainingRun

torch.set_num_threads(1)
spec = TrainSpec.model_validate_json(sys.argv[1])
run = TrainingRun(spec, RunPlan(Path(sys.argv[2]), "study"))
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
more = 60 << 20
resource.setrlimit(resource.RLIMIT_AS, (held + more, held + more))
run.advance()
print(run.taking.fitting.training.rows, run.metrics["train"]["loss"])
"""


@pytest.mark.usefixtures("processes")
def test_a_process_that_gets_no_more_memory_goes_on(make_spec: SpecMaker, tmp_path: Path) -> None:
    """The system refuses it; a pass of all rows needs three times as much as there is."""
    file, folder = tmp_path / "rows.jsonl", tmp_path / "run"
    texts = [{"prompt": f"{'ab ' * 30}{at}", "target": "cd " * 20} for at in range(64)]
    file.write_text("\n".join(map(json.dumps, texts)))
    folder.mkdir()
    changes = {
        "data__train": str(file),
        "data__validation": str(file),
        "data__max_length": 256,
        "optimizer__batch_size": 64,
        "optimizer__steps": 1,
        "evaluation__rows_per_task": 2,
        "parallel__threads": 1,
    }
    spec = make_spec(**changes)
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, spec.model_dump_json(), str(folder)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    passed, loss = ran.stdout.split()
    assert 1 <= int(passed) <= 32
    assert said(folder)[0][1].startswith("out of memory: 32 rows at most in a forward pass")
    wanted = begun(make_spec(optimizer__micro_batch_size=int(passed), **changes), tmp_path / "it")
    assert float(loss) == pytest.approx(wanted.advance()["train"]["loss"], rel=1e-5)
