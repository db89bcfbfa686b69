"""The train loop in one process: learning, exact resumption, accumulation, precision."""

import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from workers.adapter import files
from workers.config.base import InputError
from workers.config.train import TrainSpec
from workers.injection.wrapper import AdaptedModule
from workers.run.events import read_events
from workers.run.record import Metrics, RunPlan
from workers.train.inputs import Inputs
from workers.train.loop import TrainingRun
from workers.train.step import DivergedError

SpecMaker = Callable[..., TrainSpec]
ALL_LOSSES = {"loss__z_loss_weight": 1e-3, "loss__contrastive_weight": 0.01}


@pytest.fixture
def plan(tmp_path: Path) -> RunPlan:
    return RunPlan(tmp_path / "run", "study", 3)


def train(run: TrainingRun) -> list[Metrics]:
    reports = []
    while not run.done:
        reports.append(run.advance())
    return reports


def weights(run: TrainingRun) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.adapter.state_dict().items()}


def figures(report: Metrics) -> Metrics:
    """A report without the clock."""
    train = {k: v for k, v in report["train"].items() if k != "tokens_per_second"}
    return {**report, "train": train}


@pytest.fixture
def loud_model(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """The tiny model with larger embeddings: frozen small ones cannot give a confident answer."""
    folder = tmp_path / "loud"
    shutil.copytree(tiny_model_dir, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] *= 10
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_learning_happens(make_spec: SpecMaker, plan: RunPlan, loud_model: Path) -> None:
    spec = make_spec(
        model__path=str(loud_model),
        adapter__rank=8,
        adapter__alpha=16,
        optimizer__lr=1e-2,
        optimizer__steps=60,
        optimizer__batch_size=16,
        optimizer__warmup_steps=5,
        evaluation__every=20,
    )
    losses = [report["validation"]["loss"] for report in train(TrainingRun(spec, plan))]
    uniform = math.log(260)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.35 * uniform


@pytest.mark.parametrize("experts", ["block", "linear"])
def test_a_resumed_run_continues_to_the_last_bit(
    make_spec: SpecMaker, plan: RunPlan, tmp_path: Path, experts: str
) -> None:
    spec = make_spec(
        adapter__experts=experts,
        adapter__dropout=0.2,
        optimizer__steps=6,
        optimizer__warmup_steps=1,
        optimizer__micro_batch_size=4,
        **ALL_LOSSES,
    )
    unbroken = TrainingRun(spec, plan)
    reports = [unbroken.advance()]
    (tmp_path / "checkpoint").mkdir()
    unbroken.save(tmp_path / "checkpoint")
    reports += train(unbroken)

    torch.manual_seed(99)  # another process would have drawn other numbers
    resumed = TrainingRun(spec, plan)
    resumed.load(tmp_path / "checkpoint")
    assert resumed.step == 2
    again = train(resumed)
    assert list(map(figures, again)) == list(map(figures, reports[1:]))
    for name, tensor in weights(unbroken).items():
        assert torch.equal(tensor, resumed.adapter.state_dict()[name]), name


def gone_on_with(
    unbroken: TrainingRun, resumed: TrainingRun, checkpoint: Path, reports: list[Metrics]
) -> dict[str, torch.Tensor]:
    """What a run has at its end that goes on from the first report's checkpoint: that of the
    unbroken one, to the bit."""
    resumed.load(checkpoint)
    assert list(map(figures, train(resumed))) == list(map(figures, reports[1:]))
    found = weights(resumed)
    assert found.keys() == weights(unbroken).keys()
    assert all(torch.equal(found[name], one) for name, one in weights(unbroken).items())
    return found


def assert_is_in_its_files(run: TrainingRun, folder: Path) -> None:
    """All that a run has trained: the base computes the same with what was saved. Closes it."""
    files.save(run.adapter, folder, run._manifest())
    base = run.inputs.base.model
    ids = torch.arange(4, 20).unsqueeze(0)
    with torch.no_grad():
        trained = base(ids).logits
        run.close()
        assert not torch.equal(base(ids).logits, trained)
        files.attach(base, folder)
        assert torch.equal(base(ids).logits, trained)


def test_copies_of_whole_weights_are_trained_saved_and_gone_on_with(
    make_spec: SpecMaker, plan: RunPlan, tmp_path: Path
) -> None:
    """Of a base that ties them, in bfloat16."""
    spec = make_spec(
        model__dtype="bfloat16",
        adapter__train_also=["embed_tokens", "lm_head"],
        optimizer__steps=6,
        optimizer__train_also_lr_ratio=0.5,
    )
    unbroken = TrainingRun(spec, plan)
    before = weights(unbroken)["embed_tokens.weight"]
    rates = {group["lr"] for group in unbroken._update.optimizer.param_groups}
    assert len(rates) == 2
    reports = [unbroken.advance()]
    (tmp_path / "checkpoint").mkdir()
    unbroken.save(tmp_path / "checkpoint")
    reports += train(unbroken)
    assert reports[-1]["validation"]["loss"] < reports[0]["validation"]["loss"]

    found = gone_on_with(unbroken, TrainingRun(spec, plan), tmp_path / "checkpoint", reports)
    assert found["embed_tokens.weight"].dtype == torch.float32
    assert not torch.equal(found["embed_tokens.weight"], before)

    assert_is_in_its_files(unbroken, tmp_path / "saved")


def test_rows_of_tokens_are_trained_saved_and_gone_on_with(
    make_spec: SpecMaker, plan: RunPlan, tmp_path: Path
) -> None:
    """Of a base that ties embedding and head, in bfloat16; tokens by name and by id."""
    spec = make_spec(
        model__dtype="bfloat16", adapter__train_tokens=["e", "t", 90], optimizer__steps=6
    )
    unbroken = TrainingRun(spec, plan)
    before = weights(unbroken)["embed_tokens.token_rows"].clone()
    vocabulary = unbroken.inputs.base.tokenizer.get_vocab()
    assert unbroken.spec.adapter.train_tokens == (vocabulary["e"], vocabulary["t"], 90)
    assert len({group["lr"] for group in unbroken._update.optimizer.param_groups}) == 2
    reports = [unbroken.advance()]
    (tmp_path / "checkpoint").mkdir()
    unbroken.save(tmp_path / "checkpoint")
    reports += train(unbroken)

    found = gone_on_with(unbroken, TrainingRun(spec, plan), tmp_path / "checkpoint", reports)
    rows = found["embed_tokens.token_rows"]
    assert rows.dtype == torch.float32
    assert all(not torch.equal(one, was) for one, was in zip(rows, before, strict=True))

    assert_is_in_its_files(unbroken, tmp_path / "saved")


@pytest.mark.parametrize("experts", ["block", "linear"])
@pytest.mark.parametrize("routing", ["top_p", "switch"])
def test_every_strategy_learns(
    make_spec: SpecMaker, plan: RunPlan, routing: str, experts: str
) -> None:
    spec = make_spec(
        adapter__routing=routing,
        adapter__experts=experts,
        adapter__expert_capacity=4,
        adapter__expert_dropout=0.1,
        adapter__router_jitter=0.05,
        optimizer__steps=12,
        evaluation__every=6,
        **ALL_LOSSES,
    )
    run = TrainingRun(spec, plan)
    before = weights(run)
    first, last = train(run)
    assert last["validation"]["loss"] < first["validation"]["loss"]
    assert last["train"]["load_balance"] >= 0.95
    for entry in last["validation"]["routing"].values():
        assert sum(entry["load"]) == pytest.approx(1)
        assert len(entry["load"]) == 4
    moved = [name for name, tensor in weights(run).items() if not torch.equal(tensor, before[name])]
    assert len(moved) == len(before)


def test_micro_batches_change_nothing(make_spec: SpecMaker, plan: RunPlan) -> None:
    whole = make_spec(loss__load_balance_weight=0.0, loss__z_loss_weight=0.01)
    split = make_spec(
        loss__load_balance_weight=0.0, loss__z_loss_weight=0.01, optimizer__micro_batch_size=2
    )
    runs = [TrainingRun(spec, plan) for spec in (whole, split)]
    reports = [train(run)[-1] for run in runs]
    assert reports[0]["train"]["loss"] == pytest.approx(reports[1]["train"]["loss"], abs=1e-5)
    for name, tensor in weights(runs[0]).items():
        torch.testing.assert_close(tensor, runs[1].adapter.state_dict()[name], atol=1e-5, rtol=0)


def test_activation_checkpointing_changes_nothing(make_spec: SpecMaker, plan: RunPlan) -> None:
    specs = [make_spec(model__activation_checkpointing=flag, **ALL_LOSSES) for flag in (0, 1)]
    runs = [TrainingRun(spec, plan) for spec in specs]
    assert runs[1].inputs.base.model.is_gradient_checkpointing
    reports = [figures(train(run)[-1]) for run in runs]
    assert reports[0]["train"] == pytest.approx(reports[1]["train"], rel=1e-5)


def test_a_bfloat16_base_trains_float32_adapters(make_spec: SpecMaker, plan: RunPlan) -> None:
    spec = make_spec(model__dtype="bfloat16", optimizer__steps=12, evaluation__every=6)
    run = TrainingRun(spec, plan)
    assert {p.dtype for p in run.adapter.parameters()} == {torch.float32}
    first, last = train(run)
    assert last["validation"]["loss"] < first["validation"]["loss"]


def test_the_base_is_left_alone_for_the_next_run(make_spec: SpecMaker, plan: RunPlan) -> None:
    spec = make_spec(adapter__dropout=0.1)
    first = TrainingRun(spec, plan)
    reports = train(first)
    first.close()
    model = first.inputs.base.model
    assert not any(isinstance(module, AdaptedModule) for module in model.modules())
    assert not model.training
    other = TrainingRun(make_spec(adapter__num_experts=2, seed=5), plan, inputs=first.inputs)
    train(other)
    other.close()
    again = TrainingRun(spec, plan, inputs=Inputs.load(spec, other.inputs))
    assert again.inputs.base is first.inputs.base
    assert list(map(figures, train(again))) == list(map(figures, reports))


def test_the_saved_adapter_has_its_lineage(make_spec: SpecMaker, plan: RunPlan) -> None:
    spec = make_spec(adapter__num_experts=2, adapter__top_k=1)
    run = TrainingRun(spec, plan)
    report = run.advance()
    run.save_adapter(plan.folder / "adapter")
    saved = files.read(plan.folder / "adapter")
    manifest = saved.manifest
    assert manifest is not None
    assert (manifest.study, manifest.trial) == ("study", 3)
    assert manifest.metrics["validation"]["loss"] == report["validation"]["loss"]
    assert manifest.spec == run.spec.model_dump(mode="json")
    assert spec.same_run(run.spec)
    assert (spec.model.dtype, run.spec.model.dtype) == ("auto", "float32"), "as it was computed"
    assert set(manifest.expert_load) == {"layers.0.mlp", "layers.1.mlp"}
    assert all(sum(load) == pytest.approx(1) for load in manifest.expert_load.values())
    for name, tensor in run.adapter.state_dict().items():
        assert torch.equal(saved.tensors[name], tensor), name


def test_a_run_starts_from_another_runs_adapter(
    make_spec: SpecMaker, plan: RunPlan, tmp_path: Path
) -> None:
    first = TrainingRun(make_spec(optimizer__steps=20, evaluation__every=20), plan)
    reached = train(first)[-1]["validation"]["loss"]
    first.save_adapter(tmp_path / "adapter")
    onward = partial(make_spec, start_from=str(tmp_path / "adapter"))
    plan = RunPlan(tmp_path / "on", "study")
    spec = onward(optimizer__steps=1, optimizer__lr=1e-9, evaluation__every=1)
    assert TrainingRun(spec, plan).advance()["validation"]["loss"] == pytest.approx(reached)
    with pytest.raises(InputError, match=r"adapter\.rank 8: it has 4"):
        TrainingRun(onward(adapter__rank=8, adapter__alpha=16), plan)
    with pytest.raises(InputError, match=r"adapter\.routing switch: it has top_k"):
        TrainingRun(onward(adapter__routing="switch"), plan)
    with pytest.raises(InputError, match=r"adapter\.router_temperature 0\.5: it has 1\.0"):
        TrainingRun(onward(adapter__router_temperature=0.5), plan)


def test_plain_lora_is_trained_on_whatever_its_experts_are_called(
    make_spec: SpecMaker, plan: RunPlan, tmp_path: Path
) -> None:
    plain = {"adapter__experts": "linear", "adapter__num_experts": 1, "adapter__top_k": 1}
    first = TrainingRun(make_spec(**plain), plan)
    first.save_adapter(tmp_path / "adapter")
    onward = TrainingRun(
        make_spec(**plain, seed=5, start_from=str(tmp_path / "adapter")),
        RunPlan(tmp_path / "on", "study"),
    )
    assert all(
        torch.equal(weights(onward)[name], tensor) for name, tensor in weights(first).items()
    )


def test_a_run_that_diverges_says_so(make_spec: SpecMaker, plan: RunPlan) -> None:
    wild = {"optimizer__lr": 1e30, "optimizer__max_grad_norm": None, "optimizer__steps": 20}
    for allowed in (0, 2):
        spec = make_spec(**wild, evaluation__every=20, optimizer__max_skipped_steps=allowed)
        run = TrainingRun(spec, plan)
        with pytest.raises(DivergedError, match=rf"diverged: .*in {allowed + 1} steps in a row"):
            run.advance()
        assert run.step == 1 + allowed  # the first one made the weights what they are


class Spoilt:
    """A linear's backward pass whose gradients are not finite in some steps."""

    def __init__(self, run: TrainingRun, steps: set[int]) -> None:
        self._run, self._steps = run, steps
        next(iter(run.adapter.parameters())).register_hook(self)

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.inf if self._run.step in self._steps else gradient


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(
    make_spec: SpecMaker, plan: RunPlan
) -> None:
    plan.folder.mkdir()
    run = TrainingRun(make_spec(optimizer__steps=8, evaluation__every=4), plan)
    Spoilt(run, {1, 2, 4, 5, 6, 7})
    states = []
    report = run.advance(lambda run: states.append((weights(run), run.state()["update"])))
    assert report["train"]["skipped_steps"] == 2
    (before, optimizer_before), (middle, _), (after, optimizer_after) = states
    for name, tensor in before.items():
        assert torch.equal(tensor, middle[name])
        assert torch.equal(tensor, after[name])
        for moment, tensors in optimizer_before.items():
            assert torch.equal(tensors[name], optimizer_after[moment][name])
    events = [(event.kind, event.step) for event in read_events(plan.folder)]
    assert events == [("skipped", 1), ("skipped", 2)]
    with pytest.raises(DivergedError, match=r"gradient norm is inf .* in 4 steps in a row"):
        run.advance()


def test_a_report_without_a_step_repeats_the_means_before(
    make_spec: SpecMaker, plan: RunPlan
) -> None:
    run = TrainingRun(make_spec(evaluation__every=1), plan)
    Spoilt(run, {1})
    first, second = run.advance()["train"], run.advance()["train"]
    assert second["loss"] == first["loss"]
    assert (first["skipped_steps"], second["skipped_steps"]) == (0, 1)


def test_a_run_that_cannot_begin_leaves_the_base_alone(
    make_spec: SpecMaker, plan: RunPlan, tmp_path: Path
) -> None:
    inputs = Inputs.load(make_spec())
    for changes in ({"data__train": str(tmp_path / "no.jsonl")}, {"data__max_length": 8}):
        spec = make_spec(**changes)
        with pytest.raises(InputError):
            TrainingRun(spec, plan, inputs=Inputs.load(spec, inputs))
    nowhere = make_spec(start_from=str(tmp_path / "no-adapter"))
    with pytest.raises(InputError, match="no such adapter folder"):
        TrainingRun(nowhere, plan, inputs=inputs)
    TrainingRun(make_spec(), plan, inputs=inputs).advance()


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules_warm_up_and_end(make_spec: SpecMaker, plan: RunPlan, schedule: str) -> None:
    spec = make_spec(
        optimizer__schedule=schedule,
        optimizer__warmup_steps=2,
        optimizer__steps=8,
        evaluation__every=1,
        optimizer__lr=1e-3,
    )
    rates = [report["train"]["lr"] for report in train(TrainingRun(spec, plan))]
    assert rates[:2] == pytest.approx([0.5e-3, 1e-3]), "no step is wasted on a rate of 0"
    if schedule == "constant":
        assert rates[2:] == pytest.approx([1e-3] * 6)
    else:
        assert rates[2:] == sorted(rates[2:], reverse=True)
        assert rates[-1] < 0.3e-3


def test_epochs_are_the_steps_that_they_take(make_spec: SpecMaker, tmp_path: Path) -> None:
    """The schedule too, and a run that goes on."""
    spec = make_spec(optimizer__epochs=2.5)
    whole = TrainingRun(spec, RunPlan(tmp_path / "whole", "study"))
    rows = len(whole.inputs.train)
    steps = math.ceil(2.5 * math.ceil(rows / 8))
    assert steps > 4
    reports, learned = train(whole), weights(whole)
    whole.close()
    assert [report["steps"] for report in reports] == [steps] * len(reports)
    assert reports[-1]["step"] == steps
    said = TrainingRun(make_spec(optimizer__steps=steps), RunPlan(tmp_path / "said", "study"))
    assert [figures(report) for report in train(said)] == [figures(report) for report in reports]
    said.close()
    cut_off = TrainingRun(spec, RunPlan(tmp_path / "cut", "study"))
    cut_off.advance()
    (tmp_path / "kept").mkdir()
    cut_off.save(tmp_path / "kept")
    cut_off.close()
    resumed = TrainingRun(spec, RunPlan(tmp_path / "cut", "study"))
    resumed.load(tmp_path / "kept")
    assert [figures(report) for report in train(resumed)] == [figures(r) for r in reports[1:]]
    for name, tensor in weights(resumed).items():
        assert torch.equal(tensor, learned[name])
    resumed.close()
