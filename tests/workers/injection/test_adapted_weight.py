"""Copies of the embedding and of the output head, against models whose own weights these are."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from workers.config.adapter import AdapterSpec
from workers.config.base import InputError
from workers.injection.adapter import Adapter
from workers.injection.inject import inject, row_map

Build = Callable[..., nn.Module]
BOTH = ("embed_tokens", "lm_head")
PLAIN = {"num_experts": 1, "top_k": 1, "rank": 2, "dropout": 0.0, "target_modules": ["q_proj"]}


def ids(rows: int = 4, length: int = 6) -> Tensor:
    return torch.randint(3, 64, (rows, length), generator=torch.Generator().manual_seed(0))


def spec(*names: str) -> AdapterSpec:
    return AdapterSpec.model_validate({**PLAIN, "train_also": names})


def moved(adapter: Adapter, seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return adapter


def names(adapter: Adapter) -> list[str]:
    return [name for name, _ in adapter.named_parameters() if not name.startswith("layers.")]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_they_learn_as_the_weights_themselves_would(
    family: str, tied: bool, build_model: Build
) -> None:
    model = build_model(family, tie_word_embeddings=tied).double()
    plain = build_model(family, tie_word_embeddings=tied).double()
    modules = dict(model.named_modules())
    bare = model(ids()).logits
    adapter = inject(model, spec(*BOTH))
    assert names(adapter) == (["embed_tokens.weight"] if tied else [f"{n}.weight" for n in BOTH])
    assert torch.equal(model(ids()).logits, bare), "a fresh one changes nothing"
    model(ids(), labels=ids()).loss.backward()
    plain(ids(), labels=ids()).loss.backward()
    own = {
        "embed_tokens.weight": plain.get_input_embeddings().weight,
        "lm_head.weight": plain.get_output_embeddings().weight,
    }
    for name, parameter in adapter.named_parameters():
        if name in own:
            torch.testing.assert_close(parameter.grad, own[name].grad, atol=1e-10, rtol=1e-10)
    trained = {id(one) for one in model.parameters() if one.grad is not None}
    assert trained == {id(one) for one in adapter.parameters()}
    adapter.remove()
    assert dict(model.named_modules()) == modules
    assert torch.equal(model(ids()).logits, bare)


def test_rows_of_a_mixed_batch_meet_their_own(build_model: Build) -> None:
    model = build_model("llama").double()
    slots = [None, "a", "b", "c"]
    chosen = {"a": BOTH, "b": ("lm_head",), "c": ()}
    for number, (slot, named) in enumerate(chosen.items()):
        moved(inject(model, spec(*named), slot=slot), number)
    rows = row_map(model)
    alone = []
    for slot in slots:
        with rows.everywhere(slot):
            alone.append(model(ids()).logits)
    with rows.assign(slots):
        together = model(ids()).logits
    for row, logits in enumerate(alone):
        torch.testing.assert_close(together[row], logits[row], atol=1e-12, rtol=1e-12)
    assert all((alone[row] - alone[0])[row].abs().max() > 0.01 for row in (1, 2, 3))


def test_a_head_that_sees_some_tokens_only(build_model: Build) -> None:
    """As continuous batching asks it: of the last token of each sequence that draws."""
    model = build_model("llama").double()
    for number, slot in enumerate("ab"):
        moved(inject(model, spec(*BOTH), slot=slot), number)
    rows, flat = row_map(model), ids().reshape(1, -1)
    by_token = [slot for slot in ("a", "b", None, "b") for _ in range(6)]
    rows.set(by_token)
    whole = model(flat).logits[0]
    kept = torch.tensor([5, 17, 23])
    rows.set(by_token, drawn=[by_token[at] for at in kept])
    some = model(flat, logits_to_keep=kept).logits[0]
    torch.testing.assert_close(some, whole[kept], atol=1e-12, rtol=1e-12)
    padded = torch.tensor([5, 17, 23, 0])
    some = model(flat, logits_to_keep=padded).logits[0, :3]
    torch.testing.assert_close(some, whole[kept], atol=1e-12, rtol=1e-12)
    rows.clear()


@pytest.mark.parametrize(
    ("named", "changes", "said"),
    [
        (("norm",), {}, "norm is neither .*: these are embed_tokens and lm_head"),
        (("lm_head",), {"tie_word_embeddings": True}, "ties embed_tokens and lm_head"),
    ],
)
def test_what_cannot_be_is_refused(
    named: tuple[str, ...], changes: dict[str, object], said: str, build_model: Build
) -> None:
    model = build_model("llama", **changes)
    before = dict(model.named_modules())
    with pytest.raises(InputError, match=f"^train_also: .*{said}"):
        inject(model, spec(*named))
    assert dict(model.named_modules()) == before
