from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from workers.config.adapter import AdapterSpec
from workers.config.base import InputError
from workers.injection.adapter import Adapter
from workers.injection.inject import inject, row_map
from workers.injection.row_map import RowMap
from workers.injection.wrapper import AdaptedModule
from workers.layers.inference import prepared

SPECS = {
    "block@1": AdapterSpec(num_experts=4, top_k=2, rank=3),
    "linear.a": AdapterSpec(experts="linear", num_experts=3, top_k=1, rank=2, alpha=7),
    "keys": AdapterSpec(num_experts=1, top_k=1, rank=5, target_modules=("q_proj", "up_proj")),
}
MANY = {
    "two": AdapterSpec(num_experts=4, top_k=2, rank=3, dropout=0),
    "three": AdapterSpec(num_experts=6, top_k=3, rank=5, alpha=7, dropout=0),
    "gate": AdapterSpec(num_experts=2, top_k=1, target_modules=("gate_proj",), dropout=0),
    "down": AdapterSpec(num_experts=3, top_k=2, target_modules=("down_proj",), dropout=0),
    "dynamic": AdapterSpec(num_experts=3, rank=2, routing="top_p", dropout=0),
    "switch": AdapterSpec(num_experts=3, rank=2, routing="switch", expert_capacity=2, dropout=0),
    "dora": AdapterSpec(
        num_experts=2, use_dora=True, target_modules=("up_proj", "q_proj"), dropout=0
    ),
    "linear": AdapterSpec(experts="linear", num_experts=3, top_k=2, rank=2, shared_a=True),
}


def randomise(adapter: Adapter, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def attach(model: nn.Module, slots: list[str]) -> list[Adapter]:
    specs = SPECS | MANY
    adapters = [inject(model, specs[slot], slot=slot) for slot in slots]
    for slot, adapter in zip(slots, adapters, strict=True):
        randomise(adapter, list(specs).index(slot))
    return adapters


def ids(rows: int = 4, length: int = 7) -> Tensor:
    return torch.randint(3, 64, (rows, length), generator=torch.Generator().manual_seed(0))


def alone(build: Callable[[], nn.Module], slot: str | None) -> Tensor:
    """Logits of a fresh model with one adapter, or with none."""
    model = build().double()
    if slot is not None:
        attach(model, [slot])
        model.double()
    return model(ids()).logits


@pytest.fixture
def llama(build_model: Callable[[str], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: build_model("llama")


@pytest.mark.parametrize("order", [list(SPECS), list(SPECS)[::-1]])
def test_each_row_has_its_own_adapter(llama: Callable[[], nn.Module], order: list[str]) -> None:
    """Block, linear and plain adapters and the bare base in one batch, as each of them alone."""
    model = llama()
    attach(model, order)
    model.double()
    assigned = ["linear.a", None, "block@1", "keys"]
    with row_map(model).assign(assigned):
        logits = model(ids()).logits
    for row, slot in enumerate(assigned):
        torch.testing.assert_close(logits[row], alone(llama, slot)[row], atol=1e-10, rtol=1e-10)


def test_each_slot_has_the_gradients_of_its_rows_alone(llama: Callable[[], nn.Module]) -> None:
    model = llama()
    adapters = attach(model, ["block@1", "linear.a"])
    model.double()
    assigned = ["linear.a", "block@1", None, "linear.a"]
    with row_map(model).assign(assigned):
        model(ids()).logits.square().sum().backward()
    for adapter in adapters:
        single = llama()
        (reference,) = attach(single, [adapter.slot])
        single.double()
        chosen = [row for row, slot in enumerate(assigned) if slot == adapter.slot]
        single(ids()[chosen]).logits.square().sum().backward()
        expected = dict(reference.named_parameters())
        for name, parameter in adapter.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("few", [0, 10**9])
@pytest.mark.parametrize("training", [False, True])
def test_a_pack_of_many_shapes_equals_each_alone(
    llama: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch, few: int, training: bool
) -> None:
    """Experts, ranks, top-k, strategies and targets of their own: logits and gradients to 1e-10."""
    monkeypatch.setattr("workers.layers.mixture.select.PLAIN_PRODUCTS", few)
    slots = [slot for slot in MANY if slot != "linear" or not training]  # it has a dropout
    model = llama()
    adapters = attach(model, slots)
    model.double().train(training)
    assigned = [*slots, None, *slots[::-1]]
    with row_map(model).assign(assigned):
        logits = model(ids(len(assigned))).logits
        (logits * ids(len(assigned)).unsqueeze(-1)).sum().backward()
    for adapter in adapters:
        single = llama()
        (reference,) = attach(single, [adapter.slot])
        single.double().train(training)
        rows = [row for row, slot in enumerate(assigned) if slot == adapter.slot]
        inputs = ids(len(assigned))[rows]
        expected = single(inputs).logits
        torch.testing.assert_close(logits[rows], expected, atol=1e-10, rtol=1e-10)
        (expected * inputs.unsqueeze(-1)).sum().backward()
        wanted = dict(reference.named_parameters())
        for name, parameter in adapter.named_parameters():
            torch.testing.assert_close(
                parameter.grad, wanted[name].grad, atol=1e-10, rtol=1e-10, msg=name
            )


def test_a_decoding_step_of_several_adapters(llama: Callable[[], nn.Module]) -> None:
    """The short way, twice so that the second finds what the first prepared, and after a change."""
    model = llama()
    adapters = attach(model, ["two", "three", "dynamic"])
    model.double()
    assigned = ["three", None, "two", "dynamic", "two"]
    with row_map(model).assign(assigned):
        for _ in range(2):
            for _ in range(2):
                with torch.inference_mode():
                    got = model(ids(5)[:, :1]).logits
                torch.testing.assert_close(got, model(ids(5)[:, :1]).logits, atol=1e-10, rtol=0)
            randomise(adapters[0], 9)


@pytest.mark.parametrize("slots", [["two", "three"], ["two", "dynamic"], ["switch", "three"]])
def test_prompts_of_several_adapters(
    llama: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch, slots: list[str]
) -> None:
    """Pairs sorted by expert, in one chunk and in many; what is put together serves all passes."""
    model = llama()
    attach(model, slots)
    model.double()
    # No pass is a decoding step.
    monkeypatch.setattr("workers.layers.inference.prepared.PLAIN_PRODUCTS", 1)
    made = []
    join = prepared.join
    monkeypatch.setattr(
        prepared, "join", lambda banks, void: made.append(banks) or join(banks, void)
    )
    joined = set()
    for length in (1, 7, 40):
        monkeypatch.setattr(
            "workers.layers.inference.prefill.CHUNK_BYTES", 1 if length == 7 else 2**23
        )
        monkeypatch.setattr("workers.layers.inference.prefill.CHUNK_TOKENS", 6)
        with row_map(model).assign([*slots, None, slots[0]]):
            with torch.inference_mode():
                got = model(ids(4, length)).logits
            torch.testing.assert_close(got, model(ids(4, length)).logits, atol=1e-10, rtol=0)
        joined.add(len(made))
    assert len(joined) == 1


def test_contiguous_rows_and_what_each_records(llama: Callable[[], nn.Module]) -> None:
    model = llama()
    adapters = attach(model, ["two", "dynamic"])
    model.double()
    mask_BS = torch.ones(4, 7, dtype=torch.bool)
    mask_BS[0, 5:] = mask_BS[3, 2:] = False
    with (
        row_map(model).assign(["two", "two", "dynamic", "dynamic"]),
        adapters[0].record(mask_BS) as first,
        adapters[1].record(mask_BS) as second,
    ):
        model(ids())
    for records, rows, slots, rank in ((first, [0, 1], 2, 3), (second, [2, 3], 3, 2)):
        assert [record.layer for record in records] == ["layers.0.mlp", "layers.1.mlp"]
        for record in records:
            assert record.routing.expert_TK.shape == (14, slots)
            assert torch.equal(record.mask_T, mask_BS[rows].flatten())
            assert [term.shape[:2] for term in record.rank_space] == [(14, slots)] * 2
            assert not any(term[..., rank:].any() for term in record.rank_space)


def test_dropout_of_one_adapter_leaves_the_others_alone(llama: Callable[[], nn.Module]) -> None:
    model = llama()
    attach(model, ["two", "block@1", "keys"])  # rates 0, 0.05, 0.05
    model.train()
    with row_map(model).assign(["two", "block@1", "keys", "two"]):
        one, other = model(ids()).logits, model(ids()).logits
    assert torch.equal(one[[0, 3]], other[[0, 3]])
    assert not torch.equal(one[1], other[1])
    assert not torch.equal(one[2], other[2])


def test_tokens_of_a_packed_batch(llama: Callable[[], nn.Module]) -> None:
    """An adapted module maps the tokens of a [1, T] batch one by one."""
    model = llama().double()
    attach(model, ["block@1", "linear.a"])
    model.double()
    module = model.get_submodule("model.layers.0.mlp")
    hidden = torch.randn(1, 5, 32, dtype=torch.float64)
    assigned = ["block@1", "linear.a", None, "block@1", "linear.a"]
    with row_map(model).assign(assigned):
        packed = module(hidden)
    assert packed.shape == hidden.shape
    for token, slot in enumerate(assigned):
        with row_map(model).everywhere(slot):
            torch.testing.assert_close(packed[:, token], module(hidden[:, token]))


def test_inputs_with_and_without_a_batch_dimension(llama: Callable[[], nn.Module]) -> None:
    model = llama()
    attach(model, ["block@1"])
    hidden = torch.randn(2, 3, 32)
    for path in ("mlp", "self_attn.q_proj"):
        module = model.get_submodule(f"model.layers.0.{path}")
        flat = module(hidden.view(6, 32))
        torch.testing.assert_close(module(hidden), flat.view(2, 3, -1))
        torch.testing.assert_close(module(hidden.view(1, 6, 32))[0], flat)


def test_everywhere_and_nesting(llama: Callable[[], nn.Module]) -> None:
    model = llama()
    attach(model, ["block@1", "keys"])
    model.double()
    rows = row_map(model)
    with rows.everywhere("keys"):
        with rows.everywhere(None):
            torch.testing.assert_close(model(ids()).logits, alone(llama, None))
        torch.testing.assert_close(model(ids()).logits, alone(llama, "keys"))
    rows.set(["block@1"] * 4)
    torch.testing.assert_close(model(ids()).logits, alone(llama, "block@1"))
    rows.clear()


def test_what_is_ambiguous_or_does_not_fit_is_refused(llama: Callable[[], nn.Module]) -> None:
    model = llama()
    attach(model, ["block@1", "keys"])
    rows = row_map(model)
    with pytest.raises(InputError, match="say which rows are whose"):
        model(ids())
    with pytest.raises(InputError, match="no adapter in slot 'other'"), rows.assign(["other"]):
        pass
    with (
        rows.assign(["keys", "block@1", None]),
        pytest.raises(InputError, match="3 rows, the batch 28 tokens"),
    ):
        model(ids())
    with pytest.raises(InputError, match="no adapter in slot"):
        rows.set(["block@1", "gone"])


def test_an_assignment_ends_with_its_block_even_on_an_error() -> None:
    rows = RowMap()
    rows.slots.append("one")
    with pytest.raises(ZeroDivisionError), rows.assign([None]):
        raise ZeroDivisionError
    assert rows.only() == "one"


def test_a_site_shows_the_weight_of_its_base() -> None:
    linear = nn.Linear(3, 4)
    assert AdaptedModule(linear, RowMap()).weight is linear.weight


@pytest.mark.parametrize("other", ["linear", None])
def test_switch_counts_each_sequence_beside_adapters_within_the_block(
    llama: Callable[[], nn.Module], other: str | None
) -> None:
    """Rows part into those with block experts and the others, and stay sequences."""
    model = llama()
    attach(model, ["switch", "linear"])
    model.double().train()
    with row_map(model).assign(["switch", other, "switch", "switch"]):
        packed = model(ids()).logits[[0, 2, 3]]
    single = llama()
    attach(single, ["switch"])
    single.double().train()
    torch.testing.assert_close(packed, single(ids()[[0, 2, 3]]).logits, atol=1e-10, rtol=1e-10)


def test_training_after_an_evaluation_of_the_same_rows(llama: Callable[[], nn.Module]) -> None:
    model = llama()
    adapters = attach(model, ["two", "three"])
    with row_map(model).assign(["two", None, "three", "two"]):
        with torch.inference_mode():
            before = model(ids()).logits
        after = model(ids()).logits
        after.sum().backward()
    torch.testing.assert_close(before, after.detach())
    assert all(p.grad is not None for adapter in adapters for p in adapter.parameters())


@pytest.mark.parametrize("shape", [(0, 32), (0, 7, 32), (4, 0, 32)])
def test_an_empty_batch(llama: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    """As an expert of a mixture of experts may get it."""
    model = llama()
    attach(model, ["two", "linear"])
    for path in ("mlp", "self_attn.q_proj"):
        module = model.get_submodule(f"model.layers.0.{path}")
        for slot in ("two", "linear"):
            with row_map(model).everywhere(slot):
                assert module(torch.zeros(shape)).shape == shape
                with torch.no_grad():
                    assert module(torch.zeros(shape)).shape == shape
    if shape[0]:
        with row_map(model).assign(["two", "linear"] * 2):
            assert model.get_submodule("model.layers.0.mlp")(torch.zeros(shape)).shape == shape


def test_each_adapter_records_the_terms_of_its_own_projections(
    llama: Callable[[], nn.Module],
) -> None:
    """What the contrastive loss compares must not depend on who shares the batch."""
    slots = ["two", "gate", "down"]
    model = llama()
    adapters = attach(model, slots)
    model.double()
    assigned = ["down", "two", "gate", "two"]
    for adapter in adapters:
        with row_map(model).assign(assigned), adapter.record() as packed:
            model(ids())
        single = llama()
        (reference,) = attach(single, [adapter.slot])
        single.double()
        with reference.record() as expected:
            single(ids()[[row for row, slot in enumerate(assigned) if slot == adapter.slot]])
        for one, other in zip(packed, expected, strict=True):
            terms = tuple(term[..., : adapter.spec.rank] for term in one.rank_space)
            torch.testing.assert_close(terms, other.rank_space, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("mixed", [False, True])
def test_decoding_follows_weights_that_training_changed_without_a_trace(
    llama: Callable[[], nn.Module], mixed: bool
) -> None:
    """As optimizers that write to `data` do: neither address nor version of a weight changes."""
    model = llama()
    adapters = attach(model, ["two", "three"])
    rows, few = row_map(model), ids(2, 3)

    def decode() -> list[Tensor]:
        with torch.no_grad():
            logits = []
            for slots in (["two"] * 2, ["two", "three"]):
                with rows.assign(slots):
                    logits.append(model(few).logits)
            return logits

    before = decode()
    model.train()
    with rows.assign(["two", "three"] if mixed else ["two", "two"]):
        model(few).logits.sum().backward()
    for parameter in adapters[0].parameters():
        parameter.data.mul_(1.5)
    model.eval()
    for old, new, slots in zip(before, decode(), (["two"] * 2, ["two", "three"]), strict=True):
        assert not torch.allclose(old, new)
        with rows.assign(slots):
            torch.testing.assert_close(new, model(few).logits.detach())
