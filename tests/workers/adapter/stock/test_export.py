"""A checkpoint is whole or not there, and what it takes is known before."""

import json
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

from tests.workers.adapter.stock.models import (
    adapted_logits,
    ids,
    planned,
    stock,
    write_adapter,
    write_base,
)
from workers.adapter.files import load_into
from workers.adapter.folder import WriteError
from workers.adapter.stock.plan import NewTensor
from workers.adapter.stock.room import check_target
from workers.config.base import InputError


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base", "llama")


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    return write_adapter(base, tmp_path / "adapter")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """In a folder of its own: what is left beside it shows."""
    return tmp_path / "to" / "out"


def rewrite(base: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(base / "model.safetensors")
    change(tensors)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


def test_it_says_what_it_takes(base: Path, adapter: Path, out: Path) -> None:
    plan = planned(base, adapter, "bfloat16")
    told: list[str] = []
    plan.write(out, told.append)
    stored = load_file(out / "model.safetensors")
    assert plan.facts.parameters == sum(tensor.numel() for tensor in stored.values())
    assert plan.facts.bytes == sum(tensor.nbytes for tensor in stored.values())
    assert plan.facts.base_parameters == AutoModelForCausalLM.from_pretrained(base).num_parameters()
    assert plan.memory > plan.facts.bytes
    assert plan.told().startswith("MixtralForCausalLM, bfloat16: 0.10 MB on disk, the base alone ")
    assert told == ["writing model.safetensors"]


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_updates_are_rounded_once(base: Path, adapter: Path, tmp_path: Path, dtype: str) -> None:
    """A base in bfloat16 too is merged in float32."""
    model = AutoModelForCausalLM.from_pretrained(base).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "coarse")
    adapter = write_adapter(tmp_path / "coarse", tmp_path / "of coarse")
    planned(tmp_path / "coarse", adapter, "float32").write(tmp_path / "fine", print)
    planned(tmp_path / "coarse", adapter, dtype).write(tmp_path / "out", print)
    fine, rounded = (load_file(tmp_path / one / "model.safetensors") for one in ("fine", "out"))
    for name, tensor in fine.items():
        assert torch.equal(tensor.to(getattr(torch, dtype)), rounded[name]), name
    expected = adapted_logits(tmp_path / "coarse", adapter)
    torch.testing.assert_close(stock(tmp_path / "fine")(ids()).logits, expected, atol=1e-5, rtol=0)
    own = planned(tmp_path / "coarse", adapter)
    assert own.dtype == torch.bfloat16, "left out, the precision is the base's"


@torch.no_grad()
def test_several_files_are_one_checkpoint(base: Path, adapter: Path, out: Path) -> None:
    plan = planned(base, adapter)
    several = replace(plan, shards=[[one] for shard in plan.shards for one in shard])
    assert several.memory < plan.memory
    several.write(out, print)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == plan.facts.bytes
    assert {path.name for path in out.glob("*.safetensors")} == set(index["weight_map"].values())
    expected = adapted_logits(base, adapter)
    torch.testing.assert_close(stock(out)(ids()).logits, expected, atol=1e-5, rtol=0)
    # And of a base in several files.
    model = AutoModelForCausalLM.from_pretrained(base)
    shutil.rmtree(base)
    model.save_pretrained(base, max_shard_size="20kB")
    assert len(list(base.glob("*.safetensors"))) > 1
    again = out.with_name("again")
    planned(base, adapter).write(again, print)
    torch.testing.assert_close(stock(again)(ids()).logits, expected, atol=1e-5, rtol=0)


def test_files_are_as_readable_as_the_users_mask_has_it(
    base: Path, adapter: Path, out: Path
) -> None:
    planned(base, adapter).write(out, print)
    modes = {path.name: path.stat().st_mode & 0o777 for path in out.iterdir()}
    assert len(set(modes.values())) == 1, modes


@pytest.mark.parametrize("what", ["disk", "memory"])
def test_too_little_room_is_said_before_anything_is_written(
    base: Path, adapter: Path, out: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    plan = planned(base, adapter)
    if what == "disk":
        few = type(shutil.disk_usage("/"))(10, 10, 2**20)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: few)
    else:
        free = psutil.virtual_memory()._replace(available=2**20)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    said = {
        "disk": r"takes 0\.19 MB and 0\.07 GB to spare, and the disk has 1\.05 MB free",
        "memory": r"takes .* of memory, and 1\.05 MB are free",
    }
    with pytest.raises(InputError, match=said[what]):
        plan.write(out, print)
    assert not out.parent.exists()


def interrupted_by(act: Callable[[], object], base: Path, adapter: Path, out: Path) -> None:
    """Writes one tensor a file, and does that before the last of them."""
    plan = planned(base, adapter)
    files = [[one] for shard in plan.shards for one in shard]
    last = files[-1][0]

    def make() -> torch.Tensor:
        act()
        return last.make()

    files[-1] = [NewTensor(last.name, last.shape, make)]
    replace(plan, shards=files).write(out, print)


def test_what_came_to_the_target_meanwhile_stays(base: Path, adapter: Path, out: Path) -> None:
    def come() -> None:
        out.mkdir()
        (out / "mine.txt").write_text("mine")

    with pytest.raises(InputError, match="is not empty"):
        interrupted_by(come, base, adapter, out)
    assert [path.name for path in out.parent.rglob("*")] == ["out", "mine.txt"]


def test_an_interrupted_export_leaves_nothing(base: Path, adapter: Path, out: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted_by(lambda: signal.raise_signal(signal.SIGINT), base, adapter, out)
    assert list(out.parent.iterdir()) == []


@contextmanager
def no_file_grows_beyond(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_nothing(base: Path, adapter: Path, out: Path) -> None:
    with no_file_grows_beyond(50_000), pytest.raises(WriteError, match="out: cannot be written: "):
        planned(base, adapter).write(out, print)
    assert list(out.parent.iterdir()) == []


def test_an_empty_folder_is_filled_and_a_full_one_refused(
    base: Path, adapter: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out.mkdir(parents=True)
    check_target(out)
    planned(base, adapter).write(out, print)
    with pytest.raises(InputError, match="is not empty"):
        check_target(out)
    with pytest.raises(InputError, match="is a file"):
        check_target(out / "README.md")
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    link = out.with_name("link")
    link.symlink_to("nowhere")
    with pytest.raises(InputError, match="is a file"):
        check_target(link)
    link.unlink()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == out.parent)
    shutil.rmtree(out)
    with pytest.raises(InputError, match="is where a disk is mounted"):
        check_target(out.parent)


def test_the_folder_one_is_in_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which `new_folder` would replace, and leave the shell in one that is gone."""
    here = tmp_path / "mine" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    for word in (".", str(here), "../here"):
        with pytest.raises(InputError, match=rf"{re.escape(word)}: is the folder you are in; name"):
            check_target(Path(word))
    for word in ("..", str(tmp_path), "/"):
        with pytest.raises(InputError, match=rf"{re.escape(word)}: holds the folder you are in"):
            check_target(Path(word))
    check_target(Path("new"))
    check_target(Path("../there"))


def test_another_base_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    other = write_base(tmp_path / "other", "llama", intermediate_size=40)
    with pytest.raises(InputError, match=r"name@1: belongs to another base model, .*base: "):
        planned(other, adapter)
    # An adapter that knows no base's digest is told by its shape.
    (adapter / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"layers\.0\.mlp\.down_proj has 40 to 32 features"):
        planned(other, adapter)
    deeper = write_base(tmp_path / "deeper", "llama", num_hidden_layers=3)
    with pytest.raises(InputError, match=r"it has no tensors for layers\.2\.mlp"):
        planned(deeper, adapter)
    flatter = write_base(tmp_path / "flatter", "llama", num_hidden_layers=1)
    with pytest.raises(InputError, match=r"adapts a linear that is not there, layers\.1\.mlp"):
        planned(flatter, adapter)


def test_an_adapter_of_another_tower_is_refused(base: Path, tmp_path: Path, out: Path) -> None:
    """Its layers are counted as the decoder's are, and its linears may be as large."""
    adapter = write_adapter(
        base, tmp_path / "plain", num_experts=1, top_k=1, target_modules=["q_proj"]
    )
    weights = adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    assert all(".model.layers." in name for name in tensors)
    tower = {
        name.replace(".model.layers.", ".vision_tower.layers."): tensors[name] for name in tensors
    }
    assert tower.keys().isdisjoint(tensors)
    save_file(tower, weights)
    (adapter / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"name@1: .* adapts vision_tower\.layers\.0\.self_attn"):
        planned(base, adapter)


def test_an_update_beyond_float16_is_refused(base: Path, tmp_path: Path, out: Path) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", alpha=1e8)
    with pytest.raises(InputError, match=r"in float16: .*nothing was written; take --dtype b"):
        planned(base, adapter, "float16").write(out, print)
    assert list(out.parent.iterdir()) == []


@torch.no_grad()
def test_a_bases_files_may_call_its_weights_otherwise(
    base: Path, adapter: Path, out: Path, tmp_path: Path
) -> None:
    """Without the model's prefix, with tensors that no model has, with a tied head's copy."""
    expected = adapted_logits(base, adapter)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)
        tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    rewrite(base, change)
    (adapter / "manifest.json").unlink()  # whose digest has not that tensor
    planned(base, adapter).write(out, print)
    torch.testing.assert_close(stock(out)(ids()).logits, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("factor", [None, 1.0, 0.5], ids=["tied", "there too", "another"])
def test_a_tied_head_is_written(tmp_path: Path, out: Path, factor: float | None) -> None:
    """Of a base that says it is tied and has one in its files, transformers takes that."""
    base = write_base(tmp_path / "tied", "llama", tie_word_embeddings=True)
    if factor is not None:
        rewrite(
            base, lambda t: t.update({"lm_head.weight": factor * t["model.embed_tokens.weight"]})
        )
    adapter = write_adapter(base, tmp_path / "adapter")
    planned(base, adapter).write(out, print)
    written = load_file(out / "model.safetensors")
    expected_head = (factor or 1.0) * written["model.embed_tokens.weight"]
    assert torch.equal(written["lm_head.weight"], expected_head)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    expected = adapted_logits(base, adapter)
    torch.testing.assert_close(stock(out)(ids()).logits, expected, atol=1e-5, rtol=0)
    # Plain LoRA stays tied.
    plain = write_adapter(base, tmp_path / "plain", num_experts=1, top_k=1)
    planned(base, plain).write(out.with_name("dense"), print)
    dense = load_file(out.with_name("dense") / "model.safetensors")
    assert ("lm_head.weight" in dense) == (factor is not None)


@torch.no_grad()
@pytest.mark.parametrize("experts", [{"num_experts": 1, "top_k": 1}, {}], ids=["lora", "mixture"])
def test_masks_in_a_bases_files_are_no_weights(
    base: Path, tmp_path: Path, out: Path, experts: dict[str, object]
) -> None:
    """Older files of GPT-2 and GPT-NeoX hold them; a dense checkpoint has them as they were."""
    adapter = write_adapter(base, tmp_path / "adapter", **experts)
    expected = adapted_logits(base, adapter)
    (adapter / "manifest.json").unlink()
    masks = {
        "model.layers.0.attention.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool).tril(),
        "model.layers.0.attention.masked_bias": torch.tensor(-1e9),
        "model.layers.0.attention.rotary_emb.inv_freq": torch.rand(4),
    }
    rewrite(base, lambda tensors: tensors.update(masks))
    plan = planned(base, adapter, "float16")
    plan.write(out, print)
    written = load_file(out / "model.safetensors")
    assert plan.facts.bytes == sum(tensor.nbytes for tensor in written.values())
    for name, mask in masks.items():
        assert (name in written) == bool(experts)
        if experts:
            assert written[name].dtype == mask.dtype
            assert torch.equal(written[name], mask)
    fine = planned(base, adapter)
    fine.write(out.with_name("fine"), print)
    model = AutoModelForCausalLM.from_pretrained(out.with_name("fine"))
    torch.testing.assert_close(model(ids()).logits, expected, atol=1e-5, rtol=0)


def test_a_base_that_lacks_a_weight_or_has_packed_ones_is_refused(
    base: Path, adapter: Path
) -> None:
    (adapter / "manifest.json").unlink()
    rewrite(base, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(InputError, match=r"its files lack model\.norm\.weight"):
        planned(base, adapter)
    rewrite(base, lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.weight"))
    with pytest.raises(InputError, match=r"has no tensor model\.layers\.0\.mlp\.up_proj\.weight"):
        planned(base, adapter)
    packed = {"model.norm.weight": torch.ones(32, dtype=torch.int8)}
    rewrite(base, lambda tensors: tensors.update(packed))
    with pytest.raises(InputError, match=r"tensor model\.norm\.weight is I8; a base is exported"):
        planned(base, adapter)
    (base / "model.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(InputError, match="cannot be read"):
        planned(base, adapter)


GREEDY = {"do_sample": False, "max_new_tokens": 20, "pad_token_id": 0}
HABITS = {"do_sample": True, "temperature": 0.7, "repetition_penalty": 5.0, "top_k": 20}


@torch.no_grad()
@pytest.mark.parametrize("shape", [{}, {"num_experts": 1, "top_k": 1}], ids=["mixture", "plain"])
def test_a_bases_habits_stay_behind(
    base: Path, adapter: Path, out: Path, shape: dict[str, object]
) -> None:
    """moetune's own engine drops them, and an adapter is measured by it."""
    tokens = {"bos_token_id": 1, "eos_token_id": [2, 3], "transformers_version": "5.0.0"}
    path = base / "generation_config.json"
    path.write_text(json.dumps({**tokens, **HABITS}))
    adapter = write_adapter(base, adapter.with_name("of habits"), **shape)
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    load_into(model, adapter)
    penalised = model.generate(ids(), **GREEDY)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[2, 3])
    expected = model.generate(ids(), **GREEDY)
    assert not torch.equal(penalised, expected), "the penalty must matter"
    planned(base, adapter).write(out, print)
    assert torch.equal(stock(out).generate(ids(), **GREEDY), expected)
    assert json.loads((out / "generation_config.json").read_text()) == tokens


def test_a_base_without_a_generation_config_has_none(base: Path, adapter: Path, out: Path) -> None:
    (base / "generation_config.json").unlink(missing_ok=True)
    planned(base, adapter).write(out, print)
    assert not (out / "generation_config.json").exists()
