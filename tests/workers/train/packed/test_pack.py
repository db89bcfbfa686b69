"""A run in a pack is the run alone: whatever its shape, and whoever is beside it."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from workers.config.train import TrainSpec
from workers.injection.inject import row_map
from workers.run.record import Metrics, RunPlan
from workers.run.samples import read_samples
from workers.train.inputs import Inputs
from workers.train.loop import TrainingRun
from workers.train.packed.joint_layout import JointLayout
from workers.train.packed.pack import Pack
from workers.train.task import RunTask

SpecMaker = Callable[..., TrainSpec]
Weights = Mapping[str, torch.Tensor]
Fields = Mapping[str, object]

LOSSES = {
    "loss__z_loss_weight": 1e-3,
    "loss__contrastive_weight": 0.05,
    "loss__contrastive_anchors": 16,
}
SHAPES: dict[str, Fields] = {
    "block": {"seed": 1, **LOSSES},
    "small": {"adapter__num_experts": 2, "adapter__rank": 2, "adapter__top_k": 1, "seed": 2},
    "linear": {"adapter__experts": "linear", "adapter__num_experts": 3, "optimizer__lr": 1e-3},
    "lora": {"adapter__num_experts": 1, "adapter__top_k": 1, "optimizer__weight_decay": 0.1},
    "switch": {
        "adapter__routing": "switch",
        "adapter__expert_capacity": 8,
        "adapter__top_k": 1,
        "optimizer__micro_batch_size": 2,
        **LOSSES,
    },
    "top_p": {"adapter__routing": "top_p", "optimizer__schedule": "linear", "seed": 5},
    "dora": {
        "adapter__use_dora": True,
        "adapter__target_modules": ("up_proj", "q_proj"),
        "optimizer__micro_batch_size": 4,
        "seed": 6,
    },
    "quick": {"optimizer__batch_size": 4, "optimizer__warmup_steps": 3, "seed": 7},
}
"""Runs of one pack."""


def task(spec: TrainSpec, folder: Path) -> RunTask:
    return RunTask(spec, RunPlan(folder, "study", shared=folder.parents[1]))


def folder_of(tmp_path: Path, way: str, name: str) -> Path:
    return tmp_path / way / "trials" / name


def alone(
    spec: TrainSpec, folder: Path, *, precise: bool, inputs: Inputs | None = None
) -> TrainingRun:
    """A run to its end, without the others."""
    folder.mkdir(parents=True)
    run = TrainingRun(spec, RunPlan(folder, "study"), inputs=inputs)
    if precise:
        run.inputs.base.model.double()
    while not run.done:
        run.advance()
    return run


def to_the_end(pack: Pack) -> dict[str, Metrics | Exception]:
    """All runs, each asked again as soon as it has reported; their last reports."""
    told: dict[str, Metrics | Exception] = {}
    while pack.names:
        told |= pack.round(pack.names)
    return told


FILLED = JointLayout(in_one_row=False, apart=False)
"""For bases that take no packed rows."""
JOINT = JointLayout(in_one_row=True, apart=False)
"""As on a GPU."""
APART = JointLayout(in_one_row=True, apart=True)
"""As on a CPU."""


def trained_together(
    specs: Mapping[str, TrainSpec], folder: Path, layout: JointLayout
) -> tuple[dict[str, Weights], dict[str, Metrics | Exception]]:
    """Weights and last reports, in float64."""
    pack, weights = Pack(len(specs), layout=layout), {}
    for name, spec in specs.items():
        pack.join(task(spec, folder_of(folder, "pack", name)))
        weights[name] = dict(pack._slots[name].run.adapter.named_parameters())
    assert pack._inputs is not None
    pack._inputs.base.model.double()
    return weights, to_the_end(pack)


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed rows"])
def test_every_run_ends_as_alone_in_float64(
    make_spec: SpecMaker, tmp_path: Path, packing: bool
) -> None:
    steps = 6 if packing else 20
    shared = {"optimizer__steps": steps, "evaluation__every": steps // 2, "data__packing": packing}
    shared |= {"evaluation__samples": 0}
    specs = {name: make_spec(**(shared | fields)) for name, fields in SHAPES.items()}
    runs = {
        name: alone(spec, folder_of(tmp_path, "alone", name), precise=True)
        for name, spec in specs.items()
    }
    for number, layout in enumerate((APART, JOINT if packing else FILLED)):
        weights, reports = trained_together(specs, tmp_path / str(number), layout)
        for name, run in runs.items():
            assert_ended_alike(f"{layout}: {name}", run, weights[name], reports[name])


def assert_ended_alike(
    name: str, run: TrainingRun, weights: Weights, report: Metrics | Exception
) -> None:
    """As the run alone."""
    assert not isinstance(report, Exception), f"{name}: {report}"
    for key, tensor in run.adapter.named_parameters():
        said = f"{name} {key}: {float((weights[key] - tensor).detach().abs().max())}"
        torch.testing.assert_close(weights[key], tensor, atol=1e-10, rtol=0, msg=said)
    got, wanted = report["validation"], run.metrics["validation"]
    assert got["loss"] == pytest.approx(wanted["loss"], rel=1e-10), name
    assert got.get("routing") == wanted.get("routing"), name
    assert [*got["tasks"]] == [*wanted["tasks"]], name


def test_in_float32_too(make_spec: SpecMaker, tmp_path: Path) -> None:
    """To 1e-5 of each tensor's norm. Plain gradient descent: AdamW divides what is next to nothing
    by its own size."""
    shared = {"optimizer__steps": 20, "evaluation__every": 20, "evaluation__samples": 0}
    shared |= {"optimizer__name": "sgd"}
    specs = {name: make_spec(**(shared | SHAPES[name])) for name in ("block", "linear", "quick")}
    pack, weights = Pack(3), {}
    for name, spec in specs.items():
        pack.join(task(spec, folder_of(tmp_path, "pack", name)))
        weights[name] = dict(pack._slots[name].run.adapter.named_parameters())
    to_the_end(pack)
    for name, spec in specs.items():
        run = alone(spec, folder_of(tmp_path, "alone", name), precise=False)
        for key, tensor in run.adapter.named_parameters():
            far = (weights[name][key] - tensor).norm() / tensor.norm().clamp(min=1e-12)
            assert far.item() < 1e-5, f"{name} {key}"


NOISY: Fields = {
    "adapter__dropout": 0.3,
    "adapter__routing": "switch",
    "adapter__top_k": 1,
    "adapter__router_jitter": 0.1,
    "adapter__expert_dropout": 0.1,
    "optimizer__steps": 4,
    "evaluation__every": 4,
    "evaluation__samples": 0,
    "model__dtype": "float32",
}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "activations made again"])
@pytest.mark.parametrize("kind", ["block", "linear"])
@pytest.mark.parametrize("layout", [APART, JOINT], ids=["apart", "joint"])
def test_what_a_run_draws_hangs_on_its_seed_alone(
    make_spec: SpecMaker, tmp_path: Path, kind: str, checkpointing: bool, layout: JointLayout
) -> None:
    """Beside others, alone in the pack, and with activations that are computed twice."""

    def trained(
        way: str, *beside: str, seed: int = 3, again: bool = checkpointing
    ) -> dict[str, torch.Tensor]:
        noisy = {**NOISY, "model__activation_checkpointing": again}
        mine = make_spec(seed=seed, **{**noisy, "adapter__experts": kind})
        pack = Pack(3, layout=layout)
        pack.join(task(mine, folder_of(tmp_path, way, "mine")))
        weights = dict(pack._slots["mine"].run.adapter.named_parameters())
        for name in beside:
            pack.join(task(make_spec(**noisy), folder_of(tmp_path, way, name)))
        assert pack._inputs is not None
        pack._inputs.base.model.double()
        to_the_end(pack)
        return {name: one.detach() for name, one in weights.items()}

    def far(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
        return max(float((one[name] - other[name]).abs().max()) for name in one)

    wanted = trained("alone")
    assert far(trained("beside one", "a"), wanted) < 1e-9
    assert far(trained("beside two", "a", "b"), wanted) < 1e-9
    assert far(trained("another seed", "a", seed=4), wanted) > 1e-4
    if checkpointing:
        assert far(trained("kept", "a", again=False), wanted) < 1e-9


def test_answers_are_written_together_as_alone(make_spec: SpecMaker, tmp_path: Path) -> None:
    shared = {
        "optimizer__steps": 4,
        "evaluation__every": 4,
        "evaluation__generate": True,
        "evaluation__batch_size": 4,
        "optimizer__name": "sgd",
    }
    specs = {name: make_spec(**(shared | SHAPES[name])) for name in ("block", "linear", "lora")}
    pack = Pack(3)
    for name, spec in specs.items():
        pack.join(task(spec, folder_of(tmp_path, "pack", name)))
    mixed: list[bool] = []
    assert pack._inputs is not None
    model = pack._inputs.base.model
    hook = model.register_forward_hook(lambda *_: mixed.append(row_map(model).is_mixed()))
    reports = to_the_end(pack)
    hook.remove()
    assert sum(mixed) > 20, "answers take passes, and several runs' share them"
    for name, spec in specs.items():
        run = alone(spec, folder_of(tmp_path, "alone", name), precise=False)
        report = reports[name]
        assert not isinstance(report, Exception)
        got, wanted = report["validation"], run.metrics["validation"]
        assert got["score"] == wanted["score"]
        values = {task: one["value"] for task, one in wanted["tasks"].items()}
        assert {task: one["value"] for task, one in got["tasks"].items()} == values
        samples = folder_of(tmp_path, "pack", name) / "samples.json"
        assert [one.answer for one in read_samples(samples)] == [one.answer for one in run.samples]
        run.close()
