"""Import from and export to the formats of MoE-PEFT (MixLoRA), MoELoRA and PEFT.

A folder of ours already holds the format's own configuration and tensors, so both ways keep
every tensor bit for bit; what differs is the manifest, and `.bin` against safetensors. Only
m-LoRA's old layout gets today's names, and what MoE-PEFT has no word for is folded in or refused.
"""

from pathlib import Path
from typing import Literal

from torch import nn

from workers.adapter.digest import base_digest
from workers.adapter.export_limits import as_mixlora
from workers.adapter.files import load_into
from workers.adapter.manifest import BaseRecord, Manifest
from workers.adapter.raw import ForOthers, RawAdapter, read_raw, write_raw
from workers.adapter.stacking import to_canonical
from workers.config.base import InputError
from workers.config.routing import ROUTERS

Format = Literal["mixlora", "moelora", "peft"]
_FORMATS: dict[str, Format] = {"MIXLORA": "mixlora", "MOELORA": "moelora", "LORA": "peft"}


def import_folder(src: str | Path, dst: str | Path, model: nn.Module | None = None) -> Path:
    """Bring a foreign adapter (`.bin` or safetensors) into a folder of ours, with a manifest.

    With `model`, its base, the adapter is also checked against it and bound to its digest.
    """
    raw = _read(src, dst)
    if model is not None:
        load_into(model, src, slot=f"import of {src}").remove()
    kept = raw.manifest or Manifest(base=BaseRecord(path=raw.config.base_model_name_or_path or ""))
    if model is not None:
        base = BaseRecord(path=kept.base.path, digest=base_digest(model))
        kept = kept.model_copy(update={"base": base})
    write_raw(dst, raw.values, raw.tensors, kept)
    return Path(dst)


def export_folder(
    src: str | Path, dst: str | Path, format: Format | None = None, as_bin: bool = False
) -> Path:
    """Write an adapter for other tools, without our manifest; its own chat template lies beside
    it. `as_bin` asks for `.bin`.

    The adapter's shape fixes the format: block experts are MixLoRA's, linear experts MoELoRA's,
    one expert is PEFT's; naming another one is refused, and so is what the tool cannot compute.
    """
    raw = _read(src, dst)
    own = _FORMATS[raw.config.peft_type]
    if format not in (None, own):
        raise InputError(f"{src}: is a {own} adapter and cannot be written as {format}")
    values, tensors = raw.values, raw.tensors
    config = raw.config
    ours_alone = config.moetune or config.copied or config.trainable_token_indices
    strange = bool(ours_alone) or not ROUTERS[config.routing].disk_names
    if own == "mixlora" and (strange or not raw.config.lora_alpha.is_integer()):
        values, tensors = as_mixlora(raw, str(src))
    template = raw.manifest.chat_template if raw.manifest else None
    write_raw(dst, values, tensors, others=ForOthers(as_bin, template))
    return Path(dst)


def _read(src: str | Path, dst: str | Path) -> RawAdapter:
    if Path(src).resolve() == Path(dst).resolve():
        raise InputError(f"{dst}: is the source itself; name another folder")
    raw = read_raw(src)
    to_canonical(raw.tensors, raw.config, str(src))
    return raw
