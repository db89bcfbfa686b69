"""The model card of an exported checkpoint: what it is, where it comes from, what it costs."""

import json
import re
from dataclasses import dataclass, fields, replace
from typing import Any

from workers.adapter.manifest import Manifest, base_id, code_version
from workers.config.adapter import AdapterSpec

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Facts:
    """What the card tells."""

    name: str
    """NAME@VERSION, or the adapter's folder."""
    digest: str
    base: str
    """The base model, as it was called in training."""
    base_digest: str | None
    architecture: str
    dtype: str
    parameters: int
    base_parameters: int
    bytes: int
    spec: AdapterSpec
    experts: int
    top_k: int
    manifest: Manifest | None
    remark: str | None = None
    """Which engine does not compute the same."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        spec, manifest = values.pop("spec"), values.pop("manifest")
        return {
            **values,
            "rank": spec.rank,
            "study": manifest.study if manifest else None,
            "trial": manifest.trial if manifest else None,
        }


def card(facts: Facts) -> str:
    """README.md. It may go far, so that folders are named by their last part only."""
    facts = replace(facts, name=_public(facts.name), base=_public(facts.base))
    head = {
        "base_model": facts.base,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["moetune", *(["moe"] if facts.spec.is_routed else ["lora"])],
    }
    rows = [f"| {name} | {_cell(value)} |" for name, value in _rows(facts).items() if value]
    return "\n".join(
        (
            "---",
            *(f"{name}: {json.dumps(value)}" for name, value in head.items()),
            "---",
            "",
            f"# {_cell(facts.name)}",
            "",
            _told(facts),
            *(("", f"**{facts.remark}.**") if facts.remark else ()),
            "",
            "| | |",
            "|---|---|",
            *rows,
            "",
            "The base's own sampling defaults are left out of generation_config.json: the adapter "
            "was measured without them.",
            "",
            f"Written by moetune {code_version()} (`moetune export`).",
            "",
        )
    )


def _told(facts: Facts) -> str:
    base = _cell(facts.base)
    if not facts.spec.is_routed:
        return f"A LoRA adapter, merged into its base model {base}."
    return (
        f"A routed mixture of LoRA experts on {base}, written as an ordinary sparse model "
        f"({facts.architecture}): each expert is the base's feed-forward block with that expert's "
        f"update merged in, {facts.top_k} of {facts.experts} for each token. Updates of the "
        f"attention are merged too. It takes {facts.parameters / facts.base_parameters:.1f} times "
        "the base's parameters."
    )


def _rows(facts: Facts) -> dict[str, object]:
    spec, manifest = facts.spec, facts.manifest
    trial = None if manifest is None or manifest.trial is None else str(manifest.trial)
    routed = spec.is_routed
    return {
        "adapter": facts.name,
        "adapter's digest": facts.digest,
        "base model": facts.base,
        "base's digest": facts.base_digest,
        "study": manifest.study if manifest else None,
        "trial": trial,
        "trained": f"{manifest.created:%Y-%m-%d}" if manifest else None,
        "architecture": facts.architecture,
        "experts": facts.experts if routed else None,
        "experts for each token": facts.top_k if routed else None,
        "rank": spec.rank,
        "chat template": "the adapter's own" if manifest and manifest.chat_template else None,
        "precision": facts.dtype,
        "parameters": f"{facts.parameters:,} (the base: {facts.base_parameters:,})",
        "bytes": f"{facts.bytes:,}",
    }


def _public(path: str) -> str:
    """A hub name as it is, OWNER/NAME; of a path its end."""
    return path if _HUB_NAME.fullmatch(path) else base_id(path)


def _cell(value: object) -> str:
    """In one line, which ends no cell and opens no tag."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")
