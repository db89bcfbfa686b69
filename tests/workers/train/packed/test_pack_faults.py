"""What goes wrong in a run of a pack goes wrong in it alone; and runs come and go."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.workers.train.greedy import greedy, rows
from workers.config.base import InputError
from workers.config.train import TrainSpec
from workers.run.events import read_events
from workers.run.record import RunPlan, read_progress
from workers.train.loop import TrainingRun
from workers.train.packed.joint_layout import JointLayout
from workers.train.packed.pack import Pack
from workers.train.step import DivergedError
from workers.train.task import RunTask

SpecMaker = Callable[..., TrainSpec]
Weights = dict[str, torch.nn.Parameter]
SHORT = {"optimizer__steps": 4, "evaluation__every": 2, "evaluation__samples": 0}
LOUD = {
    "loss__z_loss_weight": 1e-3,
    "loss__contrastive_weight": 0.05,
    "loss__contrastive_anchors": 16,
}


@pytest.fixture
def joined(make_spec: SpecMaker, tmp_path: Path) -> Callable[..., Weights]:
    """`joined(pack, "a", seed=1, …)`: a run that joins a pack, in float64; its weights."""

    def join(pack: Pack, name: str, **fields: object) -> Weights:
        folder = tmp_path / "trials" / name
        spec = make_spec(**{**SHORT, **LOUD, **fields})
        pack.join(RunTask(spec, RunPlan(folder, "study", shared=tmp_path)))
        assert pack._inputs is not None
        pack._inputs.base.model.double()
        return dict(pack._slots[name].run.adapter.named_parameters())

    return join


@pytest.fixture(scope="module")
def fresh(
    make_spec: SpecMaker, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., TrainingRun]:
    """`fresh(seed=1, …)`: such a run without others, before its first step."""

    def made(**fields: object) -> TrainingRun:
        spec = make_spec(**{**SHORT, **LOUD, **fields})
        run = TrainingRun(spec, RunPlan(tmp_path_factory.mktemp("alone"), "study"))
        run.inputs.base.model.double()
        return run

    return made


@pytest.fixture(scope="module")
def alone(fresh: Callable[..., TrainingRun]) -> Callable[..., Weights]:
    """`alone(seed=1, …)`: the weights of such a run at its end, which is run once."""
    known: dict[str, Weights] = {}

    def ended(**fields: object) -> Weights:
        if (name := repr(sorted(fields.items()))) not in known:
            run = fresh(**fields)
            while not run.done:
                run.advance()
            known[name] = dict(run.adapter.named_parameters())
        return known[name]

    return ended


def far(weights: Weights, others: Weights) -> float:
    return max(float((weights[name] - others[name]).detach().abs().max()) for name in others)


def to_the_end(pack: Pack) -> dict[str, object]:
    told: dict[str, object] = {}
    while pack.names:
        told |= pack.round(pack.names)
    return told


@pytest.mark.parametrize("flaw", ["no number", "overflows"])
@pytest.mark.parametrize("kind", ["block", "linear"])
def test_a_run_that_diverges_ends_as_alone_and_touches_nobody(
    joined: Callable[..., Weights],
    alone: Callable[..., Weights],
    fresh: Callable[..., TrainingRun],
    tmp_path: Path,
    kind: str,
    flaw: str,
) -> None:
    def spoil(weights: Weights) -> None:
        with torch.no_grad():
            for name, one in weights.items():
                if name.endswith("lora_B"):
                    one.fill_(1e300 if flaw == "overflows" else torch.nan)

    bad = {"adapter__experts": kind, "optimizer__max_skipped_steps": 2, "seed": 9}
    pack = Pack(3)
    good = joined(pack, "good", seed=1)
    spoil(joined(pack, "bad", **bad))
    other = joined(pack, "other", seed=2, adapter__experts="linear")
    told = to_the_end(pack)
    ended = told["bad"]
    made = fresh(**bad)
    spoil(dict(made.adapter.named_parameters()))
    with pytest.raises(DivergedError) as wanted:
        made.advance()
    made.close()
    assert isinstance(ended, DivergedError)
    assert str(ended) == str(wanted.value)
    skipped = [one.step for one in read_events(tmp_path / "trials/bad") if one.kind == "skipped"]
    assert skipped == [0, 1]
    assert str(ended) in (tmp_path / "trials/bad/error.txt").read_text()
    assert far(good, alone(seed=1)) < 1e-10
    assert far(other, alone(seed=2, adapter__experts="linear")) < 1e-10


def test_a_slot_that_is_free_is_taken_and_left_in_between(
    joined: Callable[..., Weights], alone: Callable[..., Weights], tmp_path: Path
) -> None:
    """One joins in the midst, one leaves for good, and one goes on later from its checkpoint."""
    fields = {"optimizer__name": "sgd", "checkpoint__every": 2, "adapter__dropout": 0.0}
    fields |= {"optimizer__steps": 8, "evaluation__every": 4}
    pack = Pack(3)
    first = joined(pack, "first", seed=1, **fields)
    joined(pack, "gone", seed=2, **fields)
    joined(pack, "back", seed=3, **fields)
    for _ in range(3):
        assert pack.round(pack.names) == {}
    pack.leave("gone")
    pack.leave("back")
    late = joined(pack, "late", seed=4, **fields)
    assert pack.round(["late"]) == {}, "nobody asked the first one to go on"
    assert pack._slots["first"].run.step == 3
    pack.round(["first", "late"])
    back = joined(pack, "back", seed=3, **fields)
    assert pack._slots["back"].run.step == 2
    told = to_the_end(pack)
    assert {name: one["done"] for name, one in told.items()} == dict.fromkeys(
        ("first", "back", "late"), True
    )
    for weights, seed in ((first, 1), (late, 4)):
        assert far(weights, alone(seed=seed, **fields)) < 1e-10
    assert far(back, alone(seed=3, **fields)) < 1e-5, "a checkpoint holds float32"
    assert [one["step"] for one in read_progress(tmp_path / "trials/back")] == [4, 8]


def test_a_run_goes_on_alone_from_a_packs_checkpoint(
    joined: Callable[..., Weights],
    alone: Callable[..., Weights],
    fresh: Callable[..., TrainingRun],
    tmp_path: Path,
) -> None:
    pack, fields = Pack(2), {"optimizer__name": "sgd"}
    joined(pack, "one", seed=1, **fields)
    joined(pack, "two", seed=2, **fields)
    while not read_progress(tmp_path / "trials/one"):
        pack.round(pack.names)
    pack.close()
    run = fresh(seed=1, **fields)
    run.load(next((tmp_path / "trials/one/checkpoints").glob("step-*")))
    run.advance()
    assert run.done
    assert far(dict(run.adapter.named_parameters()), alone(seed=1, **fields)) < 1e-5
    run.close()


@pytest.mark.parametrize("held", [16, 8, 3])
def test_memory_that_runs_out_loses_nobody(
    joined: Callable[..., Weights], alone: Callable[..., Weights], tmp_path: Path, held: int
) -> None:
    """First fewer runs share a pass, which changes nothing of what they learn; then each takes
    smaller passes, as alone."""
    pack = Pack(4, layout=JointLayout(in_one_row=False, apart=False))
    seeds = {"a": 1, "b": 2, "c": 3, "d": 4}
    weights = {name: joined(pack, name, seed=seed) for name, seed in seeds.items()}
    assert pack._inputs is not None
    hook = greedy(pack._inputs.base.model, rows(held), mode="training", backward=True)
    told = to_the_end(pack)
    hook.remove()
    assert all(one["done"] for one in told.values())
    said = [one.message for one in read_events(tmp_path / "trials/a") if one.kind == "memory"]
    shared = "out of memory: {} of the pack's runs at most in a pass from here on (before: {})"
    smaller = "out of memory: {} rows at most in a forward pass from here on (before: {}); the "
    wanted = [shared.format(2, 4)]
    wanted += [shared.format(1, 2)] if held < 16 else []
    assert said[: len(wanted)] == wanted
    assert len(said) == len(wanted) + (2 if held == 3 else 0)
    assert all(one.startswith(smaller[:15]) for one in said)
    micro = {"optimizer__micro_batch_size": 2} if held == 3 else {}
    for name, seed in seeds.items():
        assert far(weights[name], alone(seed=seed, **micro)) < 1e-10


def test_one_whose_smallest_pass_does_not_fit_ends_alone(
    joined: Callable[..., Weights], tmp_path: Path
) -> None:
    pack = Pack(2)
    joined(pack, "one", optimizer__batch_size=1)
    joined(pack, "two", optimizer__batch_size=1)
    assert pack._inputs is not None
    hook = greedy(pack._inputs.base.model, rows(0), mode="training")
    told = to_the_end(pack)
    hook.remove()
    for name in ("one", "two"):
        assert "out of memory with one row in a forward pass" in str(told[name])
        assert (tmp_path / "trials" / name / "error.txt").exists()


def test_what_fails_a_pass_fails_its_run_alone(joined: Callable[..., Weights]) -> None:
    pack = Pack(3)
    for name in ("a", "bad", "b"):
        joined(pack, name)
    layer = next(iter(pack._slots["bad"].run.adapter.layers))

    def fail(*_: object) -> None:
        raise ValueError("of this run alone")

    layer.router.register_forward_pre_hook(fail)
    told = to_the_end(pack)
    assert str(told["bad"]) == "of this run alone"
    assert all(told[name]["done"] for name in ("a", "b"))


@pytest.mark.parametrize(
    "fields",
    [
        {"model__compile": True},
        {"adapter__train_also": ("lm_head",)},
        {"adapter__train_tokens": (7,)},
        {"parallel__strategy": "fsdp2", "parallel__workers": 2},
        {"parallel__strategy": "deepspeed", "parallel__workers": 2},
        {"parallel__ep_size": 2, "parallel__workers": 2},
        {"parallel__workers": {"min": 1, "max": 2}},
    ],
)
def test_what_cannot_be_packed_is_refused(
    joined: Callable[..., Weights], fields: dict[str, object]
) -> None:
    pack = Pack(2)
    with pytest.raises(InputError, match=r"search\.pack: .*; leave search\.pack at 1$"):
        joined(pack, "one", **fields)
    assert pack.names == []


def test_rows_that_are_streamed(
    joined: Callable[..., Weights], alone: Callable[..., Weights]
) -> None:
    fields = {"data__streaming": True, "data__streaming_buffer": 16}
    pack = Pack(2)
    first = joined(pack, "first", seed=1, **fields)
    second = joined(pack, "second", seed=2, **fields)
    to_the_end(pack)
    assert far(first, alone(seed=1, **fields)) < 1e-10
    assert far(second, alone(seed=2, **fields)) < 1e-10
