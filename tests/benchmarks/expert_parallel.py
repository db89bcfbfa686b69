"""Expert parallelism on this machine: exactness, memory, bytes and time; and a table for others.

    python tests/benchmarks/expert_parallel.py [--json PATH|-]

Four processes over gloo train a random Llama with block experts, with ep_size 1, 2 and 4 and both
exchanges, in turns of a few steps. Printed: the largest difference from ep_size 1 after the first
steps (float64), each worker's expert and optimizer bytes, the bytes that it sends over those that
workers.parallel.cost predicts, and medians of a step's time. Then, from the same formulas, what
each way would send for an 8B model on 8 to 512 GPUs.
"""

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

from workers.data.batches import Batch
from workers.inject import Adapter, inject
from workers.losses import IGNORED
from workers.model import Base
from workers.parallel.cost import Choice, RoutedPlace, token_bytes, weight_bytes
from workers.parallel.mesh import Mesh
from workers.parallel.plan import routed_places
from workers.parallel.shards import ExpertShards
from workers.parallel.update import Replicated
from workers.spec import AdapterSpec, DataSpec, ModelSpec, OptimizerSpec, ParallelSpec, TrainSpec
from workers.train.step import TrainStep

WAYS = [(1, "none"), *((size, way) for size in (2, 4) for way in ("tokens", "weights"))]
WORKERS = 4


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


class Run:
    """One way to share out the experts, on this worker."""

    def __init__(self, sizes: Sizes, ep_size: int, exchange: str, dtype: torch.dtype) -> None:
        base, adapter, spec = _build(sizes, dtype)
        self.places = routed_places(adapter, contrastive=False)
        mesh = Mesh.of(ParallelSpec(workers=WORKERS, ep_size=ep_size))
        self.shards = ExpertShards(adapter, mesh, Choice(exchange))
        self.update = Replicated(adapter, spec.optimizer, self.shards)
        self.step = TrainStep(spec, base, adapter, self.update)
        self.adapter, self._sizes = adapter, sizes

    def take(self, number: int) -> float:
        """One step; its loss."""
        generator = torch.Generator().manual_seed(WORKERS * number + dist.get_rank())
        shape = (self._sizes.rows, self._sizes.length)
        ids_BS = torch.randint(256, shape, generator=generator)
        labels_BS = ids_BS.clone()
        labels_BS[:, : self._sizes.length // 2] = IGNORED
        return self.step([Batch(ids_BS, torch.ones_like(ids_BS), labels_BS)]).losses["loss"]

    def expert_bytes(self) -> int:
        """Of the expert parameters on this worker, and of the optimizer's state for them."""
        experts = dict(self.adapter.named_expert_parameters()).values()
        state = self.update.optimizer.state
        kept = [one for own in experts for one in (own, *state[own].values())]
        return sum(one.numel() * one.element_size() for one in kept)


def _build(sizes: Sizes, dtype: torch.dtype) -> tuple[Base, Adapter, TrainSpec]:
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
    shape = AdapterSpec(num_experts=sizes.experts, rank=sizes.rank, top_k=sizes.top_k, dropout=0.0)
    adapter = inject(model, shape, seed=1)
    for parameter in adapter.parameters():
        parameter.data = torch.randn_like(parameter.data, dtype=dtype) * 0.05
    spec = TrainSpec(
        model=ModelSpec(path="random"),
        adapter=shape,
        data=DataSpec(train="-", validation="-"),
        optimizer=OptimizerSpec(schedule="constant"),
    )
    return Base(model, None, torch.device("cpu")), adapter, spec  # type: ignore[arg-type]


def work(rank: int, sizes: Sizes, folder: str) -> None:
    """One worker; the first one leaves the figures."""
    torch.set_num_threads(1)
    store = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", store, rank=rank, world_size=WORKERS)
    figures = {"error": errors(sizes), **timings(sizes)}
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


def run(sizes: Sizes, out: TextIO) -> dict[str, object]:
    """Measure, print, and give the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        mp.spawn(work, (sizes, folder), nprocs=WORKERS)  # type: ignore[no-untyped-call]
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
