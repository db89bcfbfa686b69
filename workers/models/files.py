"""The files of a base model: its folder, or the hub's copy of it here."""

from pathlib import Path

from huggingface_hub import snapshot_download

from workers.config.model import ModelSpec
from workers.models.base import loading_options, readable

_WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.jinja", "*.model")
_ALSO = ("*.tiktoken", "LICENSE*", "NOTICE*")


def base_folder(spec: ModelSpec) -> Path:
    """Where the base's files lie; those that the hub has and this machine lacks are fetched.
    InputError where they cannot be had."""
    if Path(spec.path).is_dir():
        return Path(spec.path)
    options = loading_options(spec)
    with readable(spec):
        return Path(
            snapshot_download(
                spec.path,
                revision=options["revision"],
                local_files_only=options["local_files_only"],
                allow_patterns=[*_WANTED, *_ALSO],
                ignore_patterns=["*/*"],
            )
        )
