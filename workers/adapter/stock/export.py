"""A trained adapter as an ordinary checkpoint, which stock engines run.

First all that can be known is known: whether it can be exact, whether it fits, what it takes of
disk and memory. Then it is written, whole or not at all.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
)

from workers.adapter import folder as folders
from workers.adapter.digest import base_digest, folder_digest
from workers.adapter.files import AdapterFiles, check_activation, read
from workers.adapter.modules import check_modules
from workers.adapter.stock.base_files import BaseFiles
from workers.adapter.stock.card import Facts, card
from workers.adapter.stock.own_template import generation_with_end
from workers.adapter.stock.plan import Merging, NewTensor
from workers.adapter.stock.remarks import remark
from workers.adapter.stock.room import SPARE, check_room, check_target, shown
from workers.adapter.stock.shards import in_shards, write_shards
from workers.adapter.stock.twin_config import dense_values, generation_values, sparse_values
from workers.adapter.stock.verdict import experts_and_slots, twin_of, why_not
from workers.config.base import InputError
from workers.run.folders import new_folder

COPIED = (
    *("tokenizer*.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.*", "merges.txt", "*.tiktoken", "tekken.json"),
    *("chat_template*", "LICENSE*", "NOTICE*"),
)
"""What a checkpoint has of its base as it is."""
GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Export:
    """A checkpoint that can be written: its tensors, and all that is known before."""

    base: BaseFiles
    config: dict[str, Any]
    generation: dict[str, Any] | None
    """Its generation_config.json; None where the base has none."""
    shards: Sequence[Sequence[NewTensor]]
    dtype: torch.dtype
    facts: Facts

    @property
    def chat_template(self) -> str | None:
        """The adapter's own, where it has one."""
        return self.facts.manifest.chat_template if self.facts.manifest else None

    @property
    def memory(self) -> int:
        """Bytes of memory that writing takes at most: a shard, a quarter more for what lies unused
        between its tensors, and the largest tensor three times in the precision of the merging."""
        largest = max(piece.numbers for shard in self.shards for piece in shard)
        held = max(sum(piece.numbers for piece in shard) for shard in self.shards)
        work = torch.promote_types(self.base.dtype, torch.float32).itemsize
        return held * self.dtype.itemsize * 5 // 4 + 3 * largest * work + SPARE

    @property
    def has_tokenizer(self) -> bool:
        """Whether its base has one."""
        return any(path.name.startswith("token") for path in _copied(self.base.folder))

    def told(self) -> str:
        """What it takes, in one line."""
        base = self.facts.base_parameters * self.dtype.itemsize
        return (
            f"{self.facts.architecture}, {self.facts.dtype}: {shown(self.facts.bytes)} on disk, "
            f"the base alone {shown(base)}; {shown(self.memory)} of memory while it is written; "
            f"base: {self._base_told()}"
        )

    def _base_told(self) -> str:
        folder = str(self.base.folder)
        return folder if folder == self.facts.base else f"{self.facts.base} ({folder})"

    def write(self, to: Path, tell: Callable[[str], None]) -> None:
        """Write the folder, whole or not at all."""
        check_target(to)
        check_room(to, self.facts.bytes, self.memory)
        try:
            with new_folder(to.resolve()) as folder:
                folders.write_json(folder / "config.json", self.config)
                if self.generation is not None:
                    folders.write_json(folder / GENERATION, self.generation)
                write_shards(folder, self.shards, self.dtype, tell)
                (folder / "README.md").write_text(card(self.facts), encoding="utf-8")
                for path in _copied(self.base.folder):
                    shutil.copyfile(path, folder / path.name)
                if self.chat_template:
                    (folder / folders.CHAT_TEMPLATE).write_text(
                        self.chat_template, encoding="utf-8"
                    )
                check_target(to)  # what came there meanwhile is not ours to replace
        except OSError as error:
            raise folders.WriteError(
                f"{to}: cannot be written: {error.strerror or error}"
            ) from None


def prepare(
    adapter: Path,
    base_folder: Path,
    *,
    name: str,
    base_name: str,
    dtype: str | None = None,
) -> Export:
    """Look at an adapter and its base, and plan the checkpoint. InputError, with the reason, where
    it cannot be exact or the two do not belong together. `name` and `base_name` are what people
    call them; `dtype` of None is the base's own."""
    files, base = read(adapter), BaseFiles(base_folder)
    config = AutoConfig.from_pretrained(base_folder, trust_remote_code=False)
    found = config.to_dict()
    if reason := why_not(files.spec, found):
        raise InputError(f"{name}: cannot be a checkpoint: {reason}")
    digest = _check_base(files, base_folder, name)
    check_activation(config, files, name)
    written = getattr(torch, dtype) if dtype else base.dtype
    twin = twin_of(files.spec, found)
    merging = _merging(files, base, config, name)
    pieces = list(merging.sparse(twin) if twin else merging.dense())
    values = (
        sparse_values(config, twin, files.spec, written)
        if twin
        else _dense_values(base, config, written)
    )
    numbers = sum(piece.numbers for piece in pieces if piece.kept is None)
    experts, top_k = experts_and_slots(files.spec)
    facts = Facts(
        name=name,
        digest=folder_digest(adapter),
        base=base_name,
        base_digest=digest,
        architecture=values["architectures"][0],
        dtype=str(written).removeprefix("torch."),
        parameters=numbers,
        base_parameters=sum(torch.Size(one.shape).numel() for one in base.weights()),
        bytes=sum(piece.size(written) for piece in pieces),
        spec=files.spec,
        experts=experts,
        top_k=top_k,
        manifest=files.manifest,
        remark=remark(values) if files.spec.is_routed else None,
    )
    own = files.manifest.chat_template if files.manifest else None
    generation = generation_with_end(_generation(base_folder), base_folder, own)
    return Export(base, values, generation, in_shards(pieces, written), written, facts)


def _merging(files: AdapterFiles, base: BaseFiles, config: PretrainedConfig, name: str) -> Merging:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )
    if files.config.peft_type == "LORA":  # the other formats name layers by their number alone
        check_modules(model, files.tensors, files.layer_list, files.config, name)
    return Merging(base, model, files, name)


def _dense_values(base: BaseFiles, config: PretrainedConfig, dtype: torch.dtype) -> dict[str, Any]:
    values = dense_values(folders.read_json(base.folder / "config.json"), dtype)
    own = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__
    return {**values, "architectures": values.get("architectures") or [own]}


def _check_base(files: AdapterFiles, folder: Path, name: str) -> str:
    """The base's digest; refuses an adapter of another one."""
    found, record = base_digest(folder), files.manifest.base if files.manifest else None
    if record and record.digest not in (None, found):
        raise InputError(
            f"{name}: belongs to another base model, {record.path}: the weights of {folder} differ"
        )
    return found


def _generation(folder: Path) -> dict[str, Any] | None:
    path = folder / GENERATION
    return generation_values(folders.read_json(path)) if path.is_file() else None


def _copied(folder: Path) -> list[Path]:
    found = {path for pattern in COPIED for path in folder.glob(pattern) if path.is_file()}
    return sorted(found)
