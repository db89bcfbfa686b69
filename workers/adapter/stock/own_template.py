"""An adapter's own chat template in a checkpoint: engines stop where it ends an answer."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from workers.config.base import InputError
from workers.data.text_encoder import TextEncoder


def generation_with_end(
    generation: dict[str, Any] | None, base: Path, template: str | None
) -> dict[str, Any] | None:
    """A base's generation_config.json, with the end of turn of the template."""
    if template is None:
        return generation
    try:
        tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    except (OSError, ValueError):
        raise InputError(
            f"{base}: has no tokenizer, which the adapter's chat template wants"
        ) from None
    values = generation or {}
    known = values.get("eos_token_id") or tokenizer.eos_token_id
    before = known if isinstance(known, list) else [] if known is None else [known]
    ends = TextEncoder(tokenizer, template).stops(chat=True)
    return {**values, "eos_token_id": [*dict.fromkeys((*before, *ends))]}
