"""Saving and loading, and everything that must be refused without touching the model."""

import gc
import json
import os
import pickle
import resource
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from workers.adapter import folder as folders
from workers.adapter.convert import export_folder, import_folder
from workers.adapter.files import attach, inspect, load_into, read, save
from workers.adapter.manifest import BaseRecord, Manifest
from workers.config.adapter import AdapterSpec
from workers.config.base import InputError
from workers.injection.inject import inject

GOLDEN = Path(__file__).parents[2] / "fixtures" / "golden" / "mixlora_llama"
WEIGHTS, PICKLED = folders.WEIGHTS, folders.PICKLED
ROUTER = "mixlora.layers.1.mlp.moe_gate.weight"
EXPERT = "mixlora.layers.0.mlp.up_proj.experts.2.lora_B.weight"
QUERY = "mixlora.layers.1.self_attn.q_proj.lora_A.weight"

SHAPES = {
    "block": {},
    "block of some linears": {"target_modules": ("v_proj", "gate_proj"), "use_rslora": True},
    "all but some": {"exclude_modules": ("self_attn.q_proj", "up_proj")},
    "a layer by pattern": {
        "target_modules": r".*\.1\.(mlp|self_attn)\..*",
        "exclude_modules": r".*\.[ko]_proj",
    },
    "plain by pattern": {"target_modules": r".*\.0\.mlp\..*", "num_experts": 1, "top_k": 1},
    "linears by pattern": {"target_modules": r".*\.[qv]_proj", "experts": "linear"},
    "linear": {"experts": "linear", "top_k": 3},
    "plain": {"num_experts": 1, "top_k": 1, "dropout": 0.0},
    "top_p": {"routing": "top_p", "top_p": 0.6, "router_temperature": 0.5},
    "switch": {"routing": "switch", "experts": "linear"},
    "shared A": {"shared_a": True, "rank": 5},
    "experts by layer": {"num_experts": (2, 5)},
    "dora": {"use_dora": True, "target_modules": ("q_proj", "gate_proj", "up_proj")},
    "dora of linears": {"use_dora": True, "experts": "linear", "num_experts": (1, 3), "top_k": 1},
    "copies": {"train_also": ("embed_tokens", "lm_head")},
    "copies of linears": {"train_also": ("lm_head", "embed_tokens"), "experts": "linear"},
    "rows of tokens": {"train_tokens": (40, 9), "train_tokens_of": ("embed_tokens",)},
    "dora plain": {"use_dora": True, "num_experts": 1, "top_k": 1},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_saved_is_what_is_read_and_attached(
    shape: str, saved: Callable[..., Path], model: PreTrainedModel, ids: torch.Tensor
) -> None:
    folder = saved(**SHAPES[shape])
    files = read(folder)
    adapter = inject(model, files.spec, seed=5)
    adapter.load_state_dict(files.tensors)
    with torch.no_grad():
        expected = model(ids).logits
        adapter.remove()
        bare = model(ids).logits
        attached = attach(model, folder)(ids).logits
    assert torch.equal(attached, expected)
    assert (attached - bare).abs().max() > 1e-3
    assert files.manifest is not None
    assert (files.manifest.study, files.manifest.trial) == ("s", 3)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_shape_survives(shape: str, saved: Callable[..., Path]) -> None:
    given = AdapterSpec.model_validate({"num_experts": 4, "rank": 4, "alpha": 8.0, **SHAPES[shape]})
    found = read(saved(**SHAPES[shape])).spec
    if given.names_linears:
        assert found == given
        return
    seven = {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    attention = {f"self_attn.{name}_proj" for name in "qkvo"}
    mlp = {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    named = {
        "all but some": (attention | mlp) - {"self_attn.q_proj", "mlp.up_proj"},
        "a layer by pattern": {
            f"layers.1.{one}"
            for one in (attention | mlp) - {"self_attn.k_proj", "self_attn.o_proj"}
        },
        "plain by pattern": {f"layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")},
        "linears by pattern": {
            f"layers.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in "qv"
        },
    }
    assert set(found.target_modules) == named.get(shape, seven)
    same = {name: getattr(given, name) for name in ("target_modules", "exclude_modules")}
    assert found.model_copy(update=same) == given


def test_saving_again_replaces_the_adapter_and_leaves_nothing_behind(
    saved: Callable[..., Path],
) -> None:
    first = read(saved(seed=1)).tensors
    folder = saved(seed=2)
    second = read(folder).tensors
    assert not torch.equal(
        first["layers.0.mlp.router.weight"], second["layers.0.mlp.router.weight"]
    )
    assert os.listdir(folder.parent) == [folder.name]


def test_what_a_killed_writer_left_keeps_nobody_from_saving(saved: Callable[..., Path]) -> None:
    folder = saved(seed=1)
    for name in (".adapter.old", ".adapter.0123456789abcdef"):
        shutil.copytree(folder, folder.parent / name)
    first = read(folder).tensors["layers.0.mlp.router.weight"]
    assert not torch.equal(first, read(saved(seed=2)).tensors["layers.0.mlp.router.weight"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_adapter_is_not_saved_and_the_former_one_stays(
    value: float, saved: Callable[..., Path], model: PreTrainedModel
) -> None:
    folder = saved()
    before = (folder / WEIGHTS).read_bytes()
    adapter = load_into(model, folder)
    next(adapter.parameters()).data[0] = value
    with pytest.raises(InputError, match="values that are not finite"):
        save(adapter, folder, Manifest(base=BaseRecord(path="b")))
    assert (folder / WEIGHTS).read_bytes() == before
    assert os.listdir(folder.parent) == [folder.name]


def test_an_empty_parameter_is_not_saved(model: PreTrainedModel, tmp_path: Path) -> None:
    """What a gather forgotten under ZeRO-3 would write."""
    adapter = inject(model, AdapterSpec(num_experts=1, top_k=1))
    next(adapter.parameters()).data = torch.empty(1, 0, 32)
    with pytest.raises(InputError, match="has no elements"):
        save(adapter, tmp_path / "a", Manifest(base=BaseRecord(path="b")))
    assert not (tmp_path / "a").exists()


def test_a_folder_with_other_files_is_not_replaced(
    saved: Callable[..., Path], tmp_path: Path
) -> None:
    source, home = saved(), tmp_path / "home"
    home.mkdir()
    (home / "journal.txt").write_text("dear journal")
    with pytest.raises(InputError, match=r"holds other files \(journal.txt\)"):
        import_folder(source, home)
    with pytest.raises(InputError, match="is the source itself"):
        import_folder(source, source)
    assert os.listdir(home) == ["journal.txt"]


def test_a_file_where_the_folder_should_go_is_one_clear_line(
    saved: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("")
    for target in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(InputError, match="cannot be written: Not a directory"):
            import_folder(saved(), target)


@pytest.mark.parametrize("as_bin", [False, True])
def test_a_full_disk_is_one_clear_line_and_leaves_nothing(
    as_bin: bool, saved: Callable[..., Path], tmp_path: Path
) -> None:
    folder = saved()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(InputError, match="cannot be written") as refused:
            export_folder(folder, tmp_path / "copy", as_bin=as_bin)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(refused.value)
    assert os.listdir(tmp_path) == [folder.name]


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """A damage that rewrites the weights; the manifest goes, as it would notice at once."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)
        (folder / folders.MANIFEST).unlink()

    return damage


def edit_config(**values: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / folders.CONFIG
        config = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({k: v for k, v in config.items() if v != "gone"}))
        (folder / folders.MANIFEST).unlink()

    return damage


def as_bin(content: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / folders.MANIFEST).unlink()
        if isinstance(content, bytes):
            (folder / PICKLED).write_bytes(content)
        else:
            torch.save(content, folder / PICKLED)

    return damage


def link(name: str, target: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        place = folder / target
        (folder / name).rename(place)
        (folder / name).symlink_to(place)

    return damage


def truncate(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    (folder / folders.MANIFEST).unlink()


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-5] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def in_four_bits(folder: Path) -> None:
    """As safetensors may hold what torch has no type for."""
    content = (folder / WEIGHTS).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header[QUERY] |= {"dtype": "F4", "shape": [4, 256]}
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    (folder / folders.MANIFEST).unlink()


class Evil:
    """A pickle that would run a command."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/moetune-was-here",)


LONG_INDEX = f".{'2' * 5000}."
huge = torch.zeros(1).expand(2**20, 2**20)
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, "is damaged"),
    "flipped bit": (flip_a_bit, "is not the file that its manifest describes"),
    "garbage": (lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 99), "manifest describes"),
    "no weights": (
        lambda f: [(f / WEIGHTS).unlink(), (f / folders.MANIFEST).unlink()],
        "has neither adapter_model.safetensors nor adapter_model.bin",
    ),
    "no config": (lambda f: (f / folders.CONFIG).unlink(), "has no adapter_config.json"),
    "missing router": (edit_tensors(lambda t: t.pop(ROUTER)), "lacks its moe_gate.weight"),
    "missing expert": (edit_tensors(lambda t: t.pop(EXPERT)), "lacks expert 2"),
    "missing A": (edit_tensors(lambda t: t.pop(QUERY)), "q_proj.lora_A"),
    "missing linear": (
        edit_tensors(lambda t: [t.pop(n) for n in list(t) if "layers.1.self_attn.q_proj" in n]),
        r"does not fit this model: .*layers\.1\.self_attn\.q_proj\.lora_A is missing",
    ),
    "missing layer": (
        edit_tensors(lambda t: [t.pop(n) for n in list(t) if "layers.1" in n]),
        "does not fit this model: .* is missing",
    ),
    "layer too many": (
        edit_tensors(
            lambda t: t.update(
                {
                    n.replace("layers.1", "layers.2"): v.clone()
                    for n, v in t.items()
                    if "layers.1" in n
                }
            )
        ),
        "does not fit this model: .* does not belong",
    ),
    "extra tensor": (
        edit_tensors(lambda t: t.update(extra=torch.ones(2))),
        "tensor extra is no part of a MIXLORA adapter",
    ),
    "extra expert": (
        edit_tensors(lambda t: t.update({EXPERT.replace(".2.", ".4."): t[EXPERT].clone()})),
        "has experts beyond num_experts",
    ),
    "path in a name": (
        edit_tensors(
            lambda t: t.update({"mixlora.layers.0.../../x.lora_A.weight": torch.ones(4, 2)})
        ),
        "is no part of a MIXLORA adapter",
    ),
    "wrong rank": (
        edit_tensors(lambda t: t.update({EXPERT: torch.ones(48, 3)})),
        "does not fit rank",
    ),
    "wrong width": (
        edit_tensors(lambda t: t.update({QUERY: torch.ones(4, 31)})),
        r"does not fit this model: .*q_proj.lora_A is \[1, 4, 31\], but must be \[1, 4, 32\]",
    ),
    "wrong router": (
        edit_tensors(lambda t: t.update({ROUTER: torch.ones(3, 32)})),
        "but num_experts is 4",
    ),
    "router of a vector": (
        edit_tensors(lambda t: t.update({ROUTER: torch.ones(4)})),
        "num_experts is 4",
    ),
    "zero size": (edit_tensors(lambda t: t.update({QUERY: torch.ones(0, 32)})), "has no elements"),
    "not finite": (
        edit_tensors(lambda t: t[QUERY].fill_(float("inf"))),
        "has values that are not finite",
    ),
    "integers": (
        edit_tensors(lambda t: t.update({QUERY: torch.ones(4, 32, dtype=torch.int32)})),
        "is no dense floating-point tensor",
    ),
    "float8": (
        edit_tensors(lambda t: t.update({QUERY: torch.ones(4, 32).to(torch.float8_e4m3fn)})),
        "of 16, 32 or 64 bits, but torch.float8_e4m3fn",
    ),
    "float8 for scales": (
        edit_tensors(lambda t: t.update({QUERY: torch.ones(4, 32).to(torch.float8_e8m0fnu)})),
        "of 16, 32 or 64 bits, but torch.float8_e8m0fnu",
    ),
    "four bits": (in_four_bits, "is damaged: |of 16, 32 or 64 bits, but"),
    "expert of 5000 digits": (
        edit_tensors(lambda t: t.update({EXPERT.replace(".2.", LONG_INDEX): torch.ones(48, 4)})),
        "is no part of a MIXLORA adapter",
    ),
    "layer of 5000 digits": (
        edit_tensors(lambda t: t.update({f"mixlora.layers{LONG_INDEX}x": torch.ones(2)})),
        "is no part of a MIXLORA adapter",
    ),
    "rank of 400 digits": (edit_config(r=10**400), "r: .* less than or equal to 65536"),
    "rank of 5000 digits": (
        lambda f: (f / folders.CONFIG).write_text(f'{{"r": {"9" * 5000}}}'),
        "is no JSON",
    ),
    "experts without end": (edit_config(num_experts=10**12), "less than or equal to 65536"),
    "a rank in an expert's pattern": (edit_config(expert_lora={"r": 10**9}), "less than or equal"),
    "config is no JSON": (
        lambda f: (f / folders.CONFIG).write_text("{"),
        "adapter_config.json: is no JSON",
    ),
    "config is a list": (lambda f: (f / folders.CONFIG).write_text("[]"), "must hold a mapping"),
    "config is deep": (lambda f: (f / folders.CONFIG).write_text("[" * 10**5), "is no JSON"),
    "config has NaN": (
        lambda f: (f / folders.CONFIG).write_text('{"r": NaN}'),
        "NaN is not allowed",
    ),
    "config is binary": (lambda f: (f / folders.CONFIG).write_bytes(b"\xff\xfe\x00"), "is no JSON"),
    "foreign type": (edit_config(peft_type="IA3"), "peft_type: Input should be 'MIXLORA'"),
    "no rank": (edit_config(r="gone"), "r: Field required"),
    "negative rank": (edit_config(r=-4), "r: .*greater than 0"),
    "top_k too large": (edit_config(top_k=9), "top_k is 9, but must be at most num_experts"),
    "other routing": (edit_config(routing_strategy="loramoe"), "routing_strategy"),
    "jitter": (edit_config(jitter_noise=1.5), "jitter_noise: .*less than 1"),
    "foreign option": (edit_config(lora_bias=True), "lora_bias is set to True, which is not"),
    "unknown word of ours": (edit_config(moetune={"rank": 2}), "moetune has rank"),
    "experts of two kinds": (edit_config(moetune={"num_experts": [2, 3]}), "moetune.num_experts"),
    "shared A without one": (edit_config(moetune={"shared_a": True}), "experts"),
    "DoRA without magnitudes": (edit_config(moetune={"use_dora": True}), "of its magnitudes"),
    "one expert": (edit_config(num_experts=1), "MIXLORA and MOELORA have several"),
    "other activation": (edit_config(act_fn="gelu"), "use gelu, but the base model uses silu"),
    "target without tensors": (
        edit_config(target_modules=["q_proj", "w1"]),
        "target_modules has w1, but no tensor",
    ),
    "no target": (edit_config(target_modules=[]), "target_modules"),
    "moelora by name only": (edit_config(peft_type="MOELORA"), "no part of a MOELORA adapter"),
    "manifest is no JSON": (lambda f: (f / folders.MANIFEST).write_text("?"), "is no JSON"),
    "manifest of the future": (
        lambda f: (f / folders.MANIFEST).write_text('{"format": 2, "base": {"path": "b"}}'),
        "format: Input should be 1",
    ),
    "manifest names a path": (
        lambda f: (f / folders.MANIFEST).write_text(
            '{"base": {"path": "b"}, "files": {"../../etc/passwd": "00"}}'
        ),
        "is not the file that its manifest describes",
    ),
    "code in a pickle": (as_bin(pickle.dumps({"w": Evil()})), "holds more than tensors"),
    "code in a torch file": (as_bin({"w": Evil()}), "holds more than tensors"),
    "list in a torch file": (as_bin([torch.ones(2)]), "must hold named tensors"),
    "numbers in a torch file": (as_bin({"w": 3}), "must hold named tensors"),
    "empty bin": (as_bin(b""), "is damaged"),
    "expanded bin": (as_bin({QUERY: huge}), "is no dense floating-point tensor"),
    "linked weights": (link(WEIGHTS, "../elsewhere"), "is no regular file; links"),
    "linked config": (link(folders.CONFIG, "../elsewhere"), "is no regular file; links"),
    "linked manifest": (link(folders.MANIFEST, "../elsewhere"), "is no regular file; links"),
    "weights are a folder": (
        lambda f: [(f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()],
        "is no regular file",
    ),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in good order, to be copied and damaged."""
    folder = tmp_path_factory.mktemp("sound") / "adapter"
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / "base")
    adapter = inject(model, AdapterSpec(num_experts=4, rank=4))
    save(adapter, folder, Manifest(base=BaseRecord(path="golden/base")))
    return folder


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused_in_one_line_and_nothing_is_attached(
    name: str, sound: Path, model: PreTrainedModel, tmp_path: Path
) -> None:
    damage, why = DAMAGES[name]
    folder = Path(shutil.copytree(sound, tmp_path / "adapter"))
    damage(folder)
    modules = [(path, id(module)) for path, module in model.named_modules()]
    with pytest.raises(InputError, match=why) as refused:
        attach(model, folder)
    assert "\n" not in str(refused.value)
    assert [(path, id(module)) for path, module in model.named_modules()] == modules
    with pytest.raises(InputError):
        import_folder(folder, tmp_path / "imported", model)
    assert not (tmp_path / "imported").exists()
    assert not Path("/tmp/moetune-was-here").exists()


def test_an_activation_by_its_other_name_is_no_other(
    sound: Path, model: PreTrainedModel, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "adapter"))
    edit_config(act_fn="swish")(folder)
    attach(model, folder)


@pytest.mark.parametrize("path", ["nowhere", "a\0b", ""])
def test_a_missing_folder_is_refused(path: str, model: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such adapter folder"):
        attach(model, f"{tmp_path}/{path}" if path else path)


def test_an_adapter_of_another_base_is_refused(saved: Callable[..., Path]) -> None:
    """Same shapes, other weights: only the digest can tell."""
    folder = saved()
    config = json.loads((GOLDEN / "base" / "config.json").read_text())
    torch.manual_seed(1)  # The golden base itself was drawn from some small seed.
    other = LlamaForCausalLM(LlamaConfig(**config))
    with pytest.raises(InputError, match="belongs to another base model, golden/base"):
        attach(other, folder)
    assert "adapters" not in str(other)


def test_a_refused_second_adapter_leaves_the_first_in_use(
    saved: Callable[..., Path], model: PreTrainedModel, ids: torch.Tensor
) -> None:
    good, bad = saved("good"), saved("bad")
    edit_tensors(lambda t: t.update({QUERY: torch.ones(4, 31)}))(bad)
    with torch.no_grad():
        before = attach(model, good, "home@1")(ids).logits
        with pytest.raises(InputError, match="does not fit"):
            attach(model, bad, "home@2")
        with pytest.raises(InputError, match="slot 'home@1' has an adapter already"):
            attach(model, good, "home@1")
        assert torch.equal(model(ids).logits, before)


def test_inspect_tells_without_a_model(saved: Callable[..., Path]) -> None:
    facts = inspect(saved(experts="linear"))
    assert facts["format"] == "moelora"
    assert (facts["num_experts"], facts["rank"], facts["layers"]) == (4, 4, 2)
    assert facts["base_model"] == "golden/base"
    assert facts["study"] == "s"
    assert facts["parameters"] == sum(t.numel() for t in read(facts["folder"]).tensors.values())
    json.dumps(facts)


def test_reading_again_and_again_leaves_nothing_behind(make_adapter: Callable[..., Path]) -> None:
    """An engine reads an adapter at every promotion of its months."""
    folder, times = make_adapter(5, num_experts=16), 10
    tensors = len(load_file(folder / WEIGHTS))

    def held() -> int:
        for _ in range(times):
            read(folder)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        first, second = held(), held()
    finally:
        tracemalloc.stop()
    assert second - first < times * tensors * 16, "not even a number of each tensor at a time"


def test_a_small_file_of_very_different_ranks_does_not_take_all_memory(tmp_path: Path) -> None:
    """Ranks are padded to the largest; here 4 MB would become 64 GiB."""
    at, wide, large = "base_model.model.model.layers.0", 2**14, 2**16
    tensors = {
        f"{at}.self_attn.q_proj.lora_A.weight": torch.ones(large, 1),
        f"{at}.self_attn.q_proj.lora_B.weight": torch.ones(1, large),
    }
    for name in ("k_proj", "v_proj", "o_proj", "x_proj", "y_proj", "z_proj", "w_proj", "u_proj"):
        tensors[f"{at}.self_attn.{name}.lora_A.weight"] = torch.ones(1, wide)
        tensors[f"{at}.self_attn.{name}.lora_B.weight"] = torch.ones(wide, 1)
    save_file(tensors, tmp_path / WEIGHTS)
    names = sorted({name.split(".")[6] for name in tensors})
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": names}
    (tmp_path / folders.CONFIG).write_text(json.dumps(config | {"rank_pattern": {"q_proj": large}}))
    with pytest.raises(InputError, match="its ranks differ too much: padded to the largest, 65536"):
        read(tmp_path)
