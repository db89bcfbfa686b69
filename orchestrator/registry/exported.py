"""What `moetune export` is to write: a version of the registry, or any adapter's folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.registry.registry import Registry
from orchestrator.registry.trained_base import in_training, moved
from workers.adapter import folder as folders
from workers.config.base import InputError
from workers.config.model import ModelSpec

if TYPE_CHECKING:
    from workers.adapter.manifest import BaseRecord


@dataclass(frozen=True)
class Exported:
    """An adapter, and the base that is written with it."""

    name: str
    """NAME@VERSION, or the folder."""
    folder: Path
    model: ModelSpec
    base_name: str
    """The base as it was called in training, where its digest proves that it is that one; else as
    it was named."""
    trained_packed: str | None = None
    """How the base was quantised in training: the checkpoint has its weights as they are."""

    @classmethod
    def of_name(cls, registry: Registry, reference: str, base: str | None) -> "Exported":
        """A name's version; `base` is where its base model is now, if it was moved."""
        version = registry.resolve(reference)
        manifest = registry.manifest(version)
        name = f"{reference.partition('@')[0]}@{version.id}"
        trained = in_training(name, manifest)
        return cls._of(name, version.folder, manifest.base, trained, base)

    @classmethod
    def of_folder(cls, folder: Path, base: str | None) -> "Exported":
        """An adapter in a folder, ours or MixLoRA's or PEFT's; `base` is its base model, where the
        folder does not say it or it has moved."""
        from workers.adapter.config import read_config
        from workers.adapter.manifest import BaseRecord, read_manifest

        config, _ = read_config(folders.existing(folder))
        name, manifest = str(folder), read_manifest(folder)
        record = manifest.base if manifest else None
        record = record or BaseRecord(path=config.base_model_name_or_path or "")
        if not (record.path or base):
            raise InputError(f"{folder}: does not say what its base model is; --base MODEL does")
        trained = in_training(name, manifest) if manifest else ModelSpec(path=record.path)
        return cls._of(name, folder, record, trained, base)

    @classmethod
    def _of(
        cls, name: str, folder: Path, record: "BaseRecord", trained: ModelSpec, base: str | None
    ) -> "Exported":
        """With its base where it is now, by what its files say that need no reading of weights."""
        from workers.models.base import check_weights_alone

        model = trained.model_copy(update={"quantization": None})
        if base is not None:
            model = model.model_copy(update={"path": base, "revision": None})
        try:
            check_weights_alone(model)
        except InputError as error:
            which = "its base" if base is None else "--base (or MOETUNE_BASE)"
            error = InputError(f"{which} {str(error).removeprefix('model.path: ')}")
            if base is None and not Path(model.path).is_dir():
                raise moved(name, record, model, error) from None
            raise InputError(f"{name}: {error}") from None
        proven = record.path if record.digest else None
        return cls(name, folder, model, proven or model.path, trained.quantization)
