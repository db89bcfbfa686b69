"""A tokenizer's ids and the rows of a base's embedding, which must hold them all."""

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from workers.config.base import InputError, override
from workers.config.train import TrainSpec

PAD_TOKENS = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>")
"""Tokens that may fill up a batch where a tokenizer names none, in this order."""


def fit_vocabulary(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, where: str
) -> None:
    """Give the tokenizer a pad token that the model's embedding has a row for.

    InputError where it has none for a token of a text, of the chat template, or the end of text:
    on a CPU the first such row ends a run, on a GPU the whole process.
    """
    text = config.get_text_config()
    rows = getattr(text, "vocab_size", None)
    if rows is None:
        return
    _set_pad_token(tokenizer, rows)
    beyond = {number: token for token, number in tokenizer.get_vocab().items() if number >= rows}
    used = [number for number, token in beyond.items() if _is_used(tokenizer, number, token)]
    if used:
        what = f"its tokenizer's token {beyond[max(used)]!r} has id {max(used)}"
    elif (getattr(text, "pad_token_id", None) or 0) >= rows:
        what = f"pad_token_id in its config.json is {text.pad_token_id}"
    else:
        return
    raise InputError(f"{where}: {what}, but its embedding has {rows} rows")


def with_token_ids(spec: TrainSpec, tokenizer: PreTrainedTokenizerBase) -> TrainSpec:
    """The specification with the ids of the tokens that its adapter trains by name. InputError for
    one that the tokenizer has not."""
    adapter = spec.adapter
    if not adapter.train_tokens:
        return spec
    known = tokenizer.get_vocab()
    if unknown := [
        one for one in adapter.train_tokens if isinstance(one, str) and one not in known
    ]:
        raise InputError(
            f"adapter.train_tokens: {unknown[0]!r} is no token of the base's tokenizer; a new one "
            "is added to the base first, with a row of its embedding"
        )
    ids = [known[one] if isinstance(one, str) else one for one in adapter.train_tokens]
    changes = {"adapter.train_tokens": ids}
    return override(spec, changes, "adapter.train_tokens, as ids")


def _set_pad_token(tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Choose a pad token apart from the end of text, so that nothing can mistake one for the other.

    Masks follow lengths, never token ids, so a tokenizer without any other token is safe too.
    """
    held = {token for token, number in tokenizer.get_vocab().items() if number < rows}
    if tokenizer.pad_token in held and tokenizer.pad_token != tokenizer.eos_token:
        return
    wanted = [tokenizer.unk_token, *PAD_TOKENS]
    spare = [token for token in wanted if token in held and token != tokenizer.eos_token]
    tokenizer.pad_token = spare[0] if spare else tokenizer.eos_token


def _is_used(tokenizer: PreTrainedTokenizerBase, number: int, token: str) -> bool:
    """Whether a text, the template or the tokenizer itself can yield a token. A special one that
    none of them names can not: Gemma 3's 1B has one for images, and no row for it."""
    added = tokenizer.added_tokens_decoder.get(number)
    if added is None or not added.special:
        return True
    own = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token)
    return token in own or token in str(tokenizer.chat_template or "")
