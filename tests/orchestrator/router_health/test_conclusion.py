"""What the numbers of a routing come to, in words."""

from collections.abc import Callable

import pytest

from orchestrator.router_health.conclusion import conclude
from orchestrator.router_health.token_kinds import kind
from workers.engine.routing.types import LayerRouting, RequestRouting, TokenRouting

TEXTS = tuple([f" {a}{b}" for a in "abcdef" for b in "xyz"] + list("0123456789") + list(",.!?;:"))
Choose = Callable[[int, int], dict[int, float]]
"""The gates of a token (by number) in a layer (by number)."""


def routing(
    choose: Choose, texts: tuple[str, ...] = TEXTS, layers: int = 2, experts: int = 4
) -> RequestRouting:
    by_token = [[choose(token, layer) for layer in range(layers)] for token in range(len(texts))]
    told = tuple(
        LayerRouting(
            f"layers.{layer}.mlp",
            tuple(sum(e in gates[layer] for gates in by_token) for e in range(experts)),
            tuple(sum(gates[layer].get(e, 0.0) for gates in by_token) for e in range(experts)),
            1.0,
            1.0,
        )
        for layer in range(layers)
    )
    choices = tuple(
        tuple(TokenRouting(tuple(gates), tuple(gates.values())) for gates in row)
        for row in by_token
    )
    return RequestRouting(len(texts), told, choices, texts)


def said(choose: Choose, texts: tuple[str, ...] = TEXTS, layers: int = 2) -> str:
    return " ".join(conclude(routing(choose, texts, layers)).sentences)


def test_a_router_that_takes_every_expert_selects_nothing() -> None:
    text = said(lambda token, layer: dict.fromkeys(range(4), 0.25))
    assert text.startswith("The router selects nothing: every token goes to all experts")
    assert "the experts share the work nearly evenly" in text


def test_layers_that_select_nothing_are_counted() -> None:
    text = said(lambda token, layer: dict.fromkeys(range(4), 0.25) if layer else {token % 4: 1.0})
    assert text.startswith("In 1 of 2 layers the router selects nothing")


def test_tokens_that_all_go_one_way_are_not_parted() -> None:
    text = said(lambda token, layer: {2: 0.7, 0: 0.3})
    assert text.startswith("Each token goes to 2 of 4 experts in each layer, but in every layer")
    assert "the router parts nothing there" in text
    assert "4 of 8 experts got no token" in text
    some = said(lambda token, layer: {2: 1.0} if layer else {token % 3: 1.0})
    assert "but in 1 of 2 layers all tokens go to the same" in some


def test_how_concentrated_the_work_is() -> None:
    few = said(lambda token, layer: {3 if token else 1: 1.0})
    assert "few experts do most of the work: the busiest, expert 3 of layers.0.mlp, has 97 %" in few
    assert "(an even share is 25 %)" in few
    some = said(lambda token, layer: {(0, 0, 0, 0, 1, 1, 2, 3)[token % 8]: 1.0})
    assert "some experts do more than others" in some


def test_a_kind_that_keeps_to_an_expert_is_told_and_its_layer_opened() -> None:
    def choose(token: int, layer: int) -> dict[int, float]:
        if layer == 1 and kind(TEXTS[token]) == "numbers":
            return {3: 1.0}
        return {(token * 7 + layer) % 3: 1.0}

    told = conclude(routing(choose))
    assert told.layer == "layers.1.mlp"
    assert told.sentences[2] == (
        "Numbers keep to expert 3 of layers.1.mlp: 10 of 10 such tokens go there first, and 0 of "
        "the 24 others."
    )


def test_where_no_kind_keeps_to_an_expert_that_is_said() -> None:
    assert "No kind of token" in said(lambda token, layer: {(token * 5 + layer) % 4: 1.0})


@pytest.mark.parametrize(
    ("texts", "expected"), [((" a", ",", "1"), "too short to say"), ((), "Each token goes")]
)
def test_of_little_text_little_is_said(texts: tuple[str, ...], expected: str) -> None:
    told = routing(lambda token, layer: {token % 4: 1.0}, texts or TEXTS)
    one = RequestRouting(told.tokens, told.layers, told.by_token, texts)
    text = " ".join(conclude(one).sentences)
    assert expected in text
    assert "keep to" not in text


def test_tokens_that_no_expert_had_room_for_break_nothing() -> None:
    text = said(lambda token, layer: {0: 1.0} if token % 2 else {})
    assert text.startswith("Each token goes to 0 to 1 of 4 experts")
