"""How a model computes attention in training: asked for by name, or chosen."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from transformers import AutoConfig, PretrainedConfig

from tests.workers.models.test_packing import SIZES
from workers.config.base import InputError
from workers.config.model import ModelSpec
from workers.config.train import TrainSpec
from workers.data.batches import collate
from workers.models.attention_choice import attention_choice, check_family
from workers.models.packing import takes_packed_rows, taking_packed_rows
from workers.train.forward import batch_loss
from workers.train.inputs import Inputs
from workers.train.layout import lay_out

SpecMaker = Callable[..., TrainSpec]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
INSTALLED = {"flash_attn": "flash_attention_2", "flash_attn_interface": "flash_attention_3"}


def config(family: str, **fields: Any) -> PretrainedConfig:
    made: PretrainedConfig = AutoConfig.for_model(family, **{**SIZES, **fields})
    return made


def asked(name: str = "auto", dtype: str = "bfloat16") -> ModelSpec:
    return ModelSpec.model_validate({"path": "x", "attention": name, "dtype": dtype})


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """As if there was one of this capability, and these modules."""

    def there(capability: tuple[int, int], *modules: str) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        for where in ("workers.models.attention_choice", "workers.config.attention"):
            monkeypatch.setattr(f"{where}.find_spec", lambda name: name in modules or None)

    return there


@pytest.mark.parametrize(
    ("family", "fields", "name", "why"),
    [
        ("llama", {}, "sdpa", "torch's own"),
        ("gemma2", {}, "eager", "Gemma2ForCausalLM does not support sdpa"),
        ("bloom", {}, "eager", "BloomForCausalLM does not support sdpa"),
        ("gpt_oss", {"num_local_experts": 4}, "eager", "GptOssForCausalLM does not support sdpa"),
    ],
)
def test_on_a_cpu_auto_is_what_the_family_takes(
    family: str, fields: dict[str, Any], name: str, why: str
) -> None:
    choice = attention_choice(asked(), config(family, **fields), CPU)
    assert choice.name == name
    assert why in choice.reason
    assert choice.words == f"{name}: {choice.reason}"


@pytest.mark.parametrize(
    ("capability", "modules", "dtype", "family", "name"),
    [
        ((9, 0), (), "bfloat16", "llama", "sdpa"),
        ((9, 0), ("flash_attn",), "bfloat16", "llama", "flash_attention_2"),
        ((9, 0), tuple(INSTALLED), "bfloat16", "llama", "flash_attention_3"),
        ((9, 0), ("flash_attn_interface",), "bfloat16", "llama", "flash_attention_3"),
        ((8, 0), tuple(INSTALLED), "bfloat16", "llama", "flash_attention_2"),
        ((8, 0), ("flash_attn_interface",), "bfloat16", "llama", "sdpa"),
        ((7, 5), tuple(INSTALLED), "bfloat16", "llama", "sdpa"),
        ((9, 0), tuple(INSTALLED), "float32", "llama", "sdpa"),
        ((9, 0), tuple(INSTALLED), "bfloat16", "bloom", "eager"),
        ((9, 0), ("flash_attn",), "bfloat16", "gpt_oss", "eager"),
    ],
)
def test_on_a_gpu_auto_takes_flash_attention_where_it_runs(
    capability: tuple[int, int],
    modules: tuple[str, ...],
    dtype: str,
    family: str,
    name: str,
    gpu: Callable[..., None],
) -> None:
    gpu(capability, *modules)
    choice = attention_choice(asked(dtype=dtype), config(family), GPU)
    assert choice.name == name


def test_what_is_asked_for_is_taken_or_refused(gpu: Callable[..., None]) -> None:
    llama = config("llama")
    assert attention_choice(asked("eager"), llama, CPU).reason == "model.attention asks for it"
    with pytest.raises(InputError, match="which needs a GPU"):
        attention_choice(asked("flash_attention_2"), llama, CPU)
    gpu((8, 0))
    with pytest.raises(InputError, match="which needs the package flash-attn"):
        attention_choice(asked("flash_attention_2"), llama, GPU)
    gpu((7, 5), *INSTALLED)
    with pytest.raises(InputError, match=r"of compute capability 8\.0; sdpa and eager do not"):
        attention_choice(asked("flash_attention_2"), llama, GPU)
    gpu((8, 6), *INSTALLED)
    for name in (*INSTALLED.values(), "flex_attention"):
        assert attention_choice(asked(name), llama, GPU).name == name


@pytest.mark.parametrize(
    ("family", "fields", "name", "why"),
    [
        ("bloom", {}, "sdpa", "BloomForCausalLM does not support it; allowed are auto, eager"),
        (
            "bloom",
            {},
            "flash_attention_2",
            "is flash_attention_2, but BloomForCausalLM does not support it",
        ),
        (
            "stablelm",
            {},
            "flex_attention",
            "is flex_attention, but StableLmForCausalLM does not support it",
        ),
        (
            "gemma2",
            {},
            "sdpa",
            "allowed are auto, eager, flash_attention_2, flash_attention_3",
        ),
    ],
)
def test_what_a_family_does_not_take_is_refused_from_its_configuration(
    family: str, fields: dict[str, Any], name: str, why: str
) -> None:
    with pytest.raises(InputError) as caught:
        check_family(asked(name), config(family, **fields))
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
    check_family(asked("eager"), config(family, **fields))
    check_family(asked(), config(family, **fields))


def test_all_that_run_here_give_equal_losses(make_spec: SpecMaker) -> None:
    found = {}
    for name in ("auto", "sdpa", "eager"):
        inputs = Inputs.load(make_spec(model__attention=name))
        choice = inputs.base.attention
        assert choice is not None
        assert choice.name == inputs.base.model.config._attn_implementation
        assert choice.name == ("sdpa" if name == "auto" else name)
        found[name] = batch_loss(inputs.base, collate(inputs.train[:6], 3)).item()
    assert found == pytest.approx(dict.fromkeys(found, found["eager"]), rel=1e-5)


def test_flash_attention_takes_packed_rows_by_itself(make_spec: SpecMaker) -> None:
    model = Inputs.load(make_spec()).base.model
    assert not takes_packed_rows(model)
    with taking_packed_rows(model):
        assert takes_packed_rows(model)
    model.config._attn_implementation = "flash_attention_2"
    with taking_packed_rows(model):
        assert model.config._attn_implementation == "flash_attention_2"


def test_on_a_cpu_torch_has_no_backward_pass_of_flex_attention() -> None:
    """Why it is refused there."""
    query = torch.randn(1, 2, 16, 8, requires_grad=True)
    with pytest.raises(NotImplementedError, match="does not support backward on CPU"):
        flex_attention(query, query, query)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*INSTALLED.values(), "flex_attention"])
@pytest.mark.parametrize("packing", [False, True])
def test_those_of_a_gpu_give_equal_losses(
    name: str, *, packing: bool, make_spec: SpecMaker
) -> None:
    modules = {theirs: ours for ours, theirs in INSTALLED.items()}
    if name in modules:
        pytest.importorskip(modules[name])
    if packing and name == "flex_attention":
        pytest.skip("keeps packed rows together")
    losses = []
    for attention in (name, "eager"):
        spec = make_spec(
            model__attention=attention,
            model__dtype="bfloat16",
            model__device="cuda",
            data__packing=packing,
        )
        inputs = Inputs.load(spec)
        [batch] = lay_out(spec, [list(inputs.train)[:6]], inputs.pad_token_id)
        with taking_packed_rows(inputs.base.model) if packing else torch.enable_grad():
            losses.append(batch_loss(inputs.base, batch).item())
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
