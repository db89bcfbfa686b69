"""What does not fit a base model is refused from its configuration alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from workers.adapter.files import read
from workers.config.base import InputError
from workers.config.train import TrainSpec
from workers.models.compatibility import check_adapter, check_fit

SpecMaker = Callable[..., TrainSpec]


@pytest.mark.parametrize("experts", ["block", "linear"])
def test_what_fits_passes(make_spec: SpecMaker, experts: str) -> None:
    check_fit(make_spec(adapter__experts=experts, data__max_length=512))
    check_fit(make_spec(adapter__experts=experts, adapter__num_experts=[1, 4], adapter__top_k=1))
    check_fit(make_spec(adapter__use_dora=True, adapter__target_modules=["up_proj", "q_proj"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter__target_modules": ["fc1"]}, "no linear is called fc1; there are .*up_proj"),
        (
            {"adapter__target_modules": "up"},
            r"target_modules: up matches no .* layers\.0\..*up_proj",
        ),
        ({"adapter__exclude_modules": ["fc1"]}, "exclude_modules: no linear is called fc1; there"),
        ({"adapter__train_also": ["norm"]}, "train_also: norm is neither the base's embedding nor"),
        ({"adapter__train_also": "lm_head"}, "ties embed_tokens and lm_head, .* name both"),
        ({"adapter__train_tokens": [3, 4000]}, "train_tokens: there is no token 4000: .* 260 rows"),
        (
            {"adapter__train_tokens": [3], "adapter__train_tokens_of": "lm_head"},
            "train_tokens_of: the base ties embed_tokens and lm_head, .* name both",
        ),
        (
            {"adapter__train_tokens": [3], "adapter__train_tokens_of": "norm"},
            "train_tokens_of: norm is neither the base's embedding nor its output head",
        ),
        ({"adapter__exclude_modules": ".*"}, "exclude_modules: leaves out every linear"),
        ({"adapter__exclude_modules": r".*\.mlp\..*"}, "block experts need a linear of the feed"),
        (
            {"adapter__target_modules": ["q_proj"]},
            "block experts need a linear of the feed-forward",
        ),
        (
            {"adapter__num_experts": [2, 3, 4]},
            "num_experts has 3 numbers, .* the model has 2 layers",
        ),
        (
            {"adapter__use_dora": True},
            r"layers\.0\.mlp\.down_proj once .* such as \['gate_proj', 'up",
        ),
        (
            {"adapter__num_experts": [1, 4], "adapter__top_k": 1, "adapter__use_dora": True},
            "down_proj once",
        ),
        (
            {
                "adapter__experts": "linear",
                "adapter__use_dora": True,
                "model__quantization": "bnb_nf4",
            },
            "use_dora: needs the base's weights as numbers",
        ),
        ({"data__max_length": 513}, "data.max_length is 513, but the base model reads at most 512"),
    ],
)
def test_what_does_not_fit_is_refused(
    make_spec: SpecMaker, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_fit(make_spec(**changes))


def test_layers_may_be_adapted_each_in_its_way(make_spec: SpecMaker) -> None:
    """By a pattern: one layer's block and the other's attention, one layer alone."""
    for named, routed in (
        (r"layers\.1\..*", ["layers.1.mlp"]),
        (r"layers\.1\.mlp\..*|layers\.0\.self_attn\..*", ["layers.1.mlp"]),
        (r".*\.mlp\..*", ["layers.0.mlp", "layers.1.mlp"]),
    ):
        spec = make_spec(adapter__target_modules=named)
        assert check_fit(spec).routers(spec.adapter) == routed
    without = make_spec(adapter__exclude_modules=r"layers\.1\.mlp\.gate_proj")
    assert len(check_fit(without).routers(without.adapter)) == 2
    with pytest.raises(InputError, match=r"layers\\\.2.* matches no linear's path"):
        check_fit(make_spec(adapter__target_modules=r"layers\.2\..*"))
    with pytest.raises(InputError, match="block experts need a linear of the feed-forward"):
        check_fit(make_spec(adapter__target_modules=r"layers\.1\.self_attn\..*"))


def test_adapters_of_a_search_are_asked_about_instead(make_spec: SpecMaker) -> None:
    spec = make_spec(adapter__use_dora=True)
    check_fit(spec, [make_spec().adapter, make_spec(adapter__experts="linear").adapter])
    with pytest.raises(InputError, match="down_proj once"):
        check_fit(make_spec(), [make_spec().adapter, spec.adapter])


def test_an_adapter_with_rows_of_tokens_that_the_base_lacks_is_refused(
    make_spec: SpecMaker, make_adapter: Callable[..., Path]
) -> None:
    model = make_spec().model
    files = read(make_adapter(1, train_tokens=[7, 250]))
    check_adapter(model, files, "it")
    beyond = files.spec.model_copy(update={"train_tokens": (7, 9000)})
    with pytest.raises(InputError, match=r"^it: does not fit .*there is no token 9000"):
        check_adapter(model, replace(files, spec=beyond), "it")
