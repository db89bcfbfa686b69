"""What an encoded row depends on, as one name: other facts, another entry of the store."""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from workers.config.base import InputError, one_line
from workers.config.data import ROWS_APART
from workers.data.encode import Encoder

ASIDE = (*ROWS_APART, "train", "validation", "max_rows")
"""Fields of a DataSpec on which no row depends, or that the name has in another way."""
_CODE = Path(__file__).parents[1]
_LIBRARIES = ("transformers", "tokenizers", "jinja2", "pyarrow")


def entry_name(encoder: Encoder, rows: dict[str, Any], digests: list[str]) -> str:
    """Of the entry for `rows` (which sources, how many of them) whose bytes have these digests."""
    facts = {
        "rows": rows,
        "digests": digests,
        "fields": encoder.data.model_dump(mode="json", exclude=set(ASIDE)),
        "template": encoder.text.template.own,
        "tokenizer": tokenizer_digest(encoder.tokenizer),
        "code": code_digest(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of all that a tokenizer would write to disk, its chat template with it."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            return _digest(Path(folder), "*")
    except OSError as error:
        raise InputError(
            f"{tempfile.gettempdir()}: a tokenizer cannot be written there: {one_line(error)}"
        ) from None


@cache
def code_digest() -> str:
    """Of the code that encodes, ours and the libraries' versions: what it writes may change."""
    found = [f"{name} {version(name)}" for name in _LIBRARIES]
    return hashlib.sha256("\n".join([_digest(_CODE, "*.py"), *found]).encode()).hexdigest()


def _digest(folder: Path, pattern: str) -> str:
    return hashlib.sha256(b"".join(_parts(folder, pattern))).hexdigest()


def _parts(folder: Path, pattern: str) -> Iterator[bytes]:
    for path in sorted(folder.rglob(pattern)):
        if path.is_file():
            content = path.read_bytes()
            yield f"{path.relative_to(folder)} {len(content)}\n".encode()
            yield content
