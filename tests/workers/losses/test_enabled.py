"""The losses of a run by the table; one more of them trains, is reported, searched and gone."""

from collections.abc import Callable, Iterator
from pathlib import Path
from pkgutil import resolve_name
from unittest.mock import patch

import optuna
import pytest
import torch
from torch import Tensor

from orchestrator.monitoring.status import RunStatus
from search_spaces.space import SearchSpace
from tests.workers.losses.toy_loss import TOY, ToyTrainSpec, entropy
from workers.config.base import InputError, override
from workers.config.losses import AUXILIARY, AuxiliaryLoss, LossSpec
from workers.config.metrics import reported
from workers.config.train import TrainSpec
from workers.data.batches import collate
from workers.injection.inject import inject
from workers.layers.routing.base import Routing
from workers.losses.auxiliary import RoutedLayer
from workers.losses.enabled import EnabledLosses
from workers.parallel.update import Replicated
from workers.run.progress import StepTimer
from workers.run.record import RunPlan
from workers.train.inputs import Inputs
from workers.train.loop import TrainingRun
from workers.train.step import TrainStep

SpecMaker = Callable[..., TrainSpec]


@pytest.fixture
def spec(make_spec: SpecMaker) -> ToyTrainSpec:
    """A run with the toy loss, and the balance loss."""
    values = {**make_spec().model_dump(), "loss": {"toy_weight": 0.5}}
    return ToyTrainSpec.model_validate(values)


@pytest.fixture
def toy(spec: ToyTrainSpec) -> Iterator[None]:
    """The toy loss is in the table, and taken away again; `spec` knows its weight."""
    with patch.dict(AUXILIARY, {"toy": TOY}):
        yield
    assert "toy" not in AUXILIARY


def test_the_table_names_functions_and_weights_that_are_there() -> None:
    for name, loss in AUXILIARY.items():
        assert callable(resolve_name(loss.function)), name
        assert loss.sums is None or callable(resolve_name(loss.sums))
    weights = {field for field in LossSpec.model_fields if field.endswith("_weight")}
    assert {loss.weight_field for loss in AUXILIARY.values()} == weights
    assert list(LossSpec().enabled()) == ["load_balance"]
    assert LossSpec(contrastive_weight=1).comparing() == ["contrastive_weight"]


def layer(seed: int) -> RoutedLayer:
    logits_TE = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
    gate_TK, expert_TK = logits_TE.topk(2)
    return RoutedLayer(Routing(logits_TE, expert_TK, gate_TK.softmax(-1)))


def test_a_loss_has_the_share_of_the_tokens_that_it_was_made_from() -> None:
    spec, layers = LossSpec(z_loss_weight=1.0), [layer(0), layer(1)]
    sent: list[Tensor] = []

    def add(numbers: Tensor) -> Tensor:
        sent.append(numbers)
        return 2 * numbers  # another worker has the same tokens

    one, two = (EnabledLosses(spec, one) for one in (lambda numbers: numbers, add))
    whole, half, fourth = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
    alone, parts = one(layers, own=whole, everyone=whole), two(layers, own=fourth, everyone=half)
    assert {part.dtype for part in parts.values()} == {torch.float32}
    assert list(parts) == ["load_balance", "z_loss"]
    assert parts["z_loss"].item() == pytest.approx(0.25 * alone["z_loss"].item())
    assert parts["load_balance"].item() == pytest.approx(0.5 * alone["load_balance"].item())
    assert [len(numbers) for numbers in sent] == [2 * (4 + 2)], "one message for all layers"
    assert two([], own=whole, everyone=whole) == {}


class Kept(Replicated):
    """Keeps a step's gradients instead of taking it."""

    gradients: list[Tensor | None]

    def apply(self) -> None:
        """Note them."""
        grads = (parameter.grad for parameter in self._named.values())
        self.gradients = [None if grad is None else grad.clone() for grad in grads]
        self.drop()


@pytest.mark.usefixtures("toy")
def test_a_new_loss_has_its_gradient_in_a_step(spec: ToyTrainSpec) -> None:
    free = override(spec, {"optimizer.max_grad_norm": None}, "test")
    inputs = Inputs.load(free)
    batch = collate(inputs.train[:8], inputs.pad_token_id)
    adapter = inject(inputs.base.model.train(), free.adapter, seed=1)
    with adapter.record(batch.attention_mask_BS) as records:
        inputs.base.model(batch.input_ids_BS, attention_mask=batch.attention_mask_BS)
    terms = [entropy(RoutedLayer(one.routing, one.mask_T), free.loss) for one in records]
    value = torch.stack(terms).mean()
    parameters = list(adapter.parameters())
    alone = torch.autograd.grad(value, parameters, allow_unused=True)
    taken = {}
    for weight in (0.0, 0.5):
        changed = override(free, {"loss.toy_weight": weight}, "test")
        update = Kept(adapter, changed.optimizer)
        result = TrainStep(changed, inputs.base, adapter, update)([batch])
        assert ("toy" in result.losses) == (weight > 0)
        taken[weight] = dict(zip(map(id, parameters), update.gradients, strict=True))
    assert result.losses["toy"] == pytest.approx(value.item())
    moved = set()
    for (name, parameter), expected in zip(adapter.named_parameters(), alone, strict=True):
        without, with_it = taken[0.0][id(parameter)], taken[0.5][id(parameter)]
        assert without is not None
        assert with_it is not None
        change = torch.zeros_like(parameter) if expected is None else 0.5 * expected
        torch.testing.assert_close(with_it - without, change, atol=1e-6, rtol=1e-4)
        moved |= {name} if change.any() else set()
    assert {f"layers.{i}.mlp.router.weight" for i in (0, 1)} <= moved


@pytest.mark.usefixtures("toy")
def test_a_new_loss_is_trained_reported_and_shown(spec: ToyTrainSpec, tmp_path: Path) -> None:
    run = TrainingRun(spec, RunPlan(tmp_path, "study"))
    first, last = run.advance(), run.advance()
    assert run.done
    assert last["train"]["toy"] < first["train"]["toy"], "it is minimised"
    assert "train/toy" in reported(spec)
    timer = StepTimer(steps=4, every=2, workers=1)
    progress = timer.step(1, 0.1, run.train_step([collate(run.inputs.train[:8], 0)]))
    assert progress.report()["train"]["toy"] == pytest.approx(progress.auxiliary["toy"])
    with patch.dict(AUXILIARY, {"toy": AuxiliaryLoss(TOY.function, "toy_weight", "", short="toy")}):
        assert f"toy {progress.auxiliary['toy']:.2f}" in RunStatus(progress=progress).lines()[0]
    run.close()


@pytest.mark.usefixtures("toy")
def test_a_search_asks_for_its_weight_and_trains_with_it(
    spec: ToyTrainSpec, tmp_path: Path
) -> None:
    weights = [0.001, 10.0]
    space = SearchSpace.resolve(
        {"loss.toy_weight": {"choice": weights}, "adapter.num_experts": {"choice": [1, 4]}}, spec
    )
    study = optuna.create_study()
    asked = [{"adapter.num_experts": 4, "loss.toy_weight": weight} for weight in weights]
    for values in ({"adapter.num_experts": 1}, *asked):
        study.enqueue_trial(values)
    found = {}
    for number in range(3):
        trial = study.ask()
        values = space(trial)
        report = TrainingRun(
            override(spec, values, "trial"), RunPlan(tmp_path / str(number), "study", number)
        ).advance()
        study.tell(trial, report["validation"]["loss"])
        assert ("loss.toy_weight" in values) == (values["adapter.num_experts"] > 1)
        found[values.get("loss.toy_weight")] = report["train"].get("toy")
    assert found[None] is None, "without a router there is none"
    assert found[10.0] < found[0.001]


def test_without_its_entry_it_does_not_train(spec: ToyTrainSpec, tmp_path: Path) -> None:
    report = TrainingRun(spec, RunPlan(tmp_path, "study")).advance()
    assert "toy" not in report["train"]
    assert "train/toy" not in reported(spec)


def test_experts_with_one_a_matrix_refuse_each_loss_that_compares_them(
    make_spec: SpecMaker,
) -> None:
    message = "loss.contrastive_weight needs experts with an A matrix each; .* so it must be 0"
    with pytest.raises(InputError, match=message):
        make_spec(adapter__shared_a=True, loss__contrastive_weight=0.1)
    comparing = AuxiliaryLoss(TOY.function, "toy_weight", "", needs_rank_space=True)
    values = {**make_spec(adapter__shared_a=True).model_dump(), "loss": {"toy_weight": 0.5}}
    ToyTrainSpec.model_validate(values)
    with (
        patch.dict(AUXILIARY, {"toy": comparing}),
        pytest.raises(ValueError, match=r"loss\.toy_weight needs experts with an A matrix each"),
    ):
        ToyTrainSpec.model_validate(values)
