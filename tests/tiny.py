"""A tiny random model and random adapters of it: what nearly all tests and the soak serve."""

from pathlib import Path

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)


def write_model(folder: Path, context: int = 512) -> Path:
    """A random Llama (2 layers, width 64, positions for `context` tokens) and a byte-level ChatML
    tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = _save_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        eos_token_id=2,
        pad_token_id=3,
        bos_token_id=0,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_adapter(
    model_folder: Path, folder: Path, seed: int, spread: float = 0.2, **fields: object
) -> Path:
    """An adapter of that model, its weights random and large enough to change most tokens. Fields
    are AdapterSpec's. With a `spread` of 1e30 its answers are not finite."""
    import torch
    from transformers import AutoModelForCausalLM

    from workers.adapter.digest import base_digest
    from workers.adapter.files import save
    from workers.adapter.manifest import BaseRecord, Manifest
    from workers.inject import inject
    from workers.spec import AdapterSpec

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    shape = {"num_experts": 4, "top_k": 2, "rank": 4, "alpha": 8.0, **fields}
    adapter = inject(model, AdapterSpec.model_validate(shape), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapter.named_parameters():
        if name.endswith("lora_B"):
            parameter.data.normal_(0.0, spread, generator=generator)
    base = BaseRecord(path=str(model_folder), digest=base_digest(model))
    save(adapter, folder, Manifest(base=base))
    return folder


def _save_tokenizer(folder: Path) -> int:
    """A byte-level tokenizer with ChatML's tokens; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    vocabulary = {token: index for index, token in enumerate(special + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    fast.chat_template = CHATML
    fast.save_pretrained(folder)
    return len(vocabulary)
