"""Rows of some tokens, against models of which whole weights learn."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.workers.injection.test_adapted_weight import PLAIN, ids, moved
from workers.config.adapter import AdapterSpec
from workers.config.base import InputError
from workers.injection.inject import inject, row_map

Build = Callable[..., nn.Module]
TOKENS = (9, 4, 63, 20)
"""Of which the ids of the tests have some, and not all."""


def spec(tokens: tuple[int, ...] = TOKENS, *names: str) -> AdapterSpec:
    return AdapterSpec.model_validate({**PLAIN, "train_tokens": tokens, "train_tokens_of": names})


@pytest.mark.parametrize("named", [(), ("embed_tokens",), ("lm_head",)])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_they_learn_as_those_rows_of_the_weights_would(
    family: str, tied: bool, named: tuple[str, ...], build_model: Build
) -> None:
    if tied and named == ("lm_head",):
        pytest.skip("is refused")
    model = build_model(family, tie_word_embeddings=tied).double()
    plain = build_model(family, tie_word_embeddings=tied).double()
    modules, given = dict(model.named_modules()), with_tokens(ids())
    bare = model(given).logits
    adapter = inject(model, spec(TOKENS, *named))
    torch.testing.assert_close(model(given).logits, bare, atol=1e-12, rtol=1e-12)
    model(given, labels=given).loss.backward()
    plain(given, labels=given).loss.backward()
    whole = {
        "embed_tokens.token_rows": plain.get_input_embeddings().weight,
        "lm_head.token_rows": plain.get_output_embeddings().weight,
    }
    places = ("embed_tokens",) if tied else named or ("embed_tokens", "lm_head")
    found = {name: one for name, one in adapter.named_parameters() if "layers." not in name}
    assert [*found] == [f"{name}.token_rows" for name in places]
    for name, parameter in found.items():
        expected = whole[name].grad[list(TOKENS)]
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(parameter.grad, expected, atol=1e-10, rtol=1e-10)
    trained = {id(one) for one in model.parameters() if one.grad is not None}
    assert trained == {id(one) for one in adapter.parameters()}
    adapter.remove()
    assert dict(model.named_modules()) == modules
    assert torch.equal(model(given).logits, bare)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_they_stand_in_place_of_the_frozen_ones(
    family: str, tied: bool, build_model: Build
) -> None:
    model = build_model(family, tie_word_embeddings=tied).double()
    plain = build_model(family, tie_word_embeddings=tied).double()
    adapter = moved(inject(model, spec()), 1)
    rows = {name: one for name, one in adapter.named_parameters() if "layers." not in name}
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if name.startswith("layers."):
                parameter.zero_()
        for place in (plain.get_input_embeddings(), plain.get_output_embeddings()):
            own = "embed_tokens" if tied or place is plain.get_input_embeddings() else "lm_head"
            place.weight[list(TOKENS)] = rows[f"{own}.token_rows"]
    given = with_tokens(ids())
    torch.testing.assert_close(model(given).logits, plain(given).logits, atol=1e-12, rtol=1e-12)


def test_rows_of_a_mixed_batch_meet_their_own(build_model: Build) -> None:
    """Beside adapters with copies of whole weights, and with neither."""
    model, given = build_model("llama").double(), with_tokens(ids(5))
    copies = AdapterSpec.model_validate({**PLAIN, "train_also": ["embed_tokens", "lm_head"]})
    shapes = {
        "a": spec(),
        "b": spec((9, 30), "embed_tokens"),
        "c": copies,
        "d": AdapterSpec.model_validate(PLAIN),
    }
    for number, (slot, shape) in enumerate(shapes.items()):
        moved(inject(model, shape, slot=slot), number)
    rows, slots = row_map(model), [None, *shapes]
    alone = []
    for slot in slots:
        with rows.everywhere(slot):
            alone.append(model(given).logits)
    with rows.assign(slots):
        together = model(given).logits
    for row, logits in enumerate(alone):
        torch.testing.assert_close(together[row], logits[row], atol=1e-12, rtol=1e-12)
    assert all((alone[row] - alone[0])[row].abs().max() > 0.01 for row in (1, 2, 3, 4))


def test_texts_are_for_whoever_has_a_tokenizer(build_model: Build) -> None:
    model = build_model("llama")
    before = dict(model.named_modules())
    texts = AdapterSpec.model_validate({**PLAIN, "train_tokens": ["<tool>"]})
    with pytest.raises(InputError, match=r"^train_tokens: are texts here"):
        inject(model, texts)
    assert dict(model.named_modules()) == before


def with_tokens(ids_BS: Tensor) -> Tensor:
    """Each row begins with tokens that have rows of their own."""
    ids_BS[:, :3] = torch.tensor([9, 4, 9])
    return ids_BS
