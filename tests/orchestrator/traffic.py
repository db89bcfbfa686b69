"""A tiny router that was trained on one domain, and requests of this and of another one."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import torch

from orchestrator.telemetry.request_record import RequestRecord, steady
from workers.adapter.manifest import Manifest, read_manifest
from workers.config.train import TrainSpec
from workers.data.batches import collate
from workers.data.rows import read_rows
from workers.engine.routing.types import LayerRouting, RequestRouting
from workers.injection.adapter import LayerRecord
from workers.run.record import RunPlan
from workers.train.forward import recorded
from workers.train.loop import TrainingRun

Row = Mapping[str, str]
ROOMS = ("kitchen", "office", "hall", "cellar", "bedroom", "bathroom", "garage", "attic")
THINGS = ("light", "heating", "fan", "radio", "blinds", "lamp")


def home(random: Random) -> Row:
    """The domain that the router was trained on."""
    verb, state = random.choice([("start", "on"), ("switch on", "on"), ("turn off", "off")])
    room = random.choice(ROOMS)
    thing = random.choice(THINGS)
    form = random.choice(["{0} the {1} in the {2}", "please {0} {2} {1}", "{2}: {0} {1}"])
    call = f"set(room={room}, {thing}={state})"
    return {"prompt": form.format(verb, thing, room), "target": call, "task": "home"}


def clinic(random: Random) -> Row:
    """A domain that training did not see."""
    what = random.choice(["fever", "cough", "headache", "rash"])
    days = random.choice(["two", "three", "five", "ten"])
    advice = random.choice(["see a doctor", "rest and drink", "call the clinic"])
    prompt = f"my child has had a {what} for {days} days, what should I do"
    return {"prompt": prompt, "target": advice, "task": "clinic"}


def rows_of(domain: Callable[[Random], Row], count: int, seed: int) -> list[Row]:
    random = Random(seed)
    return [domain(random) for _ in range(count)]


def write_rows(path: Path, rows: Sequence[Row]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@dataclass(frozen=True)
class Trained:
    """A run on the home domain, its adapter's folder, and real requests through its routers."""

    run: TrainingRun
    folder: Path
    manifest: Manifest
    home: list[RequestRouting]
    clinic: list[RequestRouting]


def train_on_home(make_spec: Callable[..., TrainSpec], folder: Path) -> Trained:
    sources = {
        f"data__{name}": write_rows(folder / f"{name}.jsonl", rows_of(home, count, seed))
        for name, count, seed in (("train", 200, 1), ("validation", 300, 2))
    }
    spec = make_spec(optimizer__steps=12, evaluation__every=12, **sources)
    run = TrainingRun(spec, RunPlan(folder, "study"))
    run.advance()
    run.save_adapter(folder / "adapter")
    manifest = read_manifest(folder / "adapter")
    assert manifest is not None
    fresh = {"home": rows_of(home, 700, 3), "clinic": rows_of(clinic, 250, 4)}
    routed = {
        name: routings(run, write_rows(folder / f"fresh-{name}.jsonl", rows))
        for name, rows in fresh.items()
    }
    return Trained(run, folder / "adapter", manifest, **routed)


@torch.no_grad()
def routings(run: TrainingRun, source: str) -> list[RequestRouting]:
    """What an engine tells of these rows' prompts and right answers, from the same routers."""
    encoder, base = run.inputs.encoder, run.inputs.base
    examples = [encoder.example(row) for row in read_rows(run.spec.data, source)]
    found = []
    for first in range(0, len(examples), 50):
        batch = collate(examples[first : first + 50], run.inputs.pad_token_id)
        with recorded(run.adapter, base, batch, rank_space=False) as records:
            base.model(input_ids=batch.input_ids_BS, attention_mask=batch.attention_mask_BS)
        lengths = batch.attention_mask_BS.sum(1).tolist()
        for row, length in enumerate(lengths):
            read = slice(row * max(lengths), row * max(lengths) + length - 1)
            layers = tuple(layer_routing(record, read) for record in records)
            found.append(RequestRouting(length - 1, layers))
    return found


def layer_routing(record: LayerRecord, read: slice) -> LayerRouting:
    expert_tK, gate_tK = record.routing.expert_TK[read], record.routing.gate_TK[read]
    probs_tE = record.routing.probs_TE[read]
    experts = probs_tE.shape[1]
    weight_E = torch.zeros(experts).index_add(0, expert_tK.flatten(), gate_tK.flatten())
    top_t2 = probs_tE.topk(2).values
    entropy = torch.special.entr(probs_tE).sum() / torch.tensor(float(experts)).log()
    return LayerRouting(
        layer=record.layer,
        load=tuple(torch.bincount(expert_tK.flatten(), minlength=experts).tolist()),
        weight=tuple(weight_E.tolist()),
        entropy=float(entropy),
        margin=float((top_t2[:, 0] - top_t2[:, 1]).sum()),
    )


def answered(routing: RequestRouting | None = None, **fields: Any) -> RequestRecord:
    """A request that ended well."""
    values = {
        "at": datetime.now(UTC),
        "came": steady(),
        "request": "chatcmpl-1",
        "name": "home",
        "version": "3f9a1b2c3d4e",
        "caller": "anonymous",
        "status": 200,
        "error": None,
        "prompt_tokens": routing.tokens - 9 if routing else 20,
        "completion_tokens": 10,
        "seconds": 0.5,
        "first_token_seconds": 0.1,
        "routing": routing,
    }
    return RequestRecord(**{**values, **fields})
