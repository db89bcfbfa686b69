"""Expert parallelism on this machine: exactness, memory, bytes and time; and a table for others.

    python tests/benchmarks/expert_parallel.py [--json PATH|-]

Four processes over gloo train a random Llama with block experts, with ep_size 1, 2 and 4 and both
exchanges, in turns of a few steps. Printed: the largest difference from ep_size 1 after the first
steps (float64), each worker's expert and optimizer bytes, the bytes that it sends over those that
workers.parallel.cost predicts, and medians of a step's time. Then six settings in which one or the
other exchange is the faster: what `auto` picks, and medians of a step's time with either. At last,
from the formulas, what each way would send for an 8B model on 8 to 512 GPUs.
"""

import gc
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import harness
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from results import table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from transformers import LlamaConfig, LlamaForCausalLM

from workers.config.adapter import AdapterSpec
from workers.config.data import DataSpec
from workers.config.model import ModelSpec
from workers.config.parallel import ParallelSpec
from workers.config.train import LossSpec, OptimizerSpec, TrainSpec
from workers.data.batches import Batch
from workers.injection.adapter import Adapter
from workers.injection.inject import inject
from workers.losses.cross_entropy import IGNORED
from workers.models.base import Base
from workers.parallel.cost import ExchangeChoice, RoutedPlace, token_bytes, weight_bytes
from workers.parallel.exchange_choice import routed_places, share_out
from workers.parallel.expert_shards import ExpertShards
from workers.parallel.mesh import Mesh
from workers.parallel.trial import MicroBatch
from workers.parallel.update import Replicated
from workers.train.step import TrainStep

WAYS = [(1, "none"), *((size, way) for size in (2, 4) for way in ("tokens", "weights"))]
WORKERS = 4
SETTING_ROUNDS = 3
"""Steps of a setting for each round."""
MUCH = 1.15
"""Where the slower exchange takes so many times as long, auto must not pick it."""


@dataclass(frozen=True)
class Sizes:
    """What is timed."""

    width: int = 128
    feed_forward: int = 384
    layers: int = 2
    experts: int = 16
    rank: int = 16
    top_k: int = 2
    rows: int = 4
    length: int = 64
    rounds: int = 3
    exact_steps: int = 4


@dataclass(frozen=True)
class Setting:
    """An adapter and its rows, for which `auto` chooses."""

    sizes: Sizes
    ep_size: int = 2
    kind: str = "block"
    recomputed: bool = False
    contrastive: bool = False

    def spec(self) -> TrainSpec:
        """The whole specification."""
        return _spec(self.sizes, self.ep_size, self.kind, self.recomputed, self.contrastive)


WIDE = Sizes(width=256, feed_forward=1024, experts=8, rank=4, top_k=4, rows=2)
FEW = Sizes(experts=32, rank=32, rows=1, length=8)
SETTINGS = {
    "large experts, few tokens": Setting(FEW),
    "the same, recomputed": Setting(FEW, recomputed=True),
    "small experts in a wide block": Setting(WIDE, ep_size=4),
    "the same, recomputed on two": Setting(WIDE, recomputed=True),
    "linear experts, few tokens": Setting(FEW, ep_size=4, kind="linear"),
    "contrastive": Setting(Sizes(experts=8, rank=4, rows=8), contrastive=True),
}


class Run:
    """One way to share out the experts, on this worker."""

    def __init__(self, sizes: Sizes, ep_size: int, exchange: str, dtype: torch.dtype) -> None:
        spec = _spec(sizes, ep_size)
        base, adapter = _build(sizes, spec, dtype)
        self.places = routed_places(adapter, rank_space=False)
        mesh = Mesh.of(ParallelSpec(workers=WORKERS, ep_size=ep_size))
        self.shards = ExpertShards(adapter, mesh, ExchangeChoice(exchange))
        self.update = Replicated(adapter, spec.optimizer, self.shards)
        self.step = TrainStep(spec, base, adapter, self.update)
        self.adapter, self._sizes = adapter, sizes

    def take(self, number: int) -> float:
        """One step; its loss."""
        return self.step([_batch(self._sizes, number)]).losses["loss"]

    def expert_bytes(self) -> int:
        """Of the expert parameters on this worker, and of the optimizer's state for them."""
        experts = dict(self.adapter.named_expert_parameters()).values()
        state = self.update.optimizer.state
        kept = [one for own in experts for one in (own, *state[own].values())]
        return sum(one.numel() * one.element_size() for one in kept)


def _batch(sizes: Sizes, number: int) -> Batch:
    """This worker's rows of one step."""
    generator = torch.Generator().manual_seed(WORKERS * number + dist.get_rank())
    ids_BS = torch.randint(256, (sizes.rows, sizes.length), generator=generator)
    labels_BS = ids_BS.clone()
    labels_BS[:, : sizes.length // 2] = IGNORED
    return Batch(ids_BS, torch.ones_like(ids_BS), labels_BS)


def _spec(
    sizes: Sizes,
    ep_size: int,
    kind: str = "block",
    recomputed: bool = False,
    contrastive: bool = False,
) -> TrainSpec:
    shape = {"num_experts": sizes.experts, "rank": sizes.rank, "top_k": sizes.top_k}
    return TrainSpec(
        model=ModelSpec(path="random", activation_checkpointing=recomputed),
        adapter=AdapterSpec.model_validate({**shape, "dropout": 0.0, "experts": kind}),
        loss=LossSpec(contrastive_weight=0.01 if contrastive else 0.0),
        data=DataSpec(train="-", validation="-"),
        optimizer=OptimizerSpec(schedule="constant", batch_size=WORKERS * sizes.rows),
        parallel=ParallelSpec(workers=WORKERS, ep_size=ep_size),
    )


def _build(sizes: Sizes, spec: TrainSpec, dtype: torch.dtype) -> tuple[Base, Adapter]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=sizes.width,
        intermediate_size=sizes.feed_forward,
        num_hidden_layers=sizes.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).to(dtype).train()
    if spec.model.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    adapter = inject(model, spec.adapter, seed=1)
    for parameter in adapter.parameters():
        parameter.data = torch.randn_like(parameter.data, dtype=dtype) * 0.05
    return Base(model, None, torch.device("cpu")), adapter  # type: ignore[arg-type]


def work(rank: int, sizes: Sizes, folder: str) -> None:
    """One worker; the first one leaves the figures."""
    torch.set_num_threads(1)
    store = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", store, rank=rank, world_size=WORKERS)
    figures = {"error": errors(sizes), **timings(sizes)}
    figures["auto"] = {name: choices(one, sizes.rounds) for name, one in SETTINGS.items()}
    if not rank:
        torch.save(figures, Path(folder, "figures.pt"))
    dist.barrier()
    dist.destroy_process_group()


def errors(sizes: Sizes) -> dict[str, float]:
    """Largest difference of losses and parameters from ep_size 1, in float64."""
    ends: dict[tuple[int, str], list[torch.Tensor]] = {}
    for way in WAYS:
        run = Run(sizes, *way, torch.float64)
        losses = [run.take(number) for number in range(sizes.exact_steps)]
        ends[way] = [torch.tensor(losses), *run.update.whole_adapter().values()]
    worst = dict.fromkeys(("tokens", "weights"), 0.0)
    for (_, exchange), end in ends.items():
        if exchange in worst:
            pairs = zip(end, ends[WAYS[0]], strict=True)
            error = max(float((one - two).abs().max()) for one, two in pairs)
            worst[exchange] = max(worst[exchange], error)
    return worst


def timings(sizes: Sizes) -> dict[str, Any]:
    """Bytes of memory and on the wires, and seconds of a step, by way."""
    runs = {way: Run(sizes, *way, torch.float32) for way in WAYS}
    seconds: dict[tuple[int, str], list[float]] = {way: [] for way in WAYS}
    for number in range(sizes.rounds + 1):
        for way, run in runs.items():
            dist.barrier()
            run.shards.traffic.take()
            started = time.perf_counter()
            run.take(number)
            seconds[way].append(time.perf_counter() - started)
    sent, predicted = {}, {}
    tokens = sizes.rows * sizes.length
    for way, run in runs.items():
        ep_size, exchange = way
        total = torch.tensor(float(run.shards.traffic.take()))
        dist.all_reduce(total)
        sent[way] = float(total) / WORKERS
        predicted[way] = 0.0
        if exchange == "tokens":
            predicted[way] = token_bytes(run.places, ep_size, tokens, 4)
        elif exchange == "weights":
            predicted[way] = weight_bytes(run.places, ep_size, 4)
    return {
        "seconds": {way: statistics.median(taken[1:]) for way, taken in seconds.items()},
        "memory": {way: run.expert_bytes() for way, run in runs.items()},
        "sent": sent,
        "predicted": predicted,
    }


def choices(setting: Setting, rounds: int) -> dict[str, Any]:
    """What auto picks, and the median seconds of a step by either exchange, in turns."""
    sizes, spec = setting.sizes, setting.spec()
    base, adapter = _build(sizes, spec, torch.float32)
    micro = MicroBatch(sizes.rows, sizes.length, torch.float32)
    shards = share_out(spec, base.model, adapter, Mesh.of(spec.parallel), micro)
    picked = shards.choice
    assert picked is not None
    step = TrainStep(spec, base, adapter, Replicated(adapter, spec.optimizer, shards))
    seconds: dict[str, list[float]] = {exchange: [] for exchange in picked.measured_seconds}
    for number in range(SETTING_ROUNDS * rounds + 1):
        for exchange, taken in seconds.items():
            shards.take(ExchangeChoice(exchange))
            dist.barrier()
            started = time.perf_counter()
            step([_batch(sizes, number)])
            taken.append(time.perf_counter() - started)
    medians = {exchange: statistics.median(taken[1:]) for exchange, taken in seconds.items()}
    return {"picked": picked.exchange, "trial": picked.measured_seconds, "step": medians}


def verdict(figures: dict[str, Any]) -> dict[str, Any]:
    """Whether auto was right, where a step by the slower exchange takes much longer."""
    best, other = sorted(figures["step"], key=figures["step"].get)
    ratio = figures["step"][other] / figures["step"][best]
    right = figures["picked"] == best
    return {
        "picked": figures["picked"],
        "faster": best,
        "slower_over_faster": round(ratio, 3),
        "wrong": not right and ratio > MUCH,
    }


def big_model(out: TextIO) -> None:
    """What one GPU sends for a micro-batch of an 8B model (32 layers of 4096 x 14336, K=2, bf16):
    without expert parallelism the experts' gradients once a step, with it one exchange."""
    rows = []
    for ranks in (128, 512, 2048, 8192):
        experts = ranks // 16
        numbers = 3 * ranks * (4096 + 14336)
        places = [RoutedPlace(experts, 2, 2 * 4096, numbers)] * 32
        for gpus in (8, 64, 512):
            ep_size = min(8, experts)
            replicated = 2 * 32 * numbers * 4 * (gpus - 1) / gpus
            shared = replicated / ep_size
            by_tokens = {t: token_bytes(places, ep_size, t, 2) + shared for t in (1024, 16384)}
            by_weights = weight_bytes(places, ep_size, 2) + shared
            ways = {"replicated": replicated, "weights": by_weights}
            best = [
                min([*ways.items(), ("tokens", by_tokens[t])], key=lambda way: way[1])[0]
                for t in (1024, 16384)
            ]
            memory = 32 * numbers * 16
            figures = [replicated, by_weights, *by_tokens.values()]
            rows.append(
                [
                    str(ranks),
                    str(gpus),
                    f"{memory / 2**30:.1f} / {memory / ep_size / 2**30:.1f}",
                    *(f"{figure / 1e9:.2f}" for figure in figures),
                    *best,
                ]
            )
    heads = ["E x R", "GPUs", "GiB replicated / ep 8", "replicated GB", "weights GB"]
    heads += ["tokens GB, T=1024", "T=16384", "fewest bytes, T=1024", "T=16384"]
    print(f"\nOne GPU's bytes for a micro-batch of an 8B model:\n\n{table(heads, rows)}", file=out)


def settings(auto: dict[str, Any], figures: dict[str, Any], out: TextIO) -> None:
    """What auto picked, beside what was measured."""
    rows = [
        [
            name,
            *(f"{1e3 * figures[name]['trial'][way]:.1f}" for way in ("tokens", "weights")),
            *(f"{1e3 * figures[name]['step'][way]:.1f}" for way in ("tokens", "weights")),
            one["faster"],
            f"{one['slower_over_faster']:.2f}",
            one["picked"] + (" (wrong)" if one["wrong"] else ""),
        ]
        for name, one in auto.items()
    ]
    heads = ["setting", "trial ms, tokens", "weights", "step ms, tokens", "weights"]
    heads += ["faster", "slower over faster", "auto picked"]
    print(f"\nWhat auto picks:\n\n{table(heads, rows)}", file=out)


def run(sizes: Sizes, out: TextIO) -> dict[str, object]:
    """Measure, print, and give the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        # Forked from this process, which has imported what takes each of them seconds to import,
        # and has computed nothing, so that it has no other thread.
        gc.freeze()
        mp.start_processes(work, (sizes, folder), nprocs=WORKERS, start_method="fork")
        figures = torch.load(Path(folder, "figures.pt"), weights_only=True)
    alone = figures["memory"][WAYS[0]]
    rows = [
        [
            f"{size} {way}",
            f"{figures['memory'][size, way] / 2**20:.2f}",
            f"{figures['sent'][size, way] / 1e6:.2f}",
            f"{figures['predicted'][size, way] / 1e6:.2f}",
            f"{1e3 * figures['seconds'][size, way]:.0f}",
        ]
        for size, way in WAYS
    ]
    heads = ["ep_size", "experts and optimizer MiB", "sent MB", "predicted MB", "step ms"]
    print(table(heads, rows), file=out)
    auto = {name: verdict(taken) for name, taken in figures["auto"].items()}
    settings(auto, figures["auto"], out)
    big_model(out)
    over = {
        f"{size} {way}": round(figures["sent"][size, way] / figures["predicted"][size, way], 3)
        for size, way in WAYS[1:]
    }
    return {
        "max_error": figures["error"],
        "expert_memory_ratio": {
            str(size): round(figures["memory"][size, way] / alone, 3)
            for size, way in WAYS[1:]
            if way == "tokens"
        },
        "bytes_over_predicted": over,
        "auto": auto,
        "auto_wrong": sum(one["wrong"] for one in auto.values()),
        "step_seconds": {f"{s} {way}": figures["seconds"][s, way] for s, way in WAYS},
        "sizes": asdict(sizes) | {"workers": WORKERS},
    }


def main() -> None:
    """Parse the arguments, print the tables, and end with one line of JSON."""
    options = vars(harness.parser(__doc__, Sizes()).parse_args())
    path = options.pop("json")
    harness.finish(run(Sizes(**options), harness.output(path)), path)


if __name__ == "__main__":
    main()
