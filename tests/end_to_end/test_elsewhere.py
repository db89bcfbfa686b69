"""Other engines answer with an exported checkpoint as the adapter does here, token for token.

Each engine is asked where a variable names a Python that has it: they want other releases of what
this project stands on.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.demo.base_model import prepare
from orchestrator.demo.tiny_model import write_model
from tests.tiny import write_adapter
from workers.adapter.files import attach
from workers.config.base import InputError

ENGINES = {"vllm": "MOETUNE_VLLM_PYTHON", "llama_cpp": "MOETUNE_LLAMA_CPP_PYTHON"}
TEXTS = ("start kitchen", "The capital of France is", "stop: where? 12345", "Hi", "def f(x):")
TOKENS = 16
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
HEAD = 32
"""vLLM's kernels for CPUs have no smaller one."""
Ask = Callable[[Path, list[list[int]]], list[list[int]]]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, processes: None) -> str:
    """One of them, if it is here."""
    if not os.environ.get(ENGINES[request.param]):
        pytest.skip(f"{ENGINES[request.param]} names no Python that has {request.param}")
    return str(request.param)


@pytest.fixture
def smollm2(engine: str, tmp_path: Path) -> Path:
    """SmolLM2-135M, whose tokenizer llama.cpp knows; made where an engine is here."""
    try:
        return prepare(tmp_path / "smollm2")
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture
def ask(engine: str, tmp_path: Path) -> Ask:
    """ask(checkpoint, prompts): what the engine answers."""

    def asked(checkpoint: Path, prompts: list[list[int]]) -> list[list[int]]:
        questions, answers = tmp_path / "questions.json", tmp_path / "answers.json"
        questions.write_text(json.dumps({"prompts": prompts, "tokens": TOKENS}))
        script = Path(__file__).with_name("engines") / f"ask_{engine}.py"
        words = [os.environ[ENGINES[engine]], script, checkpoint, questions, answers]
        # Its own packages alone, and room for a tiny cache instead of half of the memory.
        theirs = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [*map(str, words)],
            env={**theirs, "VLLM_CPU_KVCACHE_SPACE": "1"},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        found: list[list[int]] = json.loads(answers.read_text())
        return found

    return asked


def tiny(folder: Path, family: str, tokenizer: Path) -> Path:
    """A random base of the family with that folder's tokenizer."""
    for path in tokenizer.glob("*token*"):
        shutil.copyfile(path, folder / path.name)
    config = AutoConfig.for_model(
        family,
        vocab_size=len(AutoTokenizer.from_pretrained(folder)),
        hidden_size=4 * HEAD,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HEAD,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=2,
        initializer_range=0.1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@torch.no_grad()
def answers(base: Path, adapter: Path | None, prompts: list[list[int]]) -> list[list[int]]:
    """Greedily, one prompt after the other, in float32."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    if adapter:
        attach(model, adapter)
    given = []
    for ids in prompts:
        told = torch.tensor([ids])
        for _ in range(TOKENS):
            told = torch.cat([told, model(told).logits[:, -1:].argmax(-1)], 1)
        given.append(told[0, len(ids) :].tolist())
    return given


def told_by_llama_cpp(answer: list[int], tokenizer: Any) -> list[int]:
    """What it tells of an answer: up to the end of the turn, and no token that is but a part of a
    character."""
    end = tokenizer.eos_token_id
    answer = answer[: answer.index(end)] if end in answer else answer
    return [token for token in answer if "\N{REPLACEMENT CHARACTER}" not in tokenizer.decode(token)]


def check(engine: str, folder: Path, base: Path, ask: Ask, spread: float, **shape: object) -> None:
    adapter = write_adapter(base, folder / "adapter", 1, spread, **shape)
    to = folder / "checkpoint"
    words = ["export", str(adapter), "--to", str(to), "--dtype", "float32"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    expected = answers(base, adapter, prompts)
    assert expected != answers(base, None, prompts), "the adapter must matter"
    theirs = ask(to, prompts)
    if engine == "llama_cpp":
        expected = [told_by_llama_cpp(one, tokenizer) for one in expected]
        theirs = [told_by_llama_cpp(one, tokenizer) for one in theirs]
        assert sum(map(len, expected)) > TOKENS
        theirs = [one[: len(known)] for one, known in zip(theirs, expected, strict=True)]
    assert theirs == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_twin_answers_as_the_adapter(
    family: str,
    engine: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    ask: Ask,
) -> None:
    base = tmp_path / "base"
    known = engine == "llama_cpp"  # its converter refuses tokenizers that it does not know
    source = request.getfixturevalue("smollm2") if known else write_model(tmp_path / "byte")
    # It ignores Qwen2-MoE's norm_topk_prob; the gates of all experts sum to 1 as they are.
    shape = {"top_k": 4} if known and family == "qwen2" else {}
    base.mkdir()
    check(engine, tmp_path, tiny(base, family, source), ask, spread=0.2, **shape)


def test_smollm2_answers_as_the_adapter(
    engine: str, smollm2: Path, tmp_path: Path, ask: Ask
) -> None:
    check(engine, tmp_path, smollm2, ask, spread=0.05)
