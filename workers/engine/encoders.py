"""How each adapter's chats are rendered: by the template that it was trained with."""

from functools import lru_cache
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from workers.adapter.manifest import read_manifest
from workers.data.text_encoder import TextEncoder
from workers.engine.request import AdapterRef

TEMPLATES = 64
"""Templates of adapters whose encoders are kept."""
ADAPTERS = 1024
"""Adapters whose template is remembered."""


class Encoders:
    """An encoder for each chat template. What an adapter was trained with stands in its manifest,
    as text: a replica needs no file beside the adapter's folder."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._base = TextEncoder(tokenizer)
        self._made = lru_cache(TEMPLATES)(lambda template: TextEncoder(tokenizer, template))
        self._own = lru_cache(ADAPTERS)(own_template)

    def of(self, adapter: AdapterRef | None) -> TextEncoder:
        """The adapter's, or the base's."""
        own = self._own(adapter) if adapter else None
        return self._made(own) if own else self._base

    def ends(self, adapter: AdapterRef | None) -> tuple[int, ...]:
        """What ends an answer, where that is not the base's to know."""
        own = adapter and self._own(adapter)
        return self._made(own).stops(chat=True) if own else ()


def own_template(adapter: AdapterRef) -> str | None:
    """The template that an adapter brings; None where it has its base's."""
    manifest = read_manifest(Path(adapter.folder))
    return manifest.chat_template if manifest else None
