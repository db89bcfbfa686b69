"""Training LoRA on a mixture's own experts: it learns, goes on exactly, and fits before it runs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.tiny import EXPERTS, write_mixture
from tests.workers.train.one_trial import trial
from workers.adapter.files import load_into, read
from workers.config.base import InputError, override
from workers.config.train import TrainSpec
from workers.data.store.epoch_figures import LargestPass
from workers.injection.inject import inject
from workers.models.base import load_base
from workers.models.compatibility import check_fit
from workers.models.memory import estimate
from workers.run.record import Metrics, RunPlan
from workers.train.loop import TrainingRun

SpecMaker = Callable[..., TrainSpec]


@pytest.fixture(scope="module", params=["mixtral", "qwen3_moe", "gpt_oss"])
def mixture(
    request: pytest.FixtureRequest, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return write_mixture(tiny_model_dir, tmp_path_factory.mktemp("mixture"), request.param)


def on_experts(make_spec: SpecMaker, model: Path, **changes: object) -> TrainSpec:
    shape = {
        "adapter__num_experts": 1,
        "adapter__top_k": 1,
        "adapter__target_modules": (),
        "adapter__target_parameters": EXPERTS,
        # gpt-oss has no other
        "model__attention": "eager",
    }
    return make_spec(model__path=str(model), **{**shape, **changes})


def trained(run: TrainingRun) -> list[Metrics]:
    reports = []
    while not run.done:
        reports.append(run.advance())
    return reports


def test_it_learns_and_goes_on_to_the_last_bit(
    make_spec: SpecMaker, mixture: Path, tmp_path: Path
) -> None:
    spec = on_experts(
        make_spec,
        mixture,
        adapter__dropout=0.2,
        optimizer__lr=1e-2,
        optimizer__steps=6,
        optimizer__micro_batch_size=4,
    )
    check_fit(spec)
    unbroken = TrainingRun(spec, RunPlan(tmp_path / "run", "study", 0))
    assert {name.rpartition(".")[0] for name in unbroken.adapter.state_dict()} == {
        f"layers.{i}.{name}" for i in (0, 1) for name in EXPERTS
    }
    reports = [unbroken.advance()]
    (tmp_path / "checkpoint").mkdir()
    unbroken.save(tmp_path / "checkpoint")
    reports += trained(unbroken)
    losses = [report["validation"]["loss"] for report in reports]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.02

    torch.manual_seed(99)
    resumed = TrainingRun(spec, RunPlan(tmp_path / "again", "study", 0))
    resumed.load(tmp_path / "checkpoint")
    assert [one["validation"]["loss"] for one in trained(resumed)] == losses[1:]
    for name, tensor in unbroken.adapter.state_dict().items():
        assert torch.equal(tensor, resumed.adapter.state_dict()[name]), name


def test_a_trial_leaves_an_adapter_that_fits(
    make_spec: SpecMaker, mixture: Path, tmp_path: Path
) -> None:
    """With recomputed activations, in a Tune actor."""
    spec = on_experts(
        make_spec,
        mixture,
        model__activation_checkpointing=True,
        adapter__target_modules="all-linear",
        evaluation__generate=True,
        evaluation__rows_per_task=2,
    )
    folder = tmp_path / "runs" / "studies" / "study" / "trials" / "T000"
    worker = trial(spec, folder)
    while not worker.train()["done"]:
        pass
    worker.stop()
    base = load_base(spec.model)
    adapter = load_into(base.model, folder / "adapter")
    assert adapter.spec.target_parameters == EXPERTS
    assert read(folder / "adapter").spec.dropout == 0
    assert any(
        tensor.any()
        for name, tensor in adapter.state_dict().items()
        if name.endswith("down_proj.lora_B")
    )


def test_its_memory_is_counted(make_spec: SpecMaker, mixture: Path) -> None:
    spec = on_experts(make_spec, mixture, adapter__target_modules="all-linear")
    known = estimate(spec, LargestPass(rows=4, length=24, scored=10))
    adapter = inject(load_base(spec.model).model, spec.adapter)
    assert known.adapter == 4 * adapter.num_parameters()
    apart = on_experts(make_spec, mixture, parallel__workers=2, parallel__ep_size=2)
    shared = estimate(apart, LargestPass(rows=4, length=24, scored=10))
    experts = sum(one.numel() for _, one in adapter.named_expert_parameters())
    assert shared.adapter == 4 * experts // 2
    more = override(spec, {"adapter.rank": 64}, "test")
    assert estimate(more, LargestPass(rows=4, length=24, scored=10)).activations > known.activations


REFUSED = {
    "routed": (
        {"adapter__num_experts": 4},
        "num_experts is 4, but must be 1 with target_parameters: the experts are the base's own",
    ),
    "dora": ({"adapter__use_dora": True}, "use_dora must be false with target_parameters"),
    "shared": ({"adapter__shared_a": True}, "shared_a must be false with target_parameters"),
    "by tokens": (
        {"parallel__workers": 2, "parallel__ep_size": 2, "parallel__exchange": "tokens"},
        "parallel.exchange is tokens, but adapter.target_parameters adapts the base's own experts, "
        "which stays where the tokens are; take weights or auto",
    ),
    "a bad pattern": ({"adapter__target_parameters": "("}, "is no regular expression"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_be_is_refused_in_one_line(
    name: str, make_spec: SpecMaker, tiny_model_dir: Path
) -> None:
    changes, why = REFUSED[name]
    with pytest.raises(InputError) as refused:
        on_experts(make_spec, tiny_model_dir, **changes)
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)


def test_experts_that_do_not_share_out_are_refused_before_weights_are_read(
    make_spec: SpecMaker, mixture: Path
) -> None:
    three = {"parallel__workers": 3, "parallel__ep_size": 3, "optimizer__batch_size": 9}
    with pytest.raises(
        InputError, match=r"ep_size is 3, but must divide the base's 4 experts, whi"
    ):
        check_fit(on_experts(make_spec, mixture, **three))
    check_fit(on_experts(make_spec, mixture, parallel__workers=2, parallel__ep_size=2))


def test_a_dense_base_is_refused_before_weights_are_read(
    make_spec: SpecMaker, tiny_model_dir: Path
) -> None:
    with pytest.raises(InputError, match="target_parameters: the decoder's layers have no stacked"):
        check_fit(on_experts(make_spec, tiny_model_dir))
