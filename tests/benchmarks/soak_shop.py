"""What the soak serves: a tiny model, versions of adapters, and what each of them must answer."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cluster.session import session
from orchestrator.config.serve import ServeSpec
from orchestrator.registry.models import Version
from orchestrator.registry.plan import stage
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from orchestrator.serve.deploy import deploy, undeploy
from orchestrator.serve.served_base import served_base
from tests.tiny import write_adapter, write_model

NAME = "soak"
PROMPTS = tuple(f"{word} {number}: " for word in ("tell", "name", "count") for number in range(4))


@dataclass(frozen=True)
class Shop:
    """A running endpoint, its registry, and the truth."""

    url: str
    registry: Registry
    versions: list[Version]
    expected: Mapping[tuple[str, str], str]
    """Greedy answer by version and prompt; the base is `base`."""

    def promote(self, number: int, **how: str | bool) -> None:
        """A version to champion, canary or shadow."""
        promote(
            self.registry,
            self.versions[number],
            NAME,
            actor="soak",
            metric="validation/loss",
            reason="soak",
            force=True,
            stage=stage(**how),  # type: ignore[arg-type]
        )


@contextmanager
def opened(folder: Path, versions: int, replicas: int, tokens: int) -> Iterator[Shop]:
    """Made, deployed on a cluster of its own, and taken down at the end."""
    base = write_model(folder / "tiny-llama")
    url = f"sqlite:///{folder}/moetune.db"
    registry = Registry(url, folder)
    adapters = [
        # So strong that no two answers are alike, and none repeats itself.
        write_adapter(base, folder / f"adapter-{seed}", seed, alpha=48.0)
        for seed in range(versions)
    ]
    made = [registry.register("soak", seed, adapter, {}) for seed, adapter in enumerate(adapters)]
    expected = {
        (version, prompt): answer
        for version, source in (("base", None), *((v.id, v.folder) for v in made))
        for prompt, answer in _answers(base, source, tokens).items()
    }
    sources = {version for version, _ in expected}
    if any(len({expected[v, prompt] for v in sources}) < len(sources) for prompt in PROMPTS):
        raise SystemExit("two versions answer alike: nothing could be told from that")
    shop = Shop("", registry, made, expected)
    shop.promote(0)
    serve = ServeSpec(
        port=0,
        replicas=replicas,
        cpus_per_replica=0.5,
        max_batch_tokens=128,
        cache_tokens=4096,
        max_queued_requests=256,
        max_adapters=versions,
    )
    with session(num_cpus=2):
        endpoint = deploy(serve, served_base(url, folder, NAME))
        yield Shop(endpoint.url, registry, made, expected)
        undeploy()


def readable(text: str) -> str:
    """Without bytes that are no characters: a stream may hold several of them back as one."""
    return text.replace("\ufffd", "")


def _answers(base: Path, adapter: Path | None, tokens: int) -> dict[str, str]:
    """From transformers' own `generate`, one prompt at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from workers.adapter.files import attach

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    if adapter is not None:
        model = attach(model, adapter)
    answers = {}
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            whole = model.generate(ids, max_new_tokens=tokens, do_sample=False)
        text = tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
        answers[prompt] = readable(text)
    return answers
