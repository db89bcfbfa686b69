"""What two workers that share the experts keep for the backward pass, send, and choose."""

import gc
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from tests.distributed.expert_parallel_cases import CASES, RECOMPUTED, Case, batches, build
from tests.processes import run_together
from workers.config.adapter import AdapterSpec
from workers.config.base import override
from workers.config.parallel import ParallelSpec
from workers.config.train import TrainSpec
from workers.injection.inject import inject
from workers.parallel.cost import ExchangeChoice, Passes
from workers.parallel.exchange_choice import share_out
from workers.parallel.expert_shards import ExpertShards
from workers.parallel.mesh import Mesh
from workers.parallel.trial import MicroBatch
from workers.parallel.update import Replicated
from workers.parallel.world import World
from workers.train.step import TrainStep

TOKENS = (4, 64)
KEPT = Passes(rank_space=True)
AGAIN = Passes(rank_space=True, recomputed=True)


class Held(TorchDispatchMode):
    """Counts the bytes of tensors that were made inside the block and still live."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        before = {one.untyped_storage()._cdata for one in _tensors((args, kwargs))}
        for tensor in _tensors(made):
            storage = tensor.untyped_storage()
            if storage._cdata not in before:  # else it is a view, or was written to
                self._made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return made

    def bytes(self) -> int:
        """Of those that live."""
        return sum(size for one, size in self._made.values() if not one.expired())


def _tensors(values: object) -> Iterator[Tensor]:
    return (one for one in tree_leaves(values) if isinstance(one, Tensor))


@dataclass(frozen=True)
class Counted(World):
    """Remembers the sizes of what was summed."""

    sums: list[int] = field(default_factory=list)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        self.sums.append(tensor.numel())
        return super().all_reduce(tensor)


@pytest.mark.usefixtures("processes")
def test_what_two_workers_keep_send_and_choose(tmp_path: Path) -> None:
    run_together(work, tmp_path, processes=2)


def work(rank: int, folder: Path) -> None:
    """One of them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mesh = Mesh.of(ParallelSpec(workers=2, ep_size=2))
    for experts in ("block", "linear"):
        for dtype in (torch.float32, torch.bfloat16):
            check_memory(mesh, experts, dtype)
    check_messages(mesh)
    for case in CASES + RECOMPUTED:
        if "tokens" in case.only:
            check_choice(mesh, case)
    check_true_choice(mesh)
    dist.barrier()
    dist.destroy_process_group()


def check_memory(mesh: Mesh, experts: str, dtype: torch.dtype) -> None:
    """Sharing the experts out keeps no more activations than to have them all."""
    alone = held(experts, dtype)
    assert held(experts, dtype, mesh, "weights", KEPT) <= 1.1 * alone
    alone_recomputed = held(experts, dtype, passes=AGAIN)
    assert 4 * alone_recomputed < alone, "checkpointing drops most of it"
    for exchange in ("tokens", "weights"):
        shared = held(experts, dtype, mesh, exchange, AGAIN)
        assert shared <= 1.1 * alone_recomputed, f"{experts}, {dtype}, {exchange}: {shared}"


def held(
    experts: str,
    dtype: torch.dtype,
    mesh: Mesh | None = None,
    exchange: str = "",
    passes: Passes = KEPT,
) -> int:
    """Bytes that the graph of one forward pass keeps, weights apart."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
    )
    model = LlamaForCausalLM(config).to(dtype).train()
    if passes.recomputed:
        model.activation_checkpointing_enable({"use_reentrant": False})
    spec = AdapterSpec.model_validate({"num_experts": 8, "rank": 4, "experts": experts})
    adapter = inject(model, spec, seed=1)
    ExpertShards(adapter, mesh or Mesh(), ExchangeChoice(exchange), passes)
    with Held() as mode, adapter.record(rank_space=passes.rank_space) as records:
        output = model.model(torch.randint(32, TOKENS), use_cache=False).last_hidden_state
    assert all(record.rank_space for record in records)
    records.clear()
    assert output.requires_grad
    gc.collect()
    return min(mode.bytes() for _ in settling())


def settling() -> Iterator[None]:
    """Looks, a moment apart: gloo's threads let go of a message after who waited for it goes on."""
    for _ in range(10):
        yield
        time.sleep(0.02)


def check_messages(mesh: Mesh) -> None:
    """The balance loss costs one all-reduce a micro-batch, of all layers' counts."""
    (case,) = (case for case in CASES if case.name == "experts by layer")
    base, adapter = build(case, torch.float64)
    world = Counted(mesh.world.rank, mesh.world.size)
    shards = ExpertShards(adapter, replace(mesh, world=world), ExchangeChoice("weights"))
    step = TrainStep(case.spec, base, adapter, Replicated(adapter, case.spec.optimizer, shards))
    (batch, other), sums = batches(case, 2, 0), world.sums
    step([batch])
    once = list(sums)
    sums.clear()
    step([batch, other, batch])
    counts = [size for size in sums if size == (4 + 2) + (8 + 2)]
    assert len(counts) == 3
    assert len(sums) - len(once) == 2


def check_choice(mesh: Mesh, case: Case) -> None:
    """A trial settles it alike on all workers and leaves nothing behind; a run goes either way."""
    base, adapter = build(case, torch.float32, checkpointing=case.recomputed)
    base.model.eval()
    before, random = adapter.state_dict(), torch.get_rng_state()
    micro = MicroBatch(rows=2, length=case.length, dtype=torch.float32)
    shards = share_out(auto(case.spec), base.model, adapter, mesh, micro)
    choice = shards.choice
    assert choice is not None
    assert mesh.world.gather(asdict(choice)) == [asdict(choice)] * 2
    assert choice.exchange == min(choice.measured_seconds, key=choice.measured_seconds.get)
    assert choice.measured_seconds.keys() == choice.predicted_bytes.keys() == {"tokens", "weights"}
    assert shards.traffic.take() == 0
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module.training for module in base.model.modules())
    assert all(parameter.grad is None for parameter in adapter.parameters())
    with shards.gathered():
        for name, parameter in adapter.state_dict().items():
            assert torch.equal(parameter, before[name])
    base.model.train()
    step = TrainStep(case.spec, base, adapter, Replicated(adapter, case.spec.optimizer, shards))
    for exchange in choice.measured_seconds:
        shards.take(ExchangeChoice(exchange))
        assert step([batches(case, 2, 0)[mesh.world.rank]]).fault is None


def check_true_choice(mesh: Mesh) -> None:
    """Large experts and one token; then experts for which fewer bytes go by tokens, and a frozen
    block that would run nearly twice for each of them: the bytes alone would choose wrongly."""
    large = {"num_experts": 64, "rank": 64, "top_k": 2}
    assert chosen(mesh, large, MicroBatch(1, 1, torch.float32), 1024).exchange == "tokens"
    four_of_eight = {"num_experts": 8, "rank": 8, "top_k": 4}
    choice = chosen(mesh, four_of_eight, MicroBatch(4, 128, torch.float32), 4096)
    assert choice.predicted_bytes["tokens"] < choice.predicted_bytes["weights"]
    assert choice.exchange == "weights"


def chosen(
    mesh: Mesh, adapter: dict[str, object], micro: MicroBatch, feed_forward: int
) -> ExchangeChoice:
    """For a model whose feed-forward blocks are most of its work."""
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=256,
        intermediate_size=feed_forward,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = LlamaForCausalLM(config)
    spec = override(auto(Case("", adapter).spec), {"loss.contrastive_weight": 0.0}, "test")
    choice = share_out(spec, model, inject(model, spec.adapter), mesh, micro).choice
    assert choice is not None
    return choice


def auto(spec: TrainSpec) -> TrainSpec:
    """The same for two workers that share the experts in the faster way."""
    return override(spec, {"parallel.workers": 2, "parallel.ep_size": 2}, "test")
