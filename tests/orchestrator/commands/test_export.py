"""`moetune export`: a version, or any adapter's folder, as an ordinary checkpoint."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from tests.tiny import with_template
from tests.workers.adapter.stock.models import write_adapter, write_base
from workers.adapter.convert import import_folder
from workers.adapter.files import attach
from workers.config.base import InputError

GOLDEN = Path(__file__).parents[2] / "fixtures" / "golden" / "mixlora_llama"


def export(*words: object) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, words)])


def refused(*words: object) -> str:
    """What it says, in one line; `main` prints it and exits with 2."""
    result = export(*words)
    assert isinstance(result.exception, InputError | OSError), result.output
    said = str(result.exception)
    assert "\n" not in said
    return said


@pytest.fixture
def promoted(
    tmp_path: Path, make_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Registry:
    """A registry with two versions of `home` in `runs`, the second its champion."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    registry = Registry(f"sqlite:///{tmp_path}/runs/moetune.db", tmp_path / "runs")
    for number in (1, 2):
        version = registry.register("a-study", number, make_adapter(number), {})
        promote(
            registry, version, "home", actor="t", metric="validation/loss", reason="t", force=True
        )
    return registry


def test_moe_pefts_own_adapter_computes_the_same(tmp_path: Path) -> None:
    result = export(GOLDEN / "adapter", "--base", GOLDEN / "base", "--to", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "MixtralForCausalLM, float32: 0.19 MB on disk" in result.stderr
    assert "the base has no tokenizer" in result.stderr
    assert result.stdout == f"exported {GOLDEN / 'adapter'} to {tmp_path / 'out'}\n"
    expected = load_file(GOLDEN / "expected.safetensors")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    logits = model(expected["input_ids"]).logits
    torch.testing.assert_close(logits, expected["logits"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("champion", [True, False])
def test_a_names_version_is_written_with_all_that_its_base_has(
    promoted: Registry, tiny_model_dir: Path, tmp_path: Path, champion: bool
) -> None:
    version = promoted.versions()[int(champion)]
    name = "home" if champion else f"home@{version.id}"
    result = export(name, "--to", "out", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["name"] == f"home@{version.id}"
    assert (told["digest"], told["study"], told["trial"]) == (
        version.digest,
        "a-study",
        version.trial,
    )
    assert told["bytes"] < (tmp_path / "out" / "model.safetensors").stat().st_size
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_model_dir).chat_template
    ids = torch.tensor([tokenizer("how warm is it?").input_ids])
    ours = attach(AutoModelForCausalLM.from_pretrained(tiny_model_dir), version.folder)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(stock(ids).logits, ours(ids).logits, atol=1e-5, rtol=0)
    card = (tmp_path / "out" / "README.md").read_text()
    for fact in (f"home@{version.id}", version.digest, "a-study", tiny_model_dir.name, "Mixtral"):
        assert fact in card
    assert str(tiny_model_dir) not in card, "where it lies here is nobody's business"


@pytest.mark.parametrize("shape", [{}, {"num_experts": 1, "top_k": 1}], ids=["mixture", "lora"])
def test_an_adapters_own_chat_template_goes_along(
    make_adapter: Callable[..., Path], tmp_path: Path, shape: dict[str, int]
) -> None:
    own = (
        "{% for m in messages %}({{ m['content'] }}{% for c in m.tool_calls or [] %}"
        "{{ c.function | tojson + '<|im_start|>' }}{% else %}{{ '<|endoftext|>' }}{% endfor %}"
        "{% endfor %}"
    )
    folder = with_template(make_adapter(4, **shape), tmp_path / "own", own)
    result = export(folder, "--to", tmp_path / "out")
    assert result.exit_code == 0, result.output
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == own
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    for end in ("<|endoftext|>", "<|im_start|>"):  # of a text, and of a call
        assert tokenizer.convert_tokens_to_ids(end) in generation["eos_token_id"]
    assert tokenizer.eos_token_id in generation["eos_token_id"]
    assert "| chat template | the adapter's own |" in (tmp_path / "out" / "README.md").read_text()


def test_what_cannot_be_is_said_in_one_line(
    promoted: Registry, tmp_path: Path, make_adapter: Callable[..., Path]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "full: is not empty; name a new folder" in refused("home", "--to", "full")
    assert "nothing was promoted to this name" in refused("work", "--to", "out")
    assert "no such adapter folder" in refused("./work", "--to", "out")
    raw = make_adapter(3, gates="raw")
    assert "cannot be a checkpoint: gates: raw" in refused(raw, "--to", "out")
    assert "another base model" in refused("home", "--base", GOLDEN / "base", "--to", "out")
    gone = refused(GOLDEN / "adapter", "--to", "out")
    assert "no such folder" in gone
    assert "--base PATH says where it is now" in gone
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "runs"]


def test_a_base_whose_index_is_broken_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(GOLDEN / "base", base)
    (base / "model.safetensors").rename(base / "model-1.safetensors")
    (base / "model.safetensors.index.json").write_text('{"weight_map": []}')
    said = refused(GOLDEN / "adapter", "--base", base, "--to", tmp_path / "out")
    assert "model.safetensors.index.json: must have a weight_map of tensors to files" in said


def test_a_folder_needs_no_slash_and_a_name_goes_before_it(
    promoted: Registry, tmp_path: Path
) -> None:
    for name in ("tiny", "home"):
        shutil.copytree(GOLDEN / "base", tmp_path / name)
    said = refused("tiny", "--to", "out", "--storage", "elsewhere")
    assert said.startswith("tiny: ")
    assert "elsewhere" not in said
    result = export("home", "--to", "out")
    assert result.exit_code == 0, result.output
    assert "exported home@" in result.stdout


def test_a_moved_base_is_asked_for_and_found(
    promoted: Registry, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version's base is known by its digest."""
    gone = tmp_path / "gone"
    adapter = tmp_path / "adapter"
    import_folder(promoted.versions()[1].folder, adapter)
    manifest = json.loads((adapter / "manifest.json").read_text())
    manifest["base"] |= {"path": str(gone)}
    (adapter / "manifest.json").write_text(json.dumps(manifest))
    said = refused(adapter, "--to", "out")
    assert f"its base model tiny-llama is not at {gone} any more" in said
    assert said.endswith("--base PATH says where it is now")
    monkeypatch.setenv("MOETUNE_BASE", "../gone")
    said = refused(adapter, "--to", "out")
    assert f"{adapter}: --base (or MOETUNE_BASE) ../gone: no such folder" in said
    result = export(adapter, "--to", "out", "--base", tiny_model_dir, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["base"] == str(gone), "by its name in training"


def test_a_base_that_nothing_proves_is_called_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter of another tool knows no digest: whoever gives a base says which it is."""
    for name in ("tiny", "other"):
        shutil.copytree(GOLDEN / "base", tmp_path / name)
    shutil.copytree(GOLDEN / "adapter", tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    values = json.loads(config.read_text()) | {"base_model_name_or_path": "tiny"}
    config.write_text(json.dumps(values))
    monkeypatch.chdir(tmp_path)
    for given, base in ((None, "tiny"), ("other", "other")):
        if given:
            monkeypatch.setenv("MOETUNE_BASE", given)
        result = export("./adapter", "--to", f"of-{base}")
        assert result.exit_code == 0, result.output
        assert result.stderr.splitlines()[0].endswith(f"; base: {base}")
        assert f'base_model: "{base}"' in (tmp_path / f"of-{base}" / "README.md").read_text()


def test_a_base_that_was_quantised_in_training_is_written_as_it_is(
    tiny_model_dir: Path, tmp_path: Path, make_adapter: Callable[..., Path]
) -> None:
    """And the package that packed it is not asked for."""
    adapter = tmp_path / "adapter"
    import_folder(make_adapter(4), adapter)
    manifest = json.loads((adapter / "manifest.json").read_text())
    manifest["spec"] = {"model": {"path": str(tiny_model_dir), "quantization": "bnb_nf4"}}
    (adapter / "manifest.json").write_text(json.dumps(manifest))
    result = export(adapter, "--to", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "it was trained beside a base rounded to bnb_nf4; the checkpoint has" in result.stderr


def test_each_of_the_two_exports_names_the_other() -> None:
    both = {
        words: " ".join(CliRunner().invoke(app, [*words, "--help"]).stdout.split())
        for words in (("export",), ("adapter", "export"))
    }
    assert "moetune adapter export" in both["export",]
    assert "moetune export" in both["adapter", "export"]


def test_it_says_which_engine_computes_something_else(tmp_path: Path) -> None:
    for family, said in (("qwen2", True), ("llama", False)):
        folder = tmp_path / family
        base = write_base(folder / "base", family)
        result = export(write_adapter(base, folder / "adapter"), "--to", folder / "out")
        assert result.exit_code == 0, result.output
        assert ("llama.cpp does not renormalise the gates" in result.stderr) == said
