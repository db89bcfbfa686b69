"""Products of groups: torch's, a loop over them, and rank space spread over all experts agree."""

import pytest
import torch
from torch import Tensor

from workers.layers.assignments import ExpertAssignments
from workers.layers.ops.grouped_mm import Groups, grouped_mm, grouped_outer, has_kernel, waits

ENDS = {"some empty": [3, 3, 10, 12], "all but one": [0, 0, 0, 5], "no rows": [0, 0, 0, 0]}


def groups(ends: list[int], *, told: bool) -> Groups:
    return Groups(torch.tensor(ends, dtype=torch.int32), ends if told else None)


def loop(rows: Tensor, weight_NIO: Tensor, ends: list[int]) -> Tensor:
    experts = [sum(end <= place for end in ends) for place in range(len(rows))]
    return torch.stack([row @ weight_NIO[n] for row, n in zip(rows, experts, strict=True)])


@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("way", ["torch", "told", "spread"])
@pytest.mark.parametrize("sizes", [(8, 16), (16, 8)], ids=["expand", "project"])
def test_every_way_equals_a_loop(ends: list[int], way: str, sizes: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float32 if way == "torch" else torch.float64
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype)  # noqa: E731
    rows, other, weight = draw(ends[-1], sizes[0]), draw(ends[-1], sizes[1]), draw(4, *sizes)
    cut = groups(ends, told=way == "told")
    got, outer = grouped_mm(rows, weight, cut), grouped_outer(rows, other, cut)
    assert got.shape == (ends[-1], sizes[1])
    starts = [0, *ends]
    wanted = [rows[at:end].T @ other[at:end] for at, end in zip(starts, ends, strict=False)]
    torch.testing.assert_close(outer, torch.stack(wanted))
    if ends[-1]:
        torch.testing.assert_close(got, loop(rows, weight, ends))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_they_compile_whole_in_every_precision(dtype: torch.dtype) -> None:
    """torch itself traces bfloat16 alone. One group is empty."""
    draw = torch.Generator().manual_seed(0)
    rows_PI = torch.randn(37, 16, generator=draw, dtype=dtype, requires_grad=True)
    weight_NOI = torch.randn(3, 8, 16, generator=draw, dtype=dtype, requires_grad=True)
    end_N = torch.tensor([10, 10, 37], dtype=torch.int32)

    def both(rows_PI: Tensor, weight_NOI: Tensor, end_N: Tensor) -> tuple[Tensor, Tensor]:
        cut = Groups(end_N)
        output_PO = grouped_mm(rows_PI, weight_NOI.transpose(1, 2), cut)
        return output_PO, grouped_outer(rows_PI.detach(), output_PO.detach(), cut)

    found = []
    for run in (both, torch.compile(both, backend="aot_eager", fullgraph=True, dynamic=True)):
        output_PO, outer_NIO = run(rows_PI, weight_NOI, end_N)
        gradients = torch.autograd.grad(output_PO.square().sum(), (rows_PI, weight_NOI))
        found.append([output_PO.detach(), outer_NIO, *gradients])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_where_the_host_knows_the_ends_what_is_not_finite_stays_in_its_group() -> None:
    rows, weight = torch.ones(4, 8, dtype=torch.float64), torch.ones(2, 8, 16, dtype=torch.float64)
    rows[0], weight[0] = torch.nan, torch.inf
    got = grouped_mm(rows, weight, groups([2, 4], told=True))
    assert got[2:].isfinite().all()
    spread = grouped_mm(rows, weight, groups([2, 4], told=False))
    assert spread[2:].isnan().all(), "zero times infinity: not for several adapters' experts"


@pytest.mark.parametrize(
    ("capability", "there"),
    [((8, 0), False), ((8, 9), False), ((9, 0), True), ((10, 0), True), ((12, 0), False)],
)
def test_torch_has_a_kernel_on_hopper_and_blackwell(
    capability: tuple[int, int], there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    has_kernel.cache_clear()
    assert has_kernel(torch.device("cuda", 7)) == there
    has_kernel.cache_clear()


def test_the_host_asks_only_where_zeros_must_not_stand_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not waits(torch.zeros(1))
    assert waits(torch.zeros(1, device="meta"))
    assert not waits(torch.zeros(1, device="meta", dtype=torch.bfloat16))
    monkeypatch.setattr("workers.layers.assignments.waits", lambda _: True)
    expert_TK = torch.tensor([[1, 0], [1, 2]])
    for apart, spread, asks in ((False, True, False), (True, True, True), (False, False, True)):
        pairs = ExpertAssignments(expert_TK, torch.ones(2, 2), 3, apart=apart)
        pairs.__dict__["sorted"] = pairs.sorted._replace(ends=None)  # as on a GPU
        assert (pairs.sorted_for(expert_TK, spread).ends == [1, 3, 4]) == asks
        assert pairs.is_told == asks
