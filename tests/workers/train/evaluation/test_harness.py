"""lm-eval itself on the tiny base and an adapter of it, against plain log-likelihoods."""

import json
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from workers.adapter.files import attach
from workers.config.base import InputError
from workers.config.extras import installing
from workers.config.model import ModelSpec
from workers.models.base import Base, load_base
from workers.train.evaluation.harness import (
    check_harness,
    harness_model,
    matched,
    run_harness,
)
from workers.train.evaluation.harness_spec import HarnessSpec

NEEDED = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason=f"needs lm_eval: {installing('lm-eval')}"
)
CHOICES = ("blue", "green", "white as snow", "black")
THINGS = ("sky", "grass", "snow", "coal", "milk", "sea", "tar", "leaf")
HEAD = """
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
"""
COLOURS = """
output_type: multiple_choice
doc_to_target: "{{label}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
metadata: {version: 3}
"""
PROMPT = """
doc_to_text: "What colour has {{thing}}?\\nAnswer:"
"""
SAY = """
output_type: generate_until
doc_to_target: "{{said}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match}]
"""
TASKS = {
    "colours": PROMPT + COLOURS,
    "say": PROMPT + SAY,
    "coded": "doc_to_text: !function mine.text" + COLOURS,
}


@pytest.fixture
def adapter(make_adapter: Callable[..., Path]) -> Path:
    return make_adapter(3)


def loaded(model_dir: Path, adapter: Path | None) -> Base:
    base = load_base(ModelSpec(path=str(model_dir)))
    if adapter:
        attach(base.model, adapter)
    return base


@torch.no_grad()
def log_likelihood(base: Base, prompt: str, choice: str) -> float:
    first = len(base.tokenizer.encode(prompt, add_special_tokens=False))
    ids = torch.tensor([base.tokenizer.encode(prompt + choice, add_special_tokens=False)])
    loss = nn.functional.cross_entropy(
        base.model(ids).logits[0, first - 1 : -1], ids[0, first:], reduction="sum"
    )
    return -float(loss)


@torch.no_grad()
def answer(base: Base, thing: str) -> str:
    ids = base.tokenizer.encode(asked(thing), add_special_tokens=False)
    start = len(ids)
    for _ in range(6):
        ids.append(int(base.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return str(base.tokenizer.decode(ids[start:])).split("\n")[0]


def asked(thing: str) -> str:
    return f"What colour has {thing}?\nAnswer:"


@pytest.fixture
def spec(
    tiny_model_dir: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> HarnessSpec:
    """Three tasks, one of them with code. What is right in `say` is every second time what the
    adapter says, else what the base says."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    bases = [loaded(tiny_model_dir, folder) for folder in (None, adapter)]
    rows = [
        {"thing": thing, "choices": CHOICES, "label": at % 4, "said": answer(bases[at % 2], thing)}
        for at, thing in enumerate(THINGS)
    ]
    file, folder = tmp_path / "rows.jsonl", tmp_path / "tasks"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder.mkdir()
    for name, text in TASKS.items():
        head = HEAD.replace("FILE", str(file))
        (folder / f"{name}.yaml").write_text(f"task: {name}{head}{text}")
    (folder / "mine.py").write_text(
        f"open({str(tmp_path / 'it-ran')!r}, 'w')\n\ndef text(doc):\n    return doc['thing']\n"
    )
    model = ModelSpec(path=str(tiny_model_dir))
    return HarnessSpec(model=model, tasks=tuple(TASKS), tasks_folder=str(folder))


@NEEDED
@pytest.mark.usefixtures("processes")
def test_log_likelihoods_are_plain_ones(
    spec: HarnessSpec, adapter: Path, tiny_model_dir: Path
) -> None:
    """In batches with padding."""
    from lm_eval.api.instance import Instance

    pairs = [(asked(thing), f" {choice}") for thing in THINGS for choice in CHOICES]
    found = []
    for folder in (None, adapter):
        requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
        said = harness_model(spec, folder).loglikelihood(requests, disable_tqdm=True)
        base = loaded(tiny_model_dir, folder)
        plain = torch.tensor([log_likelihood(base, *pair) for pair in pairs])
        found.append(torch.tensor([value for value, _ in said]))
        torch.testing.assert_close(found[-1], plain, atol=1e-4, rtol=1e-5)
    assert (found[0] - found[1]).abs().min() > 0.001, "the adapter says something else"


@NEEDED
@pytest.mark.usefixtures("processes")
def test_figures_are_those_of_plain_answers(
    spec: HarnessSpec, adapter: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    refused = r"coded\.yaml: has !function mine\.text, which runs code"
    with pytest.raises(InputError, match=refused):
        run_harness(spec, adapter)
    assert not (tmp_path / "it-ran").exists()
    changes = {"run_task_code": True, "tasks": ("colour*", "say", "coded"), "limit": 7}
    found = run_harness(spec.model_copy(update=changes), adapter)["tasks"]
    assert (tmp_path / "it-ran").exists(), "where it is asked for"

    bases = [loaded(tiny_model_dir, folder) for folder in (None, adapter)]
    right = {"acc": 0, "acc_norm": 0, "exact_match": 0}
    for at, thing in enumerate(THINGS[:7]):
        values = [log_likelihood(bases[1], asked(thing), f" {choice}") for choice in CHOICES]
        normed = [value / len(choice) for value, choice in zip(values, CHOICES, strict=True)]
        right["acc"] += values.index(max(values)) == at % 4
        right["acc_norm"] += normed.index(max(normed)) == at % 4
        right["exact_match"] += answer(bases[at % 2], thing) == answer(bases[1], thing)
    shares = {name: count / 7 for name, count in right.items()}
    assert 3 / 7 <= shares["exact_match"] < 1, "the base says something else"
    assert found["say"]["metrics"] == {"exact_match": shares.pop("exact_match")}
    assert found["say"]["stderr"].keys() == {"exact_match"}
    assert found["colours"]["metrics"] == shares
    assert [found["colours"][name] for name in ("version", "shots", "rows")] == [3, 0, 7]


@NEEDED
@pytest.mark.usefixtures("processes")
def test_what_is_not_there_is_refused(spec: HarnessSpec, tmp_path: Path) -> None:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=spec.tasks_folder, include_defaults=False)
    assert sorted(matched(manager, ["sa*", "colours"])) == ["colours", "say"]
    with pytest.raises(InputError, match=r"^--lm-eval colour: .* did you mean colours\?$"):
        matched(manager, ["say", "colour"])
    with pytest.raises(InputError, match="none: there is no such folder"):
        check_harness(spec.model_copy(update={"tasks_folder": str(tmp_path / "none")}))


def test_where_it_is_missing_one_line_says_how_to_get_it(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.train.evaluation.harness.find_spec", lambda _: None)
    spec = HarnessSpec(model=ModelSpec(path=str(tiny_model_dir)), tasks=("arc_easy",))
    with pytest.raises(InputError) as caught:
        check_harness(spec)
    assert str(caught.value) == (
        f"--lm-eval: needs the package lm_eval, which {socket.gethostname()} has not: "
        "in moetune's clone, run pip install -c constraints.txt -e '.[lm-eval]'"
    )
