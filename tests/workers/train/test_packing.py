"""Training on packed rows is training on padded ones."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from random import Random

import pytest
import torch

from tests.distributed.expert_parallel_cases import CASES, RECOMPUTED, Case, build
from workers.config.train import TrainSpec
from workers.data.batches import Batch, collate
from workers.data.example import Example, Span
from workers.data.packing import pack
from workers.injection.inject import inject
from workers.models.quantization import LIBRARIES
from workers.parallel.update import Replicated
from workers.run.record import RunPlan
from workers.train.forward import attending, batch_loss, laid_out, recorded, target_losses
from workers.train.inputs import Inputs
from workers.train.loop import TrainingRun
from workers.train.step import StepResult, TrainStep

SpecMaker = Callable[..., TrainSpec]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
SHAPES = [case for case in (*CASES, *RECOMPUTED) if not case.skewed]
"""Skewed ones have logits whose squares are beyond float32."""
PLAIN = Case("plain LoRA", {"num_experts": 1, "top_k": 1})


def rows(count: int, seed: int) -> list[Example]:
    """Of many lengths; some learned whole, some weighed."""
    drawn = Random(seed)
    made = []
    for _ in range(count):
        length = drawn.randrange(4, 20)
        ids = tuple(drawn.randrange(4, 32) for _ in range(length))
        start, weight = drawn.randrange(length - 1), drawn.choice([1, 1, 0.5])
        made.append(Example(ids, (Span(start, length, weight),)))
    return made


class Watched(Replicated):
    """Keeps the gradients of the last step."""

    def clip(self, max_norm: float) -> torch.Tensor:
        self.gradients = {
            name: one.grad.clone() for name, one in self._named.items() if one.grad is not None
        }
        return super().clip(max_norm)


def train(
    case: Case, dtype: torch.dtype, lay: Callable[[list[Example], int], Batch]
) -> tuple[StepResult, dict[str, torch.Tensor]]:
    """A step of two passes, and its gradients."""
    base, adapter = build(case, dtype, checkpointing=case.recomputed)
    update = Watched(adapter, case.spec.optimizer)
    step = TrainStep(case.spec, base, adapter, update)
    return step([lay(part, 0) for part in (rows(6, 0), rows(4, 9))]), update.gradients


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", [*SHAPES, PLAIN], ids=lambda case: case.name)
def test_a_packed_step_is_the_padded_one(case: Case, dtype: torch.dtype) -> None:
    """All losses, and all gradients, for all kinds of experts."""
    error = TOLERANCE[dtype]
    padded, wanted = train(case, dtype, collate)
    packed, got = train(case, dtype, pack)
    assert packed.losses == pytest.approx(padded.losses, rel=error, abs=error)
    assert packed.grad_norm == pytest.approx(padded.grad_norm, rel=error)
    assert packed.tokens == padded.tokens
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        scale = max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(got[name] / scale, gradient / scale, atol=error, rtol=0)


def quantised(name: str) -> object:
    """Where its package is."""
    lacking = find_spec(LIBRARIES[name]) is None
    marks = pytest.mark.skipif(lacking, reason="needs the extra `quantized`")
    return pytest.param({"model__quantization": name}, marks=marks, id=name)


BASES = [
    pytest.param({"model__attention": "eager"}, id="eager"),
    *map(quantised, sorted(LIBRARIES)),
]


@pytest.mark.parametrize("changes", BASES)
def test_other_bases_take_packed_rows_as_well(
    make_spec: SpecMaker, changes: dict[str, object]
) -> None:
    spec = make_spec(**changes, loss__z_loss_weight=0.01)
    inputs, found = Inputs.load(spec), []
    for lay in (collate, pack):
        adapter = inject(inputs.base.model.train(), spec.adapter, seed=1)
        torch.manual_seed(0)
        for name, parameter in adapter.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        update = Watched(adapter, spec.optimizer)
        step = TrainStep(spec, inputs.base, adapter, update)
        found.append((step([lay(inputs.train[:8], inputs.pad_token_id)]), update.gradients))
        adapter.remove()
    (padded, wanted), (packed, got) = found
    assert packed.losses == pytest.approx(padded.losses, rel=1e-5)
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["block", "switch", "linear"])
def test_a_rows_tokens_change_no_other_rows_losses_or_routing(name: str) -> None:
    (case,) = (one for one in CASES if one.name == name)
    base, adapter = build(case, torch.float64)

    def forward(examples: list[Example]) -> list[tuple[torch.Tensor, ...]]:
        batch = pack(examples, 0)
        with attending(base, [batch]), laid_out(adapter, base, batch), torch.no_grad():
            with recorded(adapter, base, batch, rank_space=False) as records:
                losses = target_losses(base, batch)
            gates = torch.cat([one.routing.gate_TK for one in records], dim=1)
        targets = [one.ids and one.learned - (one.spans[0].start == 0) for one in examples]
        lengths = list(map(len, examples))
        return list(zip(losses.split(targets), gates.split(lengths), strict=True))

    examples = rows(5, 3)
    before = forward(examples)
    for place, example in enumerate(examples):
        other = Example(tuple((token + 5) % 28 + 4 for token in example.ids), example.spans)
        after = forward([*examples[:place], other, *examples[place + 1 :]])
        for at, (one, two) in enumerate(zip(after, before, strict=True)):
            if at == place:
                assert (one[0] - two[0]).abs().max() > 1e-3
            else:
                torch.testing.assert_close(one, two, atol=1e-14, rtol=1e-14)


def test_packed_rows_meet_each_other_nowhere_by_mistake() -> None:
    """Outside of a step the model's own attention would let them."""
    base, _ = build(CASES[0], torch.float64)
    with pytest.raises(AssertionError, match="meet each other"):
        batch_loss(base, pack(rows(2, 0), 0))


def run(spec: TrainSpec, folder: Path) -> TrainingRun:
    made = TrainingRun(spec, RunPlan(folder, "study"))
    while not made.done:
        made.advance()
    return made


def test_a_packed_run_learns_and_its_passes_change_nothing(
    make_spec: SpecMaker, tmp_path: Path
) -> None:
    """Of packed sequences: one of 128 tokens at a time, two, or all rows at once."""
    runs = [
        run(
            make_spec(
                data__packing=True,
                loss__load_balance_weight=0.0,
                loss__z_loss_weight=0.01,
                optimizer__micro_batch_size=sequences,
            ),
            tmp_path / str(sequences),
        )
        for sequences in (None, 1, 2)
    ]
    passes = [len(one.taking.batches.micro_batches(0, one.spec.pass_limit)) for one in runs]
    assert 1 == passes[0] < passes[2] < passes[1]
    first = runs[0].metrics
    for one in runs:
        assert one.metrics["train"]["loss"] == pytest.approx(first["train"]["loss"], rel=1e-5)
        assert one.metrics["validation"]["loss"] < one.inputs.base.model.config.vocab_size
        for name, tensor in runs[0].adapter.state_dict().items():
            torch.testing.assert_close(one.adapter.state_dict()[name], tensor, atol=1e-5, rtol=0)
        assert one.inputs.base.model.config._attn_implementation == "sdpa"


def test_a_packed_run_goes_on_to_the_last_bit(make_spec: SpecMaker, tmp_path: Path) -> None:
    spec = make_spec(
        data__packing=True,
        optimizer__micro_batch_size=1,
        adapter__dropout=0.2,
        adapter__routing="switch",
        adapter__expert_capacity=3,
    )
    unbroken = TrainingRun(spec, RunPlan(tmp_path / "run", "study"))
    unbroken.advance()
    (tmp_path / "checkpoint").mkdir()
    unbroken.save(tmp_path / "checkpoint")
    wanted = unbroken.advance()
    torch.manual_seed(99)
    resumed = TrainingRun(spec, RunPlan(tmp_path / "run", "study"))
    resumed.load(tmp_path / "checkpoint")
    got = resumed.advance()
    assert got["validation"] == wanted["validation"]
    assert got["train"]["loss"] == wanted["train"]["loss"]
    for name, tensor in unbroken.adapter.state_dict().items():
        assert torch.equal(tensor, resumed.adapter.state_dict()[name]), name
