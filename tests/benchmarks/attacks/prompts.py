"""Attack with bodies of a megabyte that are refused: prompts far too long, and what is all wrong.

python tests/benchmarks/attacks/prompts.py [--seconds 10] [--json PATH|-]
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attacks.field import Sizes, attacked, main

LARGE = 1_000_000
"""Bytes; the gateway's own limit is a little more."""


def bodies() -> Iterator[tuple[str, bytes]]:
    """Paths and bodies."""
    for size in (LARGE, LARGE // 4):  # the second is not too long by its characters alone
        text = "word " * (size // 5)
        yield _chat([{"role": "user", "content": text}])
        yield _completion(text)
    yield _chat([{"role": "user", "content": "x" * 200}] * (LARGE // 250))
    yield _chat([{"role": "user", "content": ""}] * (LARGE // 40))
    yield _chat([1] * (LARGE // 3))
    yield _completion([7] * (LARGE // 3))
    yield _completion([7, *["a"] * (LARGE // 5)])
    yield _completion("hi", **{f"f{number}": 1 for number in range(LARGE // 14)})


def _chat(messages: list[Any]) -> tuple[str, bytes]:
    asked = {"model": "base", "max_tokens": 4, "messages": messages}
    return "/v1/chat/completions", json.dumps(asked).encode()


def _completion(prompt: Any, **fields: Any) -> tuple[str, bytes]:
    asked = {"model": "base", "max_tokens": 4, "prompt": prompt, **fields}
    return "/v1/completions", json.dumps(asked).encode()


def measure(sizes: Sizes | None = None) -> dict[str, float]:
    """See `attacks.field.attacked`."""
    return attacked("prompts", sizes or Sizes())


if __name__ == "__main__":
    main(__doc__, measure)
