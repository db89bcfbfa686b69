"""Lineage of an adapter: what it was trained from, on what, by whom, and how well. No torch."""

from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from workers.adapter import folder as folders
from workers.adapter.routing_sample import RoutingSample
from workers.config.base import Spec, validated


def code_version() -> str:
    """Version of the installed moetune, `unknown` when it runs from a bare folder."""
    try:
        return version("moetune")
    except PackageNotFoundError:
        return "unknown"


def base_id(path: str) -> str:
    """What a base model is called: the last part of its folder's or hub name."""
    return path.rstrip("/").rpartition("/")[2]


class BaseRecord(Spec):
    """The frozen base model that an adapter belongs to: that of this digest, wherever it lies."""

    path: str
    """Hub name or folder that it was loaded from; it may have moved since."""
    name: str = Field(default_factory=lambda known: base_id(known["path"]))
    """What it was called there."""
    digest: str | None = None
    """`workers.adapter.digest.base_digest` of its weights; None where it was never seen."""


class Origin(Spec):
    """Where an adapter that was not trained here came from."""

    path: str
    """Its folder."""
    digest: str
    """`workers.adapter.digest.folder_digest` of what lay there."""
    base: str | None = None
    """What it calls its base model."""


class Manifest(Spec):
    """The content of `manifest.json`."""

    format: Literal[1] = 1
    """Version of this file's layout."""
    base: BaseRecord
    spec: dict[str, Any] | None = None
    """The resolved TrainSpec as plain values; None for an adapter that moetune did not train."""
    origin: Origin | None = None
    """Of an adapter that was brought in from a folder, and measured here."""
    measured_with: dict[str, Any] | None = None
    """The resolved TrainSpec whose base, rows and evaluation that was measured with."""
    data_digest: str | None = None
    """Digest of the data (of what was brought in: of the rows that it was measured on); metrics of
    adapters with different data cannot be compared."""
    earlier_data: tuple[str, ...] = ()
    """Digests of other rows that it was trained on before these, with --accept-new-data."""
    study: str | None = None
    trial: int | None = None
    metrics: dict[str, Any] = Field(default_factory=dict)
    """Last reported metrics, nested as the training run reports them."""
    base_metrics: dict[str, Any] = Field(default_factory=dict)
    """What the bare base gave on the same validation rows; empty where nobody measured it."""
    expert_load: dict[str, tuple[Annotated[float, Field(ge=0)], ...]] = Field(default_factory=dict)
    """Share of the routed tokens that each expert got in validation, by layer."""
    routing_sample: RoutingSample | None = None
    """The same for single rows, which drift is measured against; None where none was kept."""
    code_version: str = Field(default_factory=code_version)
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of the folder's other files, filled in when it is written."""

    @property
    def asked_with(self) -> dict[str, Any] | None:
        """The TrainSpec that says how its base is loaded and prompted; None where nothing does."""
        return self.measured_with or self.spec

    @property
    def chat_template(self) -> str | None:
        """The template that it brings; None where it is asked by its base's."""
        own = ((self.asked_with or {}).get("data") or {}).get("chat_template")
        return own if isinstance(own, str) else None


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest, None where it has none (an adapter from elsewhere)."""
    path = folders.member(folder, folders.MANIFEST)
    return validated(Manifest, folders.read_json(path), str(path)) if path else None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, with sorted keys: equal manifests are equal files."""
    folders.write_json(folder / folders.MANIFEST, manifest.model_dump(mode="json"), sort=True)
