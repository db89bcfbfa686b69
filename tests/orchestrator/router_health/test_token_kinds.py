"""Kinds of tokens that keep to an expert: found where they do, and never out of chance."""

import numpy as np
import pytest

from orchestrator.router_health.token_kinds import Keeping, keepings, kind

WORDS = [f" {first}{second}" for first in "abcdef" for second in "xyz"]
NUMBERS = [f"{number}" for number in range(10)]
SIGNS = [",", ".", "!", "?", ";", ":"]
TEXTS = WORDS + NUMBERS + SIGNS


def firsts(columns: list[int], experts: int) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    return np.eye(experts)[columns]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" light", "words"),
        ("été", "words"),
        ("灯", "words"),
        ("a1", "words"),
        (" 40", "numbers"),
        ("\n\n", "white space"),
        (" ,", "punctuation"),
        ("\ufffd", "punctuation"),
        ("<|im_start|>", "markers"),
        ("</s>", "markers"),
        ("[INST]", "markers"),
        ("<", "punctuation"),
        ("", "white space"),
    ],
)
def test_what_a_token_is_shows_in_its_characters(text: str, expected: str) -> None:
    assert kind(text) == expected


def test_a_kind_that_keeps_to_an_expert_is_found_with_its_counts() -> None:
    random = np.random.default_rng(5)
    columns = [3 if kind(text) == "numbers" else int(random.integers(3)) for text in TEXTS]
    columns[-1] = 3
    found = keepings(TEXTS, firsts(columns, 4))
    assert found == [Keeping("numbers", 3, 10, 10, 1, 24)]


def test_chance_is_told_for_nothing() -> None:
    """Three layers of four experts, drawn by lot: 200 texts give a finding or two in a hundred."""
    told = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        layers = [firsts(random.integers(4, size=len(TEXTS)).tolist(), 4) for _ in range(3)]
        told += bool(keepings(TEXTS, np.concatenate(layers, axis=1)))
    assert told <= 6


def test_one_text_that_comes_often_says_nothing_of_its_kind() -> None:
    texts = [*WORDS, *[","] * 12]
    columns = [index % 3 for index in range(len(WORDS))] + [3] * 12
    assert keepings(texts, firsts(columns, 4)) == []


@pytest.mark.parametrize("texts", [[], [" a"], WORDS, [",", " a"]])
def test_too_little_to_compare_is_no_finding(texts: list[str]) -> None:
    assert keepings(texts, firsts([0] * len(texts), 2)) == []


def test_one_expert_for_all_is_no_preference() -> None:
    assert keepings(TEXTS, firsts([1] * len(TEXTS), 4)) == []
