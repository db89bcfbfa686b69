"""What the tests of the routers share: a router, its inputs, and each strategy in plain Python,
token by token, in float64.

Shapes: T tokens, D width, E experts, K slots.
"""

import itertools

import torch
from torch import Tensor

from workers.config.adapter import AdapterSpec
from workers.layers.routing.base import Router, Routing, build_router

DIM, EXPERTS = 6, 5
STRATEGIES = ("top_k", "top_p", "switch")
FORMS = ("renormalised", "equal", "residual", "raw")
ALL = [
    {"routing": routing, "gates": gates} for routing, gates in itertools.product(STRATEGIES, FORMS)
]
TOGETHER = [fields for fields in ALL if fields["gates"] != "raw"]


def router(seed: int = 0, **fields: object) -> Router:
    values = {"num_experts": EXPERTS, "router_init_std": 0.5, **fields}
    layer = build_router(DIM, EXPERTS, AdapterSpec.model_validate(values))
    layer.reset_parameters(torch.Generator().manual_seed(seed))
    return layer


def hidden(tokens: int = 12) -> Tensor:
    return torch.randn(
        tokens, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(7)
    ).requires_grad_()


def by_hand(layer: Router, hidden_D: Tensor, overflows: bool = False) -> dict[int, Tensor]:
    """Weight of each expert that one token is sent to, and of the void (EXPERTS), if any."""
    spec = layer.spec
    exponents = [torch.exp(row @ hidden_D / spec.router_temperature) for row in layer.weight]
    probs = [value / torch.stack(exponents).sum() for value in exponents]
    order = sorted(range(EXPERTS), key=lambda expert: -probs[expert].item())
    if spec.routing == "top_p":
        taken: list[int] = []
        while len(taken) < EXPERTS and sum(probs[e].item() for e in taken) <= spec.top_p:
            taken.append(order[len(taken)])
    else:
        taken = order[: spec.top_k if spec.routing == "top_k" else 1]
    total = torch.stack([probs[expert] for expert in taken]).sum()
    if overflows:
        return {EXPERTS: torch.ones_like(total)}
    if spec.gate_form == "renormalised":
        return {expert: probs[expert] / total for expert in taken}
    if spec.gate_form == "equal":  # with the gradient of the renormalised ones
        shares = {expert: probs[expert] / total for expert in taken}
        return {e: 1 / len(taken) + (share - share.detach()) for e, share in shares.items()}
    weights = {expert: probs[expert] * spec.gate_scale for expert in taken}
    return weights | ({EXPERTS: 1 - total} if spec.gate_form == "residual" else {})


def weights(routing: Routing) -> Tensor:
    """Weight of each expert, and of the void in the last column."""
    shape = (len(routing.gate_TK), EXPERTS + 1)
    zeros = torch.zeros(shape, dtype=routing.gate_TK.dtype)
    return zeros.scatter_add(1, routing.expert_TK, routing.gate_TK)


def as_rows(by_token: list[dict[int, Tensor]]) -> Tensor:
    zero = torch.zeros((), dtype=torch.float64)
    return torch.stack(
        [torch.stack([token.get(e, zero) for e in range(EXPERTS + 1)]) for token in by_token]
    )


def compare(layer: Router, routing: Routing, inputs: Tensor, overflows: list[bool]) -> None:
    """Weights, and what flows back through them."""
    expected = as_rows([by_hand(layer, *pair) for pair in zip(inputs, overflows, strict=True)])
    torch.testing.assert_close(weights(routing), expected, atol=1e-12, rtol=0)
    pull = torch.randn(expected.shape, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((rows * pull).sum(), [layer.weight, inputs], retain_graph=True)
        for rows in (weights(routing), expected)
    ]
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-10, rtol=0)
