"""The adapter that the reference implementation wrote, and what it computes with it."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from workers.adapter.convert import export_folder, import_folder
from workers.adapter.files import attach, load_into, read, save
from workers.adapter.manifest import BaseRecord, Manifest
from workers.config.losses import LossSpec
from workers.injection.inject import row_map
from workers.layers.routing.base import Routing
from workers.losses.auxiliary import RoutedLayer, load_balance


def test_the_imported_adapter_computes_what_the_reference_does(
    golden: Path, model: PreTrainedModel, tmp_path: Path
) -> None:
    expected = load_file(golden / "expected.safetensors")
    bare = model(expected["input_ids"]).logits
    folder = import_folder(golden / "adapter", tmp_path / "ours", model)
    adapter = load_into(model, folder)
    with torch.no_grad(), adapter.record() as records:
        logits = model(expected["input_ids"]).logits
    assert (bare - expected["logits"]).abs().max() > 0.01, "the adapter must matter"
    torch.testing.assert_close(logits, expected["logits"], atol=1e-5, rtol=0)
    router_logits = torch.cat([record.routing.logits_TE for record in records])
    torch.testing.assert_close(router_logits, expected["router_logits"], atol=1e-4, rtol=0)
    # Theirs runs over all layers' tokens together, does not divide by K, and is weighted by 0.001.
    each = zip(*(record.routing[:3] for record in records), strict=True)
    together = Routing(*map(torch.cat, each))
    theirs = 0.001 * adapter.spec.top_k * load_balance(RoutedLayer(together), LossSpec())
    torch.testing.assert_close(theirs.reshape(1), expected["aux_loss"], atol=1e-8, rtol=1e-4)


def test_the_bin_folder_attaches_as_it_is_and_comes_off_again(
    golden: Path, model: PreTrainedModel
) -> None:
    expected = load_file(golden / "expected.safetensors")
    with torch.no_grad():
        bare = model(expected["input_ids"]).logits
        logits = attach(model, golden / "adapter", slot="x@1")(expected["input_ids"]).logits
        torch.testing.assert_close(logits, expected["logits"], atol=1e-5, rtol=0)
        with row_map(model).everywhere(None):
            assert torch.equal(model(expected["input_ids"]).logits, bare)


def test_export_writes_the_reference_files_back_bit_for_bit(golden: Path, tmp_path: Path) -> None:
    source = torch.load(golden / "adapter" / "adapter_model.bin", weights_only=True)
    ours = import_folder(golden / "adapter", tmp_path / "ours")
    back = export_folder(ours, tmp_path / "back", "mixlora", as_bin=True)
    plain = export_folder(ours, tmp_path / "plain")
    assert {path.name for path in back.iterdir()} == {"adapter_config.json", "adapter_model.bin"}
    written = torch.load(back / "adapter_model.bin", weights_only=True)
    for tensors in (written, load_file(plain / "adapter_model.safetensors")):
        assert tensors.keys() == source.keys()
        assert all(torch.equal(tensors[name], source[name]) for name in source)
    assert not (plain / "adapter_model.bin").exists()
    config = (golden / "adapter" / "adapter_config.json").read_text()
    assert json.loads((back / "adapter_config.json").read_text()) == json.loads(config)


def test_saving_the_attached_adapter_writes_the_reference_tensors(
    golden: Path, model: PreTrainedModel, tmp_path: Path
) -> None:
    """Through the layers and out again: stacking, unstacking and names lose nothing."""
    adapter = load_into(model, golden / "adapter")
    save(adapter, tmp_path / "saved", Manifest(base=BaseRecord(path="base")))
    source = torch.load(golden / "adapter" / "adapter_model.bin", weights_only=True)
    written = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert written.keys() == source.keys()
    assert all(torch.equal(written[name], source[name]) for name in source)
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    theirs = json.loads((golden / "adapter" / "adapter_config.json").read_text())
    theirs["target_modules"] = config["target_modules"] = set()
    assert {**config, "act_fn": "silu"} == {**theirs, "use_rslora": False}
    assert read(tmp_path / "saved").spec == read(golden / "adapter").spec
