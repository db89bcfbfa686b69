"""The base and the adapters that serving.py serves."""

import sys
from pathlib import Path

from peer_models import write_base
from peer_setup import Sizes as BaseSizes
from serving_work import Sizes
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workers.adapter.convert import export_folder
from workers.adapter.digest import base_digest
from workers.adapter.files import save
from workers.adapter.manifest import BaseRecord, Manifest
from workers.config.adapter import AdapterSpec
from workers.injection.inject import inject


def random_base(sizes: Sizes, folder: Path) -> Path:
    """A random Llama whose tokens are words: w10 is token 10."""
    longest = sizes.prompt + sizes.answer
    base = BaseSizes(vocabulary=sizes.vocabulary, length=longest)
    write_base(sizes.shape, base, folder)
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{n}": n for n in range(3, sizes.vocabulary)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="<unk>"
    ).save_pretrained(folder)
    return folder


def write_adapters(base: Path, sizes: Sizes, folder: Path) -> list[Path]:
    """As if trained, with weights of their own."""
    spec = AdapterSpec(num_experts=sizes.experts, top_k=sizes.top_k, rank=sizes.rank, alpha=16)
    model = AutoModelForCausalLM.from_pretrained(base)
    record = BaseRecord(path=str(base), digest=base_digest(model))
    written = []
    for number in range(sizes.adapters):
        adapter = inject(model, spec, seed=number)
        for name, parameter in adapter.named_parameters():
            if name.endswith("lora_B"):
                nn.init.normal_(parameter, std=0.02)
        written.append(folder / f"adapter-{number}")
        save(adapter, written[-1], Manifest(base=record))
        adapter.remove()
    return written


def for_moe_peft(adapter: Path) -> Path:
    """The same adapter in the format that moe-peft reads."""
    return export_folder(adapter, adapter.with_name("moe-peft"), "mixlora", as_bin=True)
