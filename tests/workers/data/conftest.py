"""Tokenizers of the kinds that there are, made here."""

import json
from collections.abc import Callable

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from orchestrator.demo.base_model import CHAT_TEMPLATE

TEXT = [
    "Switch the lamp in the kitchen on. Then, end the story: im_start, im_end, endoftext!",
    "def f(x):\n    return x < 3 | x > 4\n\n\nuser assistant system tool_call s /s",
]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]


def byte_level() -> PreTrainedTokenizerBase:
    """Byte-level BPE with merges and ChatML; `<|u|>` and `<tool_call>` are added, not special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in ("<|u|>", "<tool_call>")])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    fast.chat_template = CHAT_TEMPLATE.replace("'<|im_start|>' + m", "'<|u|><|im_start|>' + m")
    return fast


def metaspace(ends_texts: bool = True) -> PreTrainedTokenizerBase:
    """BPE as of sentencepiece: a space before a text, `<s>` before that, and `</s>` at its end."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    every_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *every_byte],
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXT * 4, "<s> </s> [INST] ▁"], trainer)
    tokenizer = with_fewer_special(tokenizer, every_byte)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if ends_texts else "<s> $A",
        special_tokens=[("<s>", 1), ("</s>", 2)],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
        "{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}{% elif m['role'] == 'assistant' %}"
        "{{ ' ' + m['content'] | trim + eos_token }}{% else %}"
        "{{ raise_exception('roles are user and assistant') }}{% endif %}{% endfor %}"
    )
    return fast


def unigram() -> PreTrainedTokenizerBase:
    """Its model has `</s>` among its pieces."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -2.0) for letter in "▁ab</s>")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def with_fewer_special(tokenizer: Tokenizer, names: list[str]) -> Tokenizer:
    """The tokenizer with these tokens in its vocabulary alone."""
    whole = json.loads(tokenizer.to_str())
    whole["added_tokens"] = [one for one in whole["added_tokens"] if one["content"] not in names]
    return Tokenizer.from_str(json.dumps(whole))


MAKERS = {"byte level": byte_level, "metaspace": metaspace}


@pytest.fixture(params=sorted(MAKERS), scope="module")
def any_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    """One tokenizer of each kind."""
    make: Callable[[], PreTrainedTokenizerBase] = MAKERS[request.param]
    return make()
