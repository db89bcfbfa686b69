"""Tests of encoded rows."""

import numpy as np

from workers.data.example import Example, Span


def test_a_prompt_and_its_target() -> None:
    example = Example.of((5, 6, 7), (8, 2), lost=(1, 0))

    assert example == Example((5, 6, 7, 8, 2), (Span(3, 5),), (1, 0))
    assert (example.prompt, example.target) == ((5, 6, 7), (8, 2))
    assert (len(example), example.learned) == (5, 2)


def test_the_last_span_is_the_answer() -> None:
    example = Example((1, 2, 3, 4, 5, 6), (Span(1, 3), Span(4, 6, weight=0.5)))

    assert (example.prompt, example.target) == ((1, 2, 3, 4), (5, 6))
    assert example.learned == 4


def test_tokens_out_of_an_array_are_numbers_of_python() -> None:
    example = Example(np.array([1, 2, 3], np.uint16), (Span(2, 3),))

    assert (example.prompt, example.target) == ((1, 2), (3,))
    assert all(type(token) is int for token in example.prompt + example.target)
