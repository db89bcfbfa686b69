"""The fused kernels against a plain float64 loop: outputs and every gradient, fresh random data.

`test_mixture.py` runs this file in a process of its own, in Triton's interpreter where there is no
GPU: Triton reads its environment once, when it is imported.

Shapes: T tokens, F feed-forward width, E experts, K slots, R and Q the ranks of inner and outer.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.config.adapter import AdapterSpec
from workers.layers.experts import BlockExperts
from workers.layers.feed_forward import FeedForward, gated
from workers.layers.feed_forward import fused_gate_first as gate_first
from workers.layers.feed_forward import fused_gate_last as gate_last
from workers.layers.feed_forward import plain as plain_form
from workers.layers.kernels.mixture import Dropped, fused_mixture
from workers.layers.kernels.support import launches, supports

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
}
ALL = ("gate", "up", "outer")
Tensors = dict[str, Tensor | None]


@dataclass(frozen=True)
class Case:
    """One call's sizes and options."""

    T: int = 9
    F: int = 28
    E: int = 4
    R: int = 8
    K: int = 2
    Q: int = 0
    """0: as R."""
    dtype: torch.dtype = torch.float32
    act: str = "silu"
    adapted: tuple[str, ...] = ALL
    gated: bool = True
    routing: str = "random"


def tensors(case: Case) -> tuple[Tensor, Tensors]:
    """expert_TK and, by name, what a gradient flows to."""
    T, F, E, R, K, Q = case.T, case.F, case.E, case.R, case.K, case.Q or case.R
    expert_TK = torch.stack([torch.randperm(E)[:K] for _ in range(T)])
    weight_TK = torch.rand(T, K)
    made: Tensors = {
        "gate": torch.randn(T, F),
        "up": torch.randn(T, F) if case.gated else None,
        "weight": weight_TK,
    }
    if case.routing == "skewed":  # One expert takes all first slots; some experts get nothing.
        expert_TK = expert_TK.clamp(max=1)
        expert_TK[:, 0] = 2
    if case.routing == "void":
        expert_TK[torch.rand(T, K) < 0.4] = E
        weight_TK[torch.rand(T, K) < 0.4] = 0
    real_TK1 = (expert_TK < E).unsqueeze(-1)
    for name in ("gate", "up"):
        if name in case.adapted:
            made[f"z_{name}"] = torch.randn(T, K, R) / R**0.5 * real_TK1
            made[f"b_{name}"] = torch.randn(E, F, R)
    if "outer" in case.adapted:
        made["a"] = torch.randn(E, Q, F) / F**0.5
    typed = {
        name: None
        if made.get(name) is None
        else made[name].to(DEVICE, torch.float32 if name == "weight" else case.dtype)
        for name in ("gate", "up", "z_gate", "z_up", "weight", "b_gate", "b_up", "a")
    }
    return expert_TK.to(DEVICE), typed


def fused(case: Case, expert_TK: Tensor, given: Tensors, keep: Dropped | None) -> list[Tensor]:
    count = 2 if case.gated else 1
    outputs = fused_mixture(
        (given["gate"], given["up"])[:count],
        (given["z_gate"], given["z_up"])[:count],
        expert_TK,
        given["weight"],
        (given["b_gate"], given["b_up"])[:count],
        given["a"],
        case.act,
        keep,
    )
    return [output for output in outputs if output is not None]


def plain(case: Case, expert_TK: Tensor, given: Tensors, mask_TF: Tensor | None) -> list[Tensor]:
    """Token by token, slot by slot, in float64."""
    mix, rows = [], []
    for t in range(case.T):
        slots, z_out = [], []
        for k in range(case.K):
            e = int(expert_TK[t, k])
            g, u = (None if given[name] is None else given[name][t] for name in ("gate", "up"))
            if given["b_gate"] is not None and e < case.E:
                g = g + given["b_gate"][e] @ given["z_gate"][t, k]
            if given["b_up"] is not None and e < case.E:
                u = u + given["b_up"][e] @ given["z_up"][t, k]
            h = ACTIVATIONS[case.act](g) * (1 if u is None else u)
            slots.append(given["weight"][t, k] * h)
            if given["a"] is not None:
                kept = h if mask_TF is None else h * mask_TF[t]
                z_out.append(given["a"][e] @ kept if e < case.E else 0 * given["a"][0, :, 0])
        mix.append(sum(slots))
        rows.append(torch.stack(z_out) if z_out else None)
    return [torch.stack(mix)] + ([] if rows[0] is None else [torch.stack(rows)])


def compare(case: Case, keep: Dropped | None = None, mask_TF: Tensor | None = None) -> None:
    """Outputs and all gradients within the type's relative error."""
    expert_TK, given = tensors(case)
    leaves = {n: None if t is None else t.requires_grad_() for n, t in given.items()}
    exact = {
        n: None if t is None else t.detach().double().requires_grad_() for n, t in given.items()
    }
    outputs = fused(case, expert_TK, leaves, keep)
    expected = plain(case, expert_TK, exact, mask_TF)
    arriving = [torch.randn_like(output) for output in outputs]
    inputs = [[t for t in tree.values() if t is not None] for tree in (leaves, exact)]
    grads = torch.autograd.grad(outputs, inputs[0], arriving)
    expected_grads = torch.autograd.grad(
        expected, inputs[1], [one.double() for one in arriving], materialize_grads=True
    )
    names = ["mix", "z_out"][: len(outputs)] + [n for n, t in given.items() if t is not None]
    results = zip(names, (*outputs, *grads), (*expected, *expected_grads), strict=True)
    for name, got, want in results:
        assert got.shape == want.shape
        error = float((got.detach().double() - want.detach()).norm())
        assert error <= LIMITS[case.dtype] * float(want.detach().norm()), name


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch.seed()


SMALL = Case()
CASES = {
    "several tiles": replace(SMALL, T=17, F=36, E=2, K=1),
    "several tiles in several shares": replace(SMALL, T=5, F=100, E=2, K=1),
    "one token": replace(SMALL, T=1, K=3, R=4),
    "rank 12, gelu": replace(SMALL, R=12, E=5, K=3, act="gelu"),
    "outer rank of its own": replace(SMALL, Q=17, R=5),
    "rank 64": replace(SMALL, R=64, E=3),
    "eight slots": replace(SMALL, T=3, E=9, K=8, R=4),
    "skewed": replace(SMALL, routing="skewed"),
    "void and weightless slots": replace(SMALL, T=14, E=3, routing="void"),
    "one expert": replace(SMALL, E=1, K=1),
    "gelu_tanh, ungated": replace(SMALL, act="gelu_tanh", gated=False, adapted=("gate", "outer")),
    "relu, ungated, no outer": replace(SMALL, act="relu", gated=False, adapted=("gate",)),
    "ungated, outer only": replace(SMALL, T=5, gated=False, adapted=("outer",)),
    "gate only": replace(SMALL, T=5, adapted=("gate",)),
    "up only": replace(SMALL, T=5, adapted=("up",)),
    "outer only": replace(SMALL, T=5, adapted=("outer",)),
    "nothing adapted": replace(SMALL, T=5, adapted=()),
    "bfloat16": replace(SMALL, T=70, E=3, dtype=torch.bfloat16),
    "bfloat16, rank 64": replace(SMALL, dtype=torch.bfloat16, R=64, E=3),
    "bfloat16, ungated": replace(
        SMALL, dtype=torch.bfloat16, act="gelu", gated=False, adapted=("gate", "outer")
    ),
    "float16": replace(SMALL, dtype=torch.float16),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_the_plain_loop(case: Case) -> None:
    compare(case)


def dropout_mask(keep: Dropped, T: int, F: int) -> Tensor:
    """The mask as the layer shows it: the identity as A on activations of one."""
    ones_TF = torch.ones(T, F, device=DEVICE)
    eye_1FF = torch.eye(F, device=DEVICE).unsqueeze(0)
    expert_T2 = torch.zeros(T, 2, dtype=torch.int64, device=DEVICE)
    weight_T2 = torch.rand(T, 2, device=DEVICE)
    _, z_out_T2F = fused_mixture(
        (ones_TF,), (None,), expert_T2, weight_T2, (None,), eye_1FF, "relu", keep
    )
    assert z_out_T2F is not None
    assert torch.equal(z_out_T2F[:, 0], z_out_T2F[:, 1])  # One mask for all slots of a token.
    return z_out_T2F[:, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_is_one_mask_forward_and_backward(dtype: torch.dtype) -> None:
    case = replace(SMALL, dtype=dtype)
    keep = Dropped.draw(0.3)
    compare(case, keep, dropout_mask(keep, case.T, case.F))


def test_dropout_keeps_its_rate_and_its_mean() -> None:
    T, F = 32, 64
    first_TF, second_TF = (dropout_mask(Dropped(0.25, seed), T, F) for seed in (3, 4))
    assert set(first_TF.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    for mask_TF in (first_TF, second_TF, first_TF.T.contiguous()):
        assert abs(float(mask_TF.mean()) - 1) < 5 * (1 / 3 / (T * F)) ** 0.5
    both = float(((first_TF > 0) & (second_TF > 0)).float().mean())
    assert abs(both - 0.75**2) < 0.06
    neighbours = float(((first_TF[:, 1:] > 0) & (first_TF[:, :-1] > 0)).float().mean())
    assert abs(neighbours - 0.75**2) < 0.06
    assert torch.equal(first_TF, dropout_mask(Dropped(0.25, 3), T, F))


def test_seeds_follow_torch() -> None:
    torch.manual_seed(7)
    first = Dropped.draw(0.1)
    assert Dropped.draw(0.1) != first
    torch.manual_seed(7)
    assert Dropped.draw(0.1) == first


def test_halves_of_a_fused_projection_and_expanded_gradients() -> None:
    expert_TK, given = tensors(SMALL)
    both_TG = torch.cat([given["gate"], given["up"]], 1).requires_grad_()
    halves = dict(zip(("gate", "up"), both_TG.chunk(2, 1), strict=True))
    exact = {n: None if t is None else t.double() for n, t in given.items()}
    exact_TG = both_TG.detach().double().requires_grad_()
    exact |= dict(zip(("gate", "up"), exact_TG.chunk(2, 1), strict=True))
    for got, want in zip(
        fused(SMALL, expert_TK, given | halves, None),
        plain(SMALL, expert_TK, exact, None),
        strict=True,
    ):
        got.sum().backward(retain_graph=True)
        want.sum().backward(retain_graph=True)
        torch.testing.assert_close(both_TG.grad.double(), exact_TG.grad, rtol=1e-4, atol=1e-5)


def test_runs_only_the_kernels_that_somebody_needs() -> None:
    expert_TK, given = tensors(SMALL)
    matrices = {n: given[n].requires_grad_() for n in ("b_gate", "b_up", "a")}
    mix_TF, z_out_TKQ = fused(SMALL, expert_TK, given | matrices, None)
    (mix_TF.sum() + z_out_TKQ.sum()).backward()
    assert all(matrix.grad is not None for matrix in matrices.values())
    assert given["gate"].grad is None


def test_the_same_bits_on_every_run() -> None:
    expert_TK, given = tensors(SMALL)
    leaves = {n: t.requires_grad_() for n, t in given.items()}
    runs = []
    for _ in range(2):
        outputs = fused(SMALL, expert_TK, leaves, None)
        ones = [torch.ones_like(output) for output in outputs]
        runs.append((*outputs, *torch.autograd.grad(outputs, list(leaves.values()), ones)))
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


FORMS = {"plain": plain_form, "gated": gated, "gate first": gate_first, "gate last": gate_last}


@pytest.mark.parametrize("form", FORMS)
def test_the_layer_computes_as_on_its_eager_path(form: str) -> None:
    torch.manual_seed(0)
    D, F = 12, 20
    sizes = {"plain": [F], "gated": [F, F]}.get(form, [2 * F])
    inner = {f"in_{place}": nn.Linear(D, size) for place, size in enumerate(sizes)}
    block = FeedForward(inner, ("out", nn.Linear(F, D)), FORMS[form], nn.GELU())
    spec = AdapterSpec(num_experts=3, routing="top_p", rank=4, alpha=8, dropout=0)
    experts = BlockExperts(block, spec, list(block.linears))
    for parameter in experts.parameters():
        nn.init.normal_(parameter)
    for linear in block.linears.values():
        linear.to(DEVICE).requires_grad_(False)
    hidden_TD = torch.randn(7, D, device=DEVICE, requires_grad=True)
    assert supports(hidden_TD, 3, spec.rank, spec.num_experts, "gelu")
    leaves, results = [hidden_TD, *experts.to(DEVICE).parameters()], []
    for fused_or_not in (True, False):
        experts.fused = fused_or_not
        output_TD = experts(block, hidden_TD)
        results.append((output_TD, *torch.autograd.grad(output_TD.square().sum(), leaves)))
    for got, want in zip(*results, strict=True):
        # Each of the two is within 1e-5 of float64.
        assert float((got - want).detach().norm()) <= 2e-5 * float(want.detach().norm())


@pytest.mark.parametrize("flaw", [torch.inf, torch.nan])
@pytest.mark.parametrize("gated", [True, False])
def test_experts_that_are_not_finite_reach_nobody_else(gated: bool, flaw: float) -> None:
    """Every other token is another adapter's, whose two experts and rank space are broken."""
    case = replace(SMALL, T=12, E=4, gated=gated, adapted=ALL if gated else ("gate", "outer"))
    _, given = tensors(case)
    broken_T = torch.arange(case.T, device=DEVICE) % 2
    expert_TK = torch.stack([2 * broken_T, 2 * broken_T + 1], dim=1)
    expert_TK[3, 0] = expert_TK[4, 1] = case.E  # void
    rows = ("gate", "up", "weight", "z_gate", "z_up")
    for name in ("z_gate", "z_up", "b_gate", "b_up", "a"):
        if given[name] is not None:
            given[name][broken_T == 1 if name in rows else slice(2, None)] = flaw

    def run(token_t: Tensor, experts: int) -> list[Tensor]:
        parts = {
            n: None if t is None else (t[token_t] if n in rows else t[:experts]).requires_grad_()
            for n, t in given.items()
        }
        expert_tK = expert_TK[token_t]
        outputs = fused(case, expert_tK.where(expert_tK < experts, experts), parts, None)
        leaves = [one for one in parts.values() if one is not None]
        return [*outputs, *torch.autograd.grad(sum(one.sum() for one in outputs), leaves)]

    sound_t = (broken_T == 0).nonzero().squeeze(1)
    together = run(torch.arange(case.T, device=DEVICE), case.E)
    for got, want in zip(together, run(sound_t, 2), strict=True):
        assert want.isfinite().all()
        torch.testing.assert_close(got[:2] if len(got) == case.E else got[sound_t], want)


def test_no_tokens() -> None:
    expert_TK, given = (tensors(replace(SMALL, T=1))[0][:0], tensors(replace(SMALL, T=1))[1])
    rows = ("gate", "up", "z_gate", "z_up", "weight")
    empty = {n: (t[:0] if n in rows else t).detach().requires_grad_() for n, t in given.items()}
    outputs = fused(SMALL, expert_TK, empty, None)
    assert [output.shape for output in outputs] == [(0, SMALL.F), (0, SMALL.K, SMALL.R)]
    grads = torch.autograd.grad(sum(output.sum() for output in outputs), list(empty.values()))
    assert not any(grad.any() for grad in grads)


def test_keeps_only_its_inputs() -> None:
    expert_TK, given = tensors(SMALL)
    leaves = {n: t.requires_grad_() for n, t in given.items()}
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, id):
        fused(SMALL, expert_TK, leaves, None)
    sizes = [t.numel() for t in leaves.values()] + [expert_TK.numel(), SMALL.T]
    assert sorted(saved) == sorted(sizes)


def test_supports_what_it_computes() -> None:
    hidden_TF = torch.zeros(2, 32, device=DEVICE)
    assert supports(hidden_TF, 8, 64, 8, "silu")
    assert supports(hidden_TF.bfloat16(), 8, 4, 1, "relu")
    assert not supports(hidden_TF.double(), 8, 4, 1, "relu")
    assert not supports(hidden_TF, 8, 65, 1, "relu")
    assert not supports(hidden_TF, 8, 4, 9, "relu")
    assert not supports(hidden_TF, 8, 4, 1, None)
    many_TF = torch.empty(1, 1, device=DEVICE, dtype=torch.bfloat16).expand(8192, 14336)
    assert supports(many_TF, 8, 16, 2, "silu")
    assert not supports(many_TF, 64, 16, 8, "silu"), "a tile meets nearly all experts"


def test_where_triton_cannot_run_a_warning_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler.\nSet CC.")

    hidden_TF = torch.zeros(2, 32, device=DEVICE)
    assert launches(hidden_TF.device)
    launches.cache_clear()
    monkeypatch.setattr("workers.layers.kernels.mixture.launch_forward", broken)
    try:
        with pytest.warns(UserWarning, match=r"\(RuntimeError: Failed to find C compiler\.\)"):
            assert not supports(hidden_TF, 8, 4, 1, "relu")
        with warnings.catch_warnings(action="error"):
            assert not supports(hidden_TF, 8, 4, 1, "relu")
    finally:
        launches.cache_clear()
