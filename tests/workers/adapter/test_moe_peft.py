"""Adapters of MoE-PEFT, for six families and its three strategies, against its own outputs."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from workers.adapter.convert import export_folder, import_folder
from workers.adapter.files import inspect, load_into, read, save
from workers.adapter.manifest import BaseRecord, Manifest
from workers.config.base import InputError
from workers.config.model import ModelSpec
from workers.models.compatibility import check_adapter

REFERENCE = Path(__file__).parents[2] / "fixtures" / "golden" / "moe_peft"
WIDER = REFERENCE.parent / "mixlora_llama" / "base"
"""A Llama of 32 features, where these have 16."""
CASES = sorted(path.with_suffix("") for path in REFERENCE.glob("*/*.safetensors"))
ROUTING = {"mixlora": "top_k", "dynamic": "top_p", "dynamic_hot": "top_p", "switch": "switch"}


@pytest.fixture(params=CASES, ids=lambda path: f"{path.parent.name}-{path.name}")
def case(request: pytest.FixtureRequest) -> Path:
    """An adapter folder of the reference; its base and its outputs lie beside it."""
    folder: Path = request.param
    return folder


def base(case: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(case.parent / "base", dtype=torch.float32).eval()


def test_it_computes_what_the_reference_does(case: Path, tmp_path: Path) -> None:
    expected = load_file(case.with_suffix(".safetensors"))
    model = base(case)
    folder = import_folder(case, tmp_path / "ours", model)
    with torch.no_grad():
        bare = model(expected["input_ids"]).logits
        adapter = load_into(model, folder)
        with adapter.record() as records:
            logits = model(expected["input_ids"]).logits
    assert (bare - expected["logits"]).abs().max() > 1, "the adapter must matter"
    torch.testing.assert_close(logits, expected["logits"], atol=2e-5, rtol=0)
    router_logits = torch.cat([record.routing.logits_TE for record in records])
    torch.testing.assert_close(router_logits, expected["router_logits"], atol=1e-4, rtol=0)


def test_it_fits_its_own_base_alone(case: Path) -> None:
    """As its configuration tells, without weights."""
    files = read(case)
    check_adapter(ModelSpec(path=str(case.parent / "base")), files, str(case))
    with pytest.raises(InputError, match=f"^{re.escape(str(case))}: ") as caught:
        check_adapter(ModelSpec(path=str(WIDER)), files, str(case))
    assert "\n" not in str(caught.value)


def test_inspect_tells_its_shape(case: Path) -> None:
    facts = inspect(case)
    config = json.loads((case / "adapter_config.json").read_text())
    assert (facts["format"], facts["experts"]) == ("mixlora", "block")
    assert (facts["routing"], facts["num_experts"], facts["rank"]) == (ROUTING[case.name], 3, 3)
    assert set(facts["target_modules"]) == set(config["target_modules"])
    assert facts["gates"] == (None if case.name == "mixlora" else "raw")
    if case.name == "dynamic_hot":
        assert facts["gate_scale"] == pytest.approx(1 / 0.8)
        assert facts["top_p"] == pytest.approx(0.7 * 0.8)
    if case.name == "switch":
        assert (facts["expert_capacity"], facts["router_jitter"]) == (32, 0.01)


def test_it_goes_back_as_it_came(case: Path, tmp_path: Path) -> None:
    back = export_folder(import_folder(case, tmp_path / "ours"), tmp_path / "back", as_bin=True)
    source = load_file(case / "adapter_model.safetensors")
    written = torch.load(back / "adapter_model.bin", weights_only=True)
    assert written.keys() == source.keys()
    assert all(torch.equal(written[name], source[name]) for name in source)
    configs = [json.loads((f / "adapter_config.json").read_text()) for f in (case, back)]
    assert configs[0] == configs[1]


def test_saved_by_us_it_still_has_the_words_of_the_reference(case: Path, tmp_path: Path) -> None:
    """Through the layers and out again, as training on does."""
    adapter = load_into(base(case), case)
    save(adapter, tmp_path / "saved", Manifest(base=BaseRecord(path=case.parent.name)))
    assert read(tmp_path / "saved").spec == read(case).spec
    theirs = json.loads((case / "adapter_config.json").read_text())
    ours = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    routing = ("peft_type", "routing_strategy", "num_experts", "top_k", "expert_capacity")
    assert {key: ours.get(key) for key in routing} == {key: theirs.get(key) for key in routing}
    for key in ("top_p", "temperature"):
        assert ours.get(key) == pytest.approx(theirs.get(key))
    source = load_file(case / "adapter_model.safetensors")
    written = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert written.keys() == source.keys()
    if "expert_lora" not in theirs:  # Its experts' rank and scale are folded in.
        assert all(torch.equal(written[name], source[name].float()) for name in source)
