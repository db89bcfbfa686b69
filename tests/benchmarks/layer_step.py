"""Forward + backward of one adapted feed-forward block: block experts, plain LoRA, a loop.

All three adapt the same frozen gated block with the same number of trained weights (plain LoRA, by
PEFT, has rank E * R; the router comes on top of the experts). They take turns in one process, on
one thread; times are process CPU time, so that neighbours on the machine count little.

    python tests/benchmarks/layer_step.py [--json PATH|-]

Shapes: T tokens, D width, F feed-forward width, E experts, K top-k, R rank.
"""

import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TextIO

import harness
import torch
from harness import peak_bytes
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workers.config.adapter import AdapterSpec
from workers.injection.row_map import RowMap
from workers.injection.wrapper import AdaptedModule
from workers.layers.experts import BlockExperts
from workers.layers.feed_forward import FeedForward, find_feed_forward
from workers.layers.routing.base import build_router

NAMES = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Sizes:
    """What is timed."""

    tokens: int = 1024
    width: int = 576
    feed_forward: int = 1536
    rank: int = 8
    top_k: int = 2
    rounds: int = 15


class GatedBlock(nn.Module):
    """The frozen feed-forward block of a Llama, in float32."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(sizes.width, sizes.feed_forward, bias=False)
        self.up_proj = nn.Linear(sizes.width, sizes.feed_forward, bias=False)
        self.down_proj = nn.Linear(sizes.feed_forward, sizes.width, bias=False)
        self.act_fn = nn.SiLU()
        self.requires_grad_(False)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """W2 (act(W1 x) * W3 x)."""
        gated_TF = self.act_fn(self.gate_proj(hidden_TD)) * self.up_proj(hidden_TD)
        output_TD: Tensor = self.down_proj(gated_TF)
        return output_TD


class ExpertLoop(nn.Module):
    """The straightforward layer: for each expert its tokens, its LoRA, the frozen down-projection.

    As in the published implementation, gate and up run once for each token, down once for each of
    its K choices.
    """

    def __init__(self, block: GatedBlock, spec: AdapterSpec) -> None:
        super().__init__()
        self.block = block
        self.spec = spec
        self.router = build_router(block.gate_proj.in_features, spec.layer_experts, spec)
        self.lora_A = nn.ModuleDict()
        self.lora_B = nn.ModuleDict()
        for name in NAMES:
            linear = block.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            self.lora_A[name] = _linears(spec.layer_experts, linear.in_features, spec.rank)
            self.lora_B[name] = _linears(spec.layer_experts, spec.rank, linear.out_features)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """Every expert in turn."""
        routing = self.router(hidden_TD)
        expert_TK, gate_TK = routing.expert_TK, routing.gate_TK
        gate_TF, up_TF = self.block.gate_proj(hidden_TD), self.block.up_proj(hidden_TD)
        output_TD = torch.zeros_like(hidden_TD)
        for expert in range(len(self.router.weight)):
            rows, slots = torch.where(expert_TK == expert)
            hidden_nD = hidden_TD[rows]
            gate_nF = gate_TF[rows] + self._update("gate_proj", expert, hidden_nD)
            up_nF = up_TF[rows] + self._update("up_proj", expert, hidden_nD)
            gated_nF = self.block.act_fn(gate_nF) * up_nF
            output_nD = self.block.down_proj(gated_nF) + self._update("down_proj", expert, gated_nF)
            output_nD = output_nD * gate_TK[rows, slots, None].to(output_nD.dtype)
            output_TD = output_TD.index_add(0, rows, output_nD)
        return output_TD

    def _update(self, name: str, expert: int, hidden: Tensor) -> Tensor:
        lora_A, lora_B = self.lora_A[name], self.lora_B[name]
        assert isinstance(lora_A, nn.ModuleList)
        assert isinstance(lora_B, nn.ModuleList)
        scale = self.spec.scale(hidden.shape[-1])
        update: Tensor = lora_B[expert](lora_A[expert](hidden)) * scale
        return update


def _linears(count: int, in_features: int, out_features: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(in_features, out_features, bias=False) for _ in range(count))


def contestants(sizes: Sizes, num_experts: int) -> dict[str, nn.Module]:
    """The three layers over blocks of equal weights, with trained (not zero) B matrices."""
    torch.manual_seed(0)
    base = GatedBlock(sizes)
    spec = AdapterSpec(
        num_experts=num_experts, top_k=sizes.top_k, rank=sizes.rank, alpha=16, dropout=0
    )
    view = find_feed_forward(base, dict(base.named_children()))
    assert isinstance(view, FeedForward)
    experts = BlockExperts(view, spec, NAMES)
    experts.reset_parameters(torch.Generator().manual_seed(0))
    for name, parameter in experts.named_parameters():
        if name.endswith("lora_B"):
            nn.init.normal_(parameter, std=0.02)
    loop = ExpertLoop(base, spec)
    _copy(experts, loop)
    twin = GatedBlock(sizes)
    twin.load_state_dict(base.state_dict())
    config = LoraConfig(r=num_experts * sizes.rank, lora_alpha=16, target_modules=list(NAMES))
    lora = inject_adapter_in_model(config, twin)
    rows = RowMap()
    rows.slots.append("default")
    module = AdaptedModule(base, rows, view)
    module.add("default", experts)
    return {"block": module, "lora": lora, "loop": loop}


@torch.no_grad()
def _copy(experts: BlockExperts, loop: ExpertLoop) -> None:
    loop.router.load_state_dict(experts.router.state_dict())
    for name in NAMES:
        for stacked, linears in (("lora_A", loop.lora_A[name]), ("lora_B", loop.lora_B[name])):
            assert isinstance(linears, nn.ModuleList)
            weights = experts.get_parameter(f"projections.{name}.{stacked}")
            for weight, linear in zip(weights, linears, strict=True):
                linear.weight.copy_(weight)


def measure(sizes: Sizes, num_experts: int) -> dict[str, float]:
    """Median CPU milliseconds of forward + backward, by contestant; block and loop must agree."""
    layers = contestants(sizes, num_experts)
    hidden_TD = torch.randn(sizes.tokens, sizes.width, requires_grad=True)
    grad_TD = torch.randn(sizes.tokens, sizes.width)
    torch.testing.assert_close(
        layers["block"](hidden_TD), layers["loop"](hidden_TD), atol=1e-4, rtol=1e-4
    )
    times: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(sizes.rounds + 2):
        for name, layer in layers.items():
            layer.zero_grad()
            hidden_TD.grad = None
            start = time.process_time()
            layer(hidden_TD).backward(grad_TD)
            times[name].append(1000 * (time.process_time() - start))
    return {name: statistics.median(taken[2:]) for name, taken in times.items()}


def peak_memory(sizes: Sizes, num_experts: int) -> dict[str, float]:
    """MiB that forward + backward hold at most, gradients included."""
    layers = contestants(sizes, num_experts)
    hidden_TD = torch.randn(sizes.tokens, sizes.width, requires_grad=True)
    grad_TD = torch.randn(sizes.tokens, sizes.width)

    def turn(layer: nn.Module) -> None:
        layer(hidden_TD).backward(grad_TD)

    return {name: peak_bytes(partial(turn, layer)) / 2**20 for name, layer in layers.items()}


def run(sizes: Sizes, experts: list[int], table: TextIO) -> dict[str, object]:
    """Time every number of experts; the ratios, keyed by E, and the sizes."""
    over_lora: dict[str, float] = {}
    over_block: dict[str, float] = {}
    columns = ("LoRA ms", "block ms", "loop ms", "block/LoRA", "loop/block")
    print(f"{'E':>3}", *(f"{column:>10}" for column in columns), file=table)
    for num_experts in experts:
        taken = measure(sizes, num_experts)
        lora, block, loop = taken["lora"], taken["block"], taken["loop"]
        over_lora[str(num_experts)] = round(block / lora, 3)
        over_block[str(num_experts)] = round(loop / block, 3)
        values = (f"{value:10.1f}" for value in (lora, block, loop))
        ratios = (f"{ratio:10.2f}" for ratio in (block / lora, loop / block))
        print(f"{num_experts:3}", *values, *ratios, file=table, flush=True)
    memory = peak_memory(replace(sizes, rank=16), num_experts=8)
    print(*(f"{name} {mib:.1f} MiB" for name, mib in memory.items()), "(E=8, R=16)", file=table)
    return {
        "block_over_lora": over_lora,
        "loop_over_block": over_block,
        "peak_memory_over_lora": round(memory["block"] / memory["lora"], 3),
        "sizes": asdict(sizes),
    }


def main() -> None:
    """Parse the arguments, print the table, and end with one line of JSON."""
    parser = harness.parser(__doc__, Sizes())
    parser.add_argument("--experts", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    options = vars(parser.parse_args())
    path, experts = options.pop("json"), options.pop("experts")
    torch.set_num_threads(1)
    harness.finish(run(Sizes(**options), experts, harness.output(path)), path)


if __name__ == "__main__":
    main()
