"""The estimate of a worker's memory, against a run of the same specification."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.benchmarks.harness import peak_bytes
from tests.workers.models.measured_memory import measured, measured_pack
from workers.config.base import override
from workers.config.optimizers import OPTIMIZERS
from workers.config.train import TrainSpec
from workers.data.batches import collate
from workers.data.store.epoch_figures import LargestPass, epoch_figures
from workers.data.store.token_store import EncodedSource, TokenStore
from workers.injection.inject import inject
from workers.losses.head_loss import PIECE_BYTES, PiecewiseHead, piece_tokens
from workers.models.base import load_base
from workers.models.memory import MemoryEstimate, estimate
from workers.parallel.update import Replicated
from workers.run.record import RunPlan
from workers.train.evaluation.together import scored_together
from workers.train.inputs import Inputs
from workers.train.packed.pack import Pack
from workers.train.step import TrainStep
from workers.train.task import RunTask

SpecMaker = Callable[..., TrainSpec]
ONE = LargestPass(rows=4, length=24, scored=10)
FACTOR = 1.5
"""The estimate and what a run takes differ by less than this (docs/data.md says it)."""


def test_weights_are_those_of_the_loaded_base(make_spec: SpecMaker) -> None:
    spec = make_spec(adapter__num_experts=(4, 2))
    base = load_base(spec.model)
    known = estimate(spec, ONE, data=7)
    assert known.base == sum(one.numel() * 4 for one in base.model.parameters())
    adapter = inject(base.model, spec.adapter)
    assert known.adapter == sum(one.numel() * 4 for one in adapter.parameters())
    assert (known.gradients, known.optimizer) == (known.adapter, 2 * known.adapter)
    assert known.data == 7
    assert known.total == known.as_dict()["total"] == sum(list(known.as_dict().values())[:-1])
    half = estimate(override(spec, {"model.dtype": "bfloat16"}, "test"), ONE)
    assert (half.base * 2, half.logits * 2) == (known.base, known.logits)
    assert half.adapter == known.adapter, "it stays in float32"


@pytest.mark.parametrize(
    "own", [{"train_also": ("embed_tokens", "lm_head")}, {"train_tokens": tuple(range(100))}]
)
def test_what_is_trained_of_the_base_is_counted(
    own: dict[str, object], make_spec: SpecMaker
) -> None:
    spec = make_spec(**{f"adapter__{field}": value for field, value in own.items()})
    adapter = inject(load_base(spec.model).model, spec.adapter)
    known = estimate(spec, ONE)
    assert known.adapter == sum(one.numel() * 4 for one in adapter.parameters())
    assert (known.gradients, known.optimizer) == (known.adapter, 2 * known.adapter)


@pytest.mark.parametrize(
    "name", ["adamw", "adam", "adagrad", "rmsprop", "sgd", "adafactor", "adamw_8bit", "lion_8bit"]
)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_optimizers_state_is_what_it_keeps(
    make_spec: SpecMaker, name: str, momentum: float
) -> None:
    """Of weights in numbers that count: of small ones, 8-bit optimizers keep float32."""
    if momentum and not OPTIMIZERS[name].has_momentum:
        pytest.skip("has none")
    if OPTIMIZERS[name].package and find_spec("bitsandbytes") is None:
        pytest.skip("needs bitsandbytes")
    rank = 128 if OPTIMIZERS[name].package else 8
    spec = make_spec(optimizer__name=name, optimizer__momentum=momentum, adapter__rank=rank)
    inputs = Inputs.load(spec)
    adapter = inject(inputs.base.model.train(), spec.adapter, seed=1)
    update = Replicated(adapter, spec.optimizer)
    TrainStep(spec, inputs.base, adapter, update)([collate(inputs.train[:4], 3)])
    kept = sum(
        one.nbytes
        for state in update.optimizer.state.values()
        for key, one in state.items()
        if key != "step" and not key.startswith("qmap")
    )
    assert estimate(spec, ONE).optimizer == pytest.approx(kept, rel=0.15)


@pytest.mark.parametrize(
    "named",
    [r"layers\.1\..*", r"layers\.0\.mlp\..*|layers\.1\.self_attn\..*", r".*\.mlp\.up_proj"],
)
@pytest.mark.parametrize("experts", ["block", "linear"])
def test_layers_that_are_adapted_each_in_its_way_are_counted_each(
    make_spec: SpecMaker, named: str, experts: str
) -> None:
    spec = make_spec(adapter__target_modules=named, adapter__experts=experts)
    adapter = inject(load_base(spec.model).model, spec.adapter)
    assert estimate(spec, ONE).adapter == sum(one.nbytes for one in adapter.parameters())


def test_packed_linears_are_smaller(make_spec: SpecMaker) -> None:
    plain = estimate(make_spec(), ONE).base
    packed = {
        kind: estimate(make_spec(model__quantization=kind), ONE).base
        for kind in ("bnb_int8", "bnb_nf4")
    }
    assert packed["bnb_nf4"] < packed["bnb_int8"] < plain


def test_what_is_cut_among_workers_is_a_part_of_it(make_spec: SpecMaker) -> None:
    def of(workers: int = 1, **parallel: object) -> MemoryEstimate:
        rows = ONE.rows * workers  # of each, one pass
        parallel["workers"] = workers
        return estimate(make_spec(parallel=parallel, optimizer__batch_size=rows), ONE)

    alone, ddp = of(), of(workers=4)
    assert ddp == alone
    zero = [of(workers=4, strategy="deepspeed", zero_stage=stage) for stage in (1, 2, 3)]
    assert [one.optimizer for one in zero] == [alone.optimizer // 4] * 3
    assert [one.gradients for one in zero] == [alone.gradients, *[alone.gradients // 4] * 2]
    assert [one.adapter for one in zero] == [alone.adapter, alone.adapter, alone.adapter // 4]
    assert zero[2].base < alone.base
    assert of(workers=4, strategy="fsdp2") == zero[2]
    assert of(workers=4, ep_size=4).adapter < alone.adapter
    offloaded = of(workers=4, strategy="deepspeed", offload_optimizer=True)
    assert offloaded.optimizer == 0


@pytest.fixture(scope="module")
def middling(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough for what a step takes to be tensors of tokens."""
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=4000,
    )
    folder = tmp_path_factory.mktemp("middling")
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(folder)
    return folder


USUAL = LargestPass(rows=8, length=128, scored=40)
LONG = LargestPass(rows=2, length=512, scored=500)
SHORT = LargestPass(rows=8, length=32, scored=10)
CHECKPOINTING = {"model__activation_checkpointing": True}
LINEAR = {"adapter__experts": "linear"}
BFLOAT16 = {"model__dtype": "bfloat16"}
PACKED = {"data__packing": True}


@pytest.mark.parametrize(
    ("changes", "largest"),
    [
        ({}, USUAL),
        ({}, LONG),
        ({}, SHORT),
        ({"adapter__dropout": 0.1}, USUAL),
        (LINEAR, USUAL),
        ({**LINEAR, "adapter__dropout": 0.1}, LONG),
        ({"adapter__num_experts": 1, "adapter__top_k": 1}, USUAL),
        ({"adapter__num_experts": 32, "adapter__rank": 16}, SHORT),
        ({"model__attention": "eager"}, USUAL),
        (CHECKPOINTING, USUAL),
        (CHECKPOINTING, LONG),
        ({**CHECKPOINTING, **LINEAR}, USUAL),
        (BFLOAT16, USUAL),
        ({**BFLOAT16, **CHECKPOINTING}, USUAL),
        ({**BFLOAT16, **LINEAR}, LONG),
        (PACKED, USUAL),
        ({**PACKED, **LINEAR, **CHECKPOINTING}, USUAL),
        ({**PACKED, "model__attention": "eager"}, SHORT),
        ({**BFLOAT16, "adapter__train_also": ("embed_tokens", "lm_head")}, USUAL),
        ({"adapter__train_tokens": tuple(range(2000))}, USUAL),
    ],
    ids=lambda one: ", ".join(map(str, one.values())) if isinstance(one, dict) else str(one.length),
)
def test_a_steps_peak_is_what_was_estimated(
    changes: dict[str, object], largest: LargestPass, make_spec: SpecMaker, middling: Path
) -> None:
    spec = make_spec(model__path=str(middling), **changes)
    assert measured(spec, largest).ratio == pytest.approx(1, abs=0.15)


DROPOUT = {"adapter__dropout": 0.1}
CONTRASTIVE = {"loss__contrastive_weight": 0.05}
MIXED = (
    {},
    {**LINEAR, "adapter__num_experts": 2, "adapter__rank": 8},
    {"adapter__num_experts": 1, "adapter__top_k": 1},
    {"adapter__num_experts": 8, "adapter__rank": 8, "adapter__top_k": 1},
)
"""Blocks, linear experts and LoRA of several sizes."""
MEDIUM = LargestPass(rows=2, length=64, scored=20)


@pytest.mark.parametrize(
    ("runs", "largest"),
    [
        pytest.param((DROPOUT,) * 2, MEDIUM, id="2 alike, blocks"),
        pytest.param((LINEAR,) * 4, MEDIUM, id="4 alike, linear"),
        pytest.param([{**CONTRASTIVE, **one} for one in MIXED[:2]], USUAL, id="2, contrastive"),
        pytest.param(MIXED, MEDIUM, id="4 mixed"),
        pytest.param([{**CHECKPOINTING, **one} for one in MIXED], MEDIUM, id="4, checkpointing"),
        pytest.param([{**PACKED, **BFLOAT16, **one} for one in MIXED], MEDIUM, id="4, packed rows"),
    ],
)
def test_a_joint_steps_peak_is_what_was_estimated(
    runs: Sequence[dict[str, object]], largest: LargestPass, make_spec: SpecMaker, middling: Path
) -> None:
    specs = [make_spec(model__path=str(middling), **changes) for changes in runs]
    pack = measured_pack(specs, largest)
    assert pack.ratio == pytest.approx(1, abs=0.15)
    alone = [estimate(spec, largest) for spec in specs]
    assert pack.estimated.base == alone[0].base, "there is one"
    assert pack.estimated.adapter == sum(one.adapter for one in alone)
    assert pack.estimated.optimizer == sum(one.optimizer for one in alone)


@pytest.mark.parametrize("generate", [False, True])
def test_rows_that_are_scored_together_take_less_than_a_joint_step(
    make_spec: SpecMaker, middling: Path, tmp_path: Path, generate: bool
) -> None:
    """So the estimate need not hold them: without gradients a layer's activations are gone when
    the next one makes its own."""
    pack = Pack(len(MIXED))
    for at, changes in enumerate(MIXED):
        spec = make_spec(
            model__path=str(middling), optimizer__batch_size=4, evaluation__generate=generate
        )
        spec = override(spec, {k.replace("__", "."): v for k, v in changes.items()}, "test")
        pack.join(RunTask(spec, RunPlan(tmp_path / f"T{at}", "study", shared=tmp_path)))
    evaluations = [slot.run.evaluation for slot in pack._slots.values()]
    model = evaluations[0].inputs.base.model
    pack.round(pack.names)  # moments are there from now on
    step = peak_bytes(lambda: pack.round(pack.names))
    model.eval()
    scored = peak_bytes(lambda: scored_together(evaluations, [True] * len(MIXED)))
    pack.close()
    assert 0 < scored < step


def test_gradients_are_there_at_once_with_several_passes(
    make_spec: SpecMaker, middling: Path
) -> None:
    """Of one pass they come as activations go."""
    spec = make_spec(
        model__path=str(middling), adapter__num_experts=32, adapter__rank=32, adapter__alpha=64
    )
    one, two = (measured(spec, SHORT, passes=passes) for passes in (1, 2))
    assert two.taken > 1.05 * one.taken
    assert two.estimated.total > 1.05 * one.estimated.total
    assert [one.ratio, two.ratio] == pytest.approx([1, 1], abs=0.15)


def test_what_was_not_run_is_found_from_what_was(
    make_spec: SpecMaker, middling: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large pass is run in part, and in half of that."""
    spec, largest = make_spec(model__path=str(middling)), LargestPass(16, 256, 10)
    whole = estimate(spec, largest).activations
    monkeypatch.setattr("workers.models.probe.FLOPS", 8e8)
    assert estimate(spec, largest).activations == pytest.approx(whole, rel=0.05)


@pytest.mark.parametrize("kilobytes", [32, 1024, 10**6])
def test_logits_are_what_the_loss_takes(
    kilobytes: int, make_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one piece and in several."""
    spec = make_spec()
    base = load_base(spec.model)
    assert base.head is not None
    monkeypatch.setitem(PIECE_BYTES, "cpu", kilobytes * 1024)
    known = estimate(spec, LargestPass(rows=100, length=60, scored=50)).logits
    config = base.model.config
    size = piece_tokens(5_000, config.vocab_size, "cpu")
    hidden = torch.randn(6_000, config.hidden_size, requires_grad=True)
    target, head = torch.zeros(5_000, dtype=torch.long), PiecewiseHead(base.head, [], size)

    def turn() -> None:
        picked = hidden.index_select(0, torch.arange(5_000))
        torch.autograd.grad(head.loss(picked, target), picked)

    assert known == pytest.approx(peak_bytes(turn), rel=0.15)


RUN = """
import re, sys
from pathlib import Path
import psutil, torch
from workers.config.train import TrainSpec
from workers.run.record import RunPlan
from workers.train.loop import TrainingRun
torch.set_num_threads(1)
small, large = map(TrainSpec.model_validate_json, sys.argv[1:3])
plan = RunPlan(Path(sys.argv[3]), "study")
TrainingRun(small, plan).advance()  # all that is imported on the way is there now
before = psutil.Process().memory_info().rss
run = TrainingRun(large, plan)
run.advance()
# Not getrusage's, which begins with the peak of who started the process.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
print(peak - before)
"""


@pytest.fixture
def larger(tiny_model_dir: Path, tmp_path: Path, make_spec: SpecMaker) -> TrainSpec:
    """A run that holds some 300 MB, so that nobody takes Python itself for its memory."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=12_000,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"prompt": "p" * 90, "target": "t" * 90} for _ in range(16)]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return make_spec(
        model__path=str(tmp_path / "model"),
        data__train=str(source),
        data__validation=str(source),
        data__template="plain",
        data__max_length=256,
        optimizer__steps=2,
        evaluation__every=2,
        evaluation__rows_per_task=1,
    )


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_run_takes_about_what_was_estimated(
    larger: TrainSpec, make_spec: SpecMaker, tmp_path: Path, checkpointing: bool
) -> None:
    spec = override(larger, {"model.activation_checkpointing": checkpointing}, "test")
    known = estimate(spec, epoch_figures(rows_of(spec), spec).largest)
    specs = [one.model_dump_json() for one in (make_spec(), spec)]
    argv = [sys.executable, "-c", RUN, *specs, str(tmp_path / "run")]
    # The estimate has no fragmentation in it: what is freed goes back at once.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(argv, check=True, capture_output=True, text=True, env=env)
    taken = int(done.stdout.split()[-1])
    assert known.total / FACTOR < taken < known.total * FACTOR


def rows_of(spec: TrainSpec) -> EncodedSource:
    return TokenStore(Inputs.load(spec).encoder).training()
