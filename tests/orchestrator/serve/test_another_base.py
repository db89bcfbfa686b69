"""An endpoint that takes the place of one with another base model."""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.session import Session
from orchestrator.config.serve import ServeSpec
from orchestrator.serve.deploy import Endpoint, deploy, undeploy
from orchestrator.serve.served_base import served_base
from workers.config.model import ModelSpec

SPEC = ServeSpec(port=0, max_batch_tokens=128, cache_tokens=512, max_new_tokens=64)
Answers = dict[str, list[str]]


@pytest.fixture
def deployed(
    ray_cluster: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Path], Endpoint]]:
    """Puts an endpoint with that base model on the cluster."""
    monkeypatch.delenv("MOETUNE_API_KEY", raising=False)
    url = f"sqlite:///{tmp_path}/moetune.db"
    yield lambda model: deploy(SPEC, served_base(url, tmp_path, None, ModelSpec(path=str(model))))
    undeploy()


@pytest.fixture
def other_model_dir(tiny_model_dir: Path, tmp_path: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model.config.tie_word_embeddings = False
    rows = model.get_input_embeddings().weight.detach()
    model.lm_head.weight = torch.nn.Parameter(rows.roll(1, dims=0))  # it says the next letter
    model.save_pretrained(tmp_path / "other-llama")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "other-llama")
    return tmp_path / "other-llama"


def ask(url: str, model: str) -> str | None:
    """The base's answer; None where this endpoint has no such base, or cannot answer now."""
    body: dict[str, Any] = {"model": model, "prompt": "hello", "temperature": 0, "max_tokens": 24}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
    if answer.is_success:
        return str(answer.json()["choices"][0]["text"])
    assert answer.status_code in (404, 503), answer.text
    return None


def test_no_answer_comes_of_the_other_base(
    deployed: Callable[[Path], Endpoint], tiny_model_dir: Path, other_model_dir: Path
) -> None:
    """While one takes the other's place, both gateways and both kinds of engines are there."""
    url, done = deployed(tiny_model_dir).url, threading.Event()
    seen: Answers = defaultdict(list)

    def keep_asking(model: str) -> None:
        while not done.is_set():
            if (text := ask(url, model)) is not None:
                seen[model].append(text)

    models = (tiny_model_dir.name, other_model_dir.name)
    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(keep_asking, model) for model in models]
        try:
            assert deployed(other_model_dir).url == url
        finally:
            done.set()
        for one in asking:
            one.result()
    seen[models[1]].append(str(ask(url, models[1])))
    assert {model: len(set(texts)) for model, texts in seen.items()} == dict.fromkeys(models, 1)
    assert seen[models[0]][0] != seen[models[1]][0]
