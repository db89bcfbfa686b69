"""The typed tree: what it refuses and how it says so."""

import pytest

from workers.config.base import InputError, override, validated
from workers.config.parallel import NO_LIMIT, PassLimit
from workers.config.train import TrainSpec

MINIMAL = {"model": {"path": "base"}, "data": {"train": "t.jsonl", "validation": "v.jsonl"}}


def spec(**parts: object) -> TrainSpec:
    return validated(TrainSpec, MINIMAL | parts, "job.yaml")


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"adapter": {"rnak": 3}}, "adapter.rnak: no such field; did you mean rank?"),
        ({"adapter": {"top_k": 9}}, "top_k is 9, but must be at most num_experts, which is 8"),
        ({"adapter": {"rank": 0}}, "adapter.rank: Input should be greater than 0, not 0"),
        ({"adapter": {"alpha": float("nan")}}, "adapter.alpha"),
        ({"adapter": {"target_modules": []}}, "target_modules is empty"),
        (
            {"adapter": {"target_modules": "q("}},
            "target_modules: is no regular expression: missing ), unterminated subpattern",
        ),
        (
            {"adapter": {"num_experts": [2, 0]}},
            "num_experts.1: Input should be greater than 0, not 0",
        ),
        ({"adapter": {"shared_a": True}, "loss": {"contrastive_weight": 1}}, "so it must be 0"),
        ({"optimizer": {"lr": "fast"}}, "optimizer.lr"),
        ({"optimizer": {"steps": 5, "warmup_steps": 5}}, "warmup_steps is 5, but must be below"),
        ({"optimizer": {"batch_size": 3}, "parallel": {"workers": 2}}, "must be a multiple of"),
        ({"optimizer": {"batch_size": 6, "micro_batch_size": 4}}, "must divide the 6 rows"),
        (
            {"optimizer": {"micro_batch_tokens": 100}},
            "micro_batch_tokens is 100, but must be at least data.max_length, which is 512",
        ),
        (
            {"optimizer": {"micro_batch_tokens": 1024, "micro_batch_size": 2}},
            "micro_batch_tokens is 1024 and micro_batch_size is 2; a pass is counted by one",
        ),
        (
            {"parallel": {"workers": {"min": 1, "max": 4}}},
            "every number from 1 to 4, which parallel",
        ),
        ({"parallel": {"workers": {"min": 3, "max": 2}}}, "min is 3, but must be at most max"),
        (
            {"parallel": {"workers": {"min": 2, "max": 4}, "ep_size": 2}},
            "ep_size is 2, but must be 1",
        ),
        ({"parallel": {"workers": 4, "ep_size": 3}}, "ep_size is 3, but must divide workers"),
        (
            {"parallel": {"workers": 4, "ep_size": 4}, "adapter": {"num_experts": [4, 6]}},
            "ep_size is 4, but must divide adapter.num_experts, which is 6",
        ),
        (
            {"parallel": {"workers": 2, "ep_size": 2, "strategy": "deepspeed"}},
            "would average the gradients of different experts",
        ),
        (
            {
                "parallel": {"workers": 2, "ep_size": 2, "exchange": "tokens"},
                "adapter": {"use_dora": True},
            },
            "take weights or auto",
        ),
        (
            {
                "adapter": {"train_also": ["lm_head"]},
                "parallel": {"workers": 2, "strategy": "fsdp2"},
            },
            "parallel.strategy is fsdp2, but must be ddp with adapter.train_also",
        ),
        (
            {"model": {"path": "x", "compile": True}, "adapter": {"train_also": ["lm_head"]}},
            "model.compile is true, but so far without adapter.train_also",
        ),
        (
            {
                "adapter": {"train_tokens": ["<tool>"]},
                "parallel": {"workers": 2, "strategy": "deepspeed"},
            },
            "parallel.strategy is deepspeed, but must be ddp with adapter.train_tokens",
        ),
        (
            {"model": {"path": "x", "compile": True}, "adapter": {"train_tokens": 7}},
            "adapter.train_tokens: Input should be a list, not 7",
        ),
        (
            {"model": {"path": "x", "compile": True}, "adapter": {"train_tokens": [7]}},
            "model.compile is true, but so far without adapter.train_tokens",
        ),
        (
            {"adapter": {"train_tokens": ["<tool>", 3, "<tool>"]}},
            "adapter: train_tokens has '<tool>' twice",
        ),
        (
            {"adapter": {"train_tokens": [3], "train_also": ["lm_head"]}},
            "adapter: train_also trains whole weights and train_tokens single rows; leave one",
        ),
        (
            {"adapter": {"train_tokens_of": ["lm_head"]}},
            "adapter: train_tokens_of says where train_tokens are trained, which is empty",
        ),
        ({"parallel": {"offload_optimizer": True}}, "is for strategy deepspeed, not ddp"),
        (
            {
                "model": {"path": "x", "quantization": "torchao_int8"},
                "parallel": {"workers": 2, "strategy": "fsdp2"},
            },
            "packed weights cannot be cut",
        ),
        ({"seed": 2**64}, "seed: Input should be less than 4294967296"),
        ({"weird": 1}, "weird: no such field; allowed are model, adapter"),
        ({"model": {}}, "model.path: Field required"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(parts: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as error:
        spec(**parts)
    assert said in str(error.value)
    assert str(error.value).startswith("job.yaml: ")
    assert "\n" not in str(error.value)


def test_override_replaces_and_checks_the_whole() -> None:
    changed = override(spec(), {"adapter.rank": 16, "optimizer.lr": 1e-3}, "--set")
    assert (changed.adapter.rank, changed.optimizer.lr) == (16, 1e-3)
    with pytest.raises(InputError, match="top_k is 2"):
        override(spec(), {"adapter.num_experts": 1}, "--set")
    with pytest.raises(InputError, match=r"adapter\.rank\.deep: no such field"):
        override(spec(), {"adapter.rank.deep": 1}, "--set")


def test_what_a_run_that_goes_on_may_change() -> None:
    run = spec()
    free = {
        "evaluation.samples": 0,
        "checkpoint.every": 3,
        "parallel.workers": 2,
        "data.processes": 3,
        "data.record_rows": True,
        "model.attention": "eager",
        "model.fused_norms": False,
    }
    assert run.same_run(override(run, free, "job.yaml"))
    for field in ("evaluation.rows_per_task", "optimizer.steps"):
        assert not run.same_run(override(run, {field: 7}, "job.yaml")), field


def test_a_run_whose_tokens_have_got_their_ids_is_the_same() -> None:
    def of(*tokens: str | int) -> TrainSpec:
        return spec(adapter={"train_tokens": list(tokens)})

    assert of("<tool>", 7).same_run(of(260, 7))
    assert of(260, 7).same_run(of("<tool>", 7))
    for other in (of("<tool>", 8), of("<tool>"), of("</tool>", 7), of()):
        assert not of("<tool>", 7).same_run(other)


def test_rank_stabilised_scale() -> None:
    assert spec(adapter={"rank": 4, "alpha": 8}).adapter.scale(7) == 2
    assert spec(adapter={"rank": 4, "alpha": 8, "use_rslora": True}).adapter.scale(7) == 4


def test_goats_scale_stands_for_alpha() -> None:
    goat = spec(adapter={"rank": 4, "goat_lr_ratio": 0.5}).adapter
    assert goat.scale(96) == pytest.approx(6)
    assert goat.scale(24) == pytest.approx(3)
    with pytest.raises(InputError, match="goat_lr_ratio and use_rslora are two scales"):
        spec(adapter={"goat_lr_ratio": 0.5, "use_rslora": True})


def test_experts_by_groups_of_layers() -> None:
    adapter = spec(adapter={"num_experts": [2, 4, 8]}).adapter
    assert [adapter.experts_in(layer, 7) for layer in range(7)] == [2, 2, 2, 4, 4, 8, 8]
    with pytest.raises(InputError, match="has 3 numbers, one for each group"):
        adapter.experts_in(0, 2)


def test_an_elastic_number_of_workers_shares_every_batch_evenly() -> None:
    elastic = spec(
        parallel={"workers": {"min": 1, "max": 4}}, optimizer={"batch_size": 24, "steps": 9}
    )
    assert (elastic.parallel.min_workers, elastic.parallel.max_workers) == (1, 4)
    assert elastic.pass_limit.rows == 6  # what each of four has: one has it in four passes
    assert spec(parallel={"workers": 4}).pass_limit == NO_LIMIT


def test_a_pass_may_be_counted_in_tokens() -> None:
    counted = spec(optimizer={"micro_batch_tokens": 1024, "batch_size": 16})
    assert counted.pass_limit == counted.evaluation_limit == PassLimit(tokens=1024)
    assert counted.trained_at_once(1) == 2, "of the longest rows"
    assert counted.evaluated_at_once is None
    rows = spec(optimizer={"micro_batch_tokens": 1024}, evaluation={"batch_size": 4})
    assert rows.evaluation_limit == PassLimit(rows=4)
    packed = spec(data=MINIMAL["data"] | {"packing": True}, optimizer={"micro_batch_tokens": 1024})
    assert packed.pass_limit == PassLimit(tokens=1024)


def test_packing_counts_a_pass_in_tokens() -> None:
    """Sequences of max_length, which need not divide a batch's rows."""
    rows = MINIMAL["data"] | {"packing": True, "max_length": 64}
    packed = spec(data=rows, optimizer={"batch_size": 6, "micro_batch_size": 4})
    assert (packed.pass_limit.tokens, packed.packed_passes(1)) == (256, 1)
    assert spec(optimizer={"micro_batch_size": 4}).pass_limit == PassLimit(rows=4)
    elastic = spec(
        data=rows, optimizer={"batch_size": 24}, parallel={"workers": {"min": 1, "max": 4}}
    )
    assert elastic.pass_limit == NO_LIMIT
    passes = [elastic.packed_passes(workers) for workers in (1, 2, 3, 4)]
    assert passes == [4, 2, 2, 1], "no worker has more at once than each of four"
    assert not spec(parallel={"workers": {"min": 2, "max": 2}}).parallel.is_elastic
    assert TrainSpec.model_validate_json(elastic.model_dump_json()) == elastic


def test_a_run_has_one_length() -> None:
    neither, epochs = spec().optimizer, spec(optimizer={"epochs": 0.5}).optimizer
    assert (neither.steps, neither.epochs) == (100, None)
    assert (epochs.steps, epochs.epochs) == (None, 0.5)
    assert spec(optimizer={"steps": None}).optimizer.steps == 100
    with pytest.raises(InputError, match="steps is 5 and epochs is 2, but a run has one length"):
        spec(optimizer={"steps": 5, "epochs": 2})
    with pytest.raises(InputError, match=r"say optimizer\.steps"):
        spec(
            optimizer={"epochs": 2},
            data={"train": "a.jsonl", "validation": "b.jsonl", "streaming": True},
        )


def test_a_length_that_is_set_takes_the_place_of_the_other() -> None:
    run = override(spec(optimizer={"steps": 5}), {"optimizer.epochs": 2}, "--set")
    assert (run.optimizer.steps, run.optimizer.epochs) == (None, 2)
    again = override(run, {"optimizer.steps": 7}, "--set")
    assert (again.optimizer.steps, again.optimizer.epochs) == (7, None)
    both = {"optimizer.steps": 7, "optimizer.epochs": 2}
    for changes in (both, dict(reversed(both.items()))):
        with pytest.raises(InputError, match="one length"):
            override(run, changes, "--set")
    assert override(run, {"optimizer.lr": 1e-3}, "--set").optimizer.epochs == 2
