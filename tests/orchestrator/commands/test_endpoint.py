"""`moetune serve`: what is wrong with a base is said before a cluster starts."""

import shutil
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.promotion import promote
from orchestrator.registry import Registry
from orchestrator.served_base import served_base
from orchestrator.spec import ClusterSpec
from tests.tiny import write_adapter
from workers.spec import InputError, ModelSpec


def test_a_base_that_has_become_another_is_refused_without_a_cluster(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_model_dir, tmp_path / "base"))
    adapter = write_adapter(base, tmp_path / "adapter", seed=1, num_experts=1, top_k=1)
    place = ClusterSpec(storage=str(tmp_path / "runs"))
    registry = Registry(place.store_url(), place.storage)
    version = registry.register("study", 0, adapter, {"validation": {"loss": 1.0}})
    promote(registry, version, "home", actor="test", metric="validation/loss")
    registry.close()
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(base)
    nowhere = ["--address", "127.0.0.1:1"]  # whoever asks for the cluster first is told of that
    result = CliRunner().invoke(app, ["serve", "home", "--storage", place.storage, *nowhere])
    assert isinstance(result.exception, InputError)
    assert str(result.exception).startswith(f"model.path: {base}: holds an adapter")


def test_a_base_whose_id_is_a_name_is_refused_without_a_cluster(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Requests for `home` could mean either."""
    bases = [Path(shutil.copytree(tiny_model_dir, tmp_path / name)) for name in ("base", "home")]
    place = ClusterSpec(storage=str(tmp_path / "runs"))
    registry = Registry(place.store_url(), place.storage)
    for base, name in zip(bases, ("home", "other"), strict=True):
        adapter = write_adapter(base, tmp_path / f"of-{name}", seed=len(name), num_experts=2)
        version = registry.register("study", 0, adapter, {"validation": {"loss": 1.0}})
        promote(
            registry,
            version,
            name,
            actor="t",
            metric="validation/loss",
            force=True,
            reason="t",
        )
    registry.close()
    nowhere = ["--address", "127.0.0.1:1"]
    result = CliRunner().invoke(app, ["serve", "other", "--storage", place.storage, *nowhere])
    assert isinstance(result.exception, InputError)
    assert str(result.exception).startswith("serve: home is what requests call the base")
    with pytest.raises(InputError, match="serve: home is what"):
        served_base(place.store_url(), place.storage, None, ModelSpec(path=str(bases[1])))
