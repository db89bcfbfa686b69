"""A frozen feed-forward block, seen by structure: inner linears, combine, outer linear.

    y = after(outer(combine(inner_1(x), ...)))

Found among a module's own linears by their sizes, and proved by running the block itself, so that
gate and up, or the halves of a fused projection, are never confused.
Shapes: T tokens, D model width, F feed-forward width; `...` any leading dimensions.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import permutations, product

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.layers.ops.random_state import random_state_kept

Activation = Callable[[Tensor], Tensor]
Dropout = Callable[[Tensor], Tensor]
Combine = Callable[..., Tensor]


def linear_sizes(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear, or of transformers' Conv1D (weight [nx, nf]); else None."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    sizes = getattr(module, "nx", None), getattr(module, "nf", None)
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and tuple(weight.shape) == sizes:
        return int(weight.shape[0]), int(weight.shape[1])
    return None


def plain(act: Activation, first: Tensor) -> Tensor:
    """Ungated: act(fc1 x)."""
    return act(first)


def gated(act: Activation, gate: Tensor, up: Tensor) -> Tensor:
    """Gated: act(gate x) * up x."""
    return act(gate) * up


def fused_gate_first(act: Activation, both: Tensor) -> Tensor:
    """Gate and up in one projection, the gate in the first half."""
    gate, up = both.chunk(2, dim=-1)
    return act(gate) * up


def fused_gate_last(act: Activation, both: Tensor) -> Tensor:
    """Gate and up in one projection, the gate in the second half."""
    up, gate = both.chunk(2, dim=-1)
    return act(gate) * up


@dataclass(frozen=True)
class FeedForward:
    """The parts of a frozen block; it owns no weights."""

    inner: Mapping[str, nn.Module]
    """Linears that read the block's input, by name, in the order in which `form` takes them."""
    outer: tuple[str, nn.Module]
    """Name and module of the linear that writes the block's output."""
    form: Combine
    act: Activation
    after: tuple[Dropout, ...] = ()
    """The block's own dropout, behind the outer linear."""

    @property
    def linears(self) -> dict[str, nn.Module]:
        """Every linear of the block, by name."""
        return {**self.inner, self.outer[0]: self.outer[1]}

    @property
    def width(self) -> int:
        """Size D of the block's input."""
        return self.sizes(next(iter(self.inner)))[0]

    def sizes(self, name: str) -> tuple[int, int]:
        """(in, out) of the named linear."""
        sizes = linear_sizes(self.linears[name])
        assert sizes is not None
        return sizes

    def combine(self, *inner: Tensor) -> Tensor:
        """[..., F] from the inner linears' outputs."""
        return self.form(self.act, *inner)

    def leave(self, output_TD: Tensor) -> Tensor:
        """What the block does behind its outer linear."""
        for drop in self.after:
            output_TD = drop(output_TD)
        return output_TD

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """The frozen block put together from its parts."""
        inner = (linear(hidden_TD) for linear in self.inner.values())
        return self.leave(self.outer[1](self.combine(*inner)))


def find_feed_forward(block: nn.Module, children: Mapping[str, nn.Module]) -> FeedForward | None:
    """`block` as a FeedForward if its own forward proves it, else None.

    `children` are the block's direct children, without what adapters have wrapped around them.
    """
    views = list(_candidates(block, children))
    if not views:
        return None
    errors = [_distance(block, view) for view in views]
    best = min(range(len(views)), key=errors.__getitem__)
    tolerance = torch.finfo(_probe(block, 1).dtype).eps ** 0.5
    return views[best] if errors[best] <= tolerance else None


@torch.no_grad()
def is_linear(module: nn.Module) -> bool:
    """Whether a module with a linear's sizes computes as one: some routers are linears by class,
    and return several tensors."""
    if (sizes := linear_sizes(module)) is None or type(module).forward is nn.Linear.forward:
        return sizes is not None
    probe_TI = _probe(module, sizes[0])
    output = module(probe_TI)
    return isinstance(output, Tensor) and output.shape == (len(probe_TI), sizes[1])


def _probe(module: nn.Module, width: int) -> Tensor:
    """Random input, [8, width], on the module's device and in its precision.

    Packed weights have none that an input could have; linears that hold them take any.
    """
    weights = list(module.parameters())
    dtype = next((weight.dtype for weight in weights if weight.is_floating_point()), torch.float32)
    seeded = torch.Generator().manual_seed(0)
    return torch.randn(8, width, generator=seeded).to(weights[0].device, dtype)


def _candidates(block: nn.Module, children: Mapping[str, nn.Module]) -> Iterator[FeedForward]:
    """Every reading of the block that its sizes allow."""
    linears = {name: child for name, child in children.items() if linear_sizes(child)}
    rest = [child for name, child in children.items() if name not in linears]
    dropout = tuple(child for child in rest if isinstance(child, nn.Dropout))
    acts: list[Activation] = [child for child in rest if child not in dropout]
    acts += [value for value in vars(block).values() if callable(value)]
    acts = acts or [functional.silu, functional.gelu, functional.relu]  # Called as functions.
    after: list[tuple[Dropout, ...]] = [dropout, *_functional_dropout(block)]
    if len(linears) not in (2, 3):
        return
    for *inner, outer in permutations(linears):
        parts = {name: linears[name] for name in inner}
        for form in _forms([linear_sizes(part) for part in parts.values()], linears[outer]):
            for act, drops in product(acts, after):
                yield FeedForward(parts, (outer, linears[outer]), form, act, drops)


def _functional_dropout(block: nn.Module) -> Iterator[tuple[Dropout]]:
    """Dropout that is called as a function, with each rate that the block keeps."""

    def drop(rate: float, output: Tensor) -> Tensor:
        return functional.dropout(output, rate, block.training)

    for rate in vars(block).values():
        if isinstance(rate, float) and 0 < rate < 1:
            yield (partial(drop, rate),)


def _forms(inner: list[tuple[int, int] | None], outer: nn.Module) -> list[Combine]:
    width, model = linear_sizes(outer) or (0, 0)
    if inner == [(model, width)] * 2:
        return [gated]
    if inner == [(model, width)]:
        return [plain]
    if inner == [(model, 2 * width)]:
        return [fused_gate_first, fused_gate_last]
    return []


@torch.no_grad()
def _distance(block: nn.Module, view: FeedForward) -> float:
    """Largest relative distance of the view from the block, in eval and in train mode.

    In train mode both draw the same dropout. Inputs are scaled so that the activations see values
    of about 3, where gate and up differ.
    """
    probe_TD = _probe(block, view.width)
    first = next(iter(view.inner.values()))
    probe_TD = probe_TD * (3 / first(probe_TD).float().std().clamp(min=1e-6)).to(probe_TD)
    modes = {module: module.training for module in block.modules()}
    distances = []
    try:
        for training in (False, True):
            block.train(training)
            expected, got = (_seeded(run, probe_TD) for run in (block.forward, view.forward))
            if not isinstance(expected, Tensor) or not expected.any():
                return math.inf  # A block of zeros proves nothing.
            distances.append(float((got - expected).norm() / expected.norm()))
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return math.inf  # The block takes something else than one tensor of this width.
    finally:
        for module, mode in modes.items():
            module.training = mode
    return max(distances) if all(map(math.isfinite, distances)) else math.inf


def _seeded(run: Callable[[Tensor], Tensor], probe_TD: Tensor) -> Tensor:
    with random_state_kept(probe_TD.device):
        # torch.manual_seed seeds every device, and formats this stack for each kind of them.
        _generator(probe_TD.device).manual_seed(0)
        return run(probe_TD)


def _generator(device: torch.device) -> torch.Generator:
    """What dropout on a device draws from."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index]
    return torch.default_generator
