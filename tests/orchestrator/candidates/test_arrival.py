"""Adapters from elsewhere: brought in, fitted, measured against the base, and judged like any."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cluster.errors import ClusterError
from cluster.session import Session
from orchestrator.candidates import arrival
from orchestrator.candidates.yardstick import Yardstick
from orchestrator.cli import app
from orchestrator.config.cluster import ClusterSpec
from orchestrator.evaluation.compare import Measurement, evaluation, on_cluster
from orchestrator.registry.models import Version
from orchestrator.registry.registry import Registry
from orchestrator.serve.served_base import served_base
from search_spaces.spec import SearchSpec
from tests.tiny import write_adapter, write_model
from workers.adapter.convert import export_folder, import_folder
from workers.adapter.digest import base_digest, folder_digest
from workers.adapter.manifest import BaseRecord, Manifest, Origin
from workers.config.base import InputError, override
from workers.config.train import TrainSpec
from workers.run.record import RunPlan
from workers.train.loop import TrainingRun

GOLDEN = Path(__file__).parents[2] / "fixtures" / "golden" / "mixlora_llama"
LOSS = "validation/loss"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Promote = Callable[..., str]


@dataclass(frozen=True)
class Elsewhere:
    """Adapters that were trained on the tiny model, as others would hand them over."""

    peft: Path
    mixlora: Path
    ours: Path
    spec: TrainSpec
    base: dict[str, Any]
    """What the bare base gave."""


@pytest.fixture(scope="module")
def elsewhere(
    make_spec: Callable[..., TrainSpec], tmp_path_factory: pytest.TempPathFactory
) -> Elsewhere:
    folder = tmp_path_factory.mktemp("elsewhere")
    shapes = {"peft": {"adapter__num_experts": 1, "adapter__top_k": 1}, "mixlora": {}}
    for name, shape in shapes.items():
        spec = make_spec(optimizer__steps=6, evaluation__every=6, optimizer__lr=1e-2, **shape)
        run = TrainingRun(spec, RunPlan(folder / name, "far"))
        base, _ = run.measure_base()
        run.advance()
        run.save_adapter(folder / name / "ours")
        run.close()
        export_folder(folder / name / "ours", folder / name / "theirs")
    return Elsewhere(
        folder / "peft" / "theirs",
        folder / "mixlora" / "theirs",
        folder / "mixlora" / "ours",
        spec,
        base,
    )


@dataclass(frozen=True)
class Here:
    """A storage folder, its registry, and the command on it."""

    folder: Path
    registry: Registry
    job: Path
    address: str | None = None

    def promote(self, *words: str) -> str:
        """What `moetune promote` prints; its InputError is raised."""
        at = ("--address", self.address) if self.address else ()
        where = ("--storage", str(self.folder))
        result = CliRunner().invoke(app, ["promote", *words, *where, *at])
        if isinstance(result.exception, InputError | AssertionError):
            raise result.exception
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output

    def refused(self, *words: str) -> str:
        """Its one line; nothing may be left of the attempt."""
        before = self.versions(), self.registry.names()
        with pytest.raises(InputError) as caught:
            self.promote(*words)
        assert (self.versions(), self.registry.names()) == before
        said = str(caught.value)
        assert "\n" not in said
        assert "/versions/." not in said, "people do not know our copy"
        return said

    def versions(self) -> list[str]:
        """Folders of versions, half-written ones with them."""
        place = self.folder / "versions"
        found = sorted(path.name for path in place.iterdir()) if place.exists() else []
        assert found == sorted(version.digest for version in self.registry.versions())
        return found

    def champion(self, name: str) -> Version:
        found = self.registry.champion(name)
        assert found is not None
        return found


@pytest.fixture
def here(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: Elsewhere) -> Here:
    """No cluster answers here; a job on the rows and the base of `elsewhere`."""

    def no_cluster(address: str | None = None) -> None:
        raise AssertionError("a cluster was asked for")

    monkeypatch.setenv("MOETUNE_STORE", store)
    monkeypatch.setattr(arrival, "session", no_cluster)
    return _here(store, tmp_path, elsewhere)


@pytest.fixture
def there(
    store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    elsewhere: Elsewhere,
    ray_cluster: Session,
) -> Here:
    """The same with a real cluster."""
    monkeypatch.setenv("MOETUNE_STORE", store)
    return _here(store, tmp_path, elsewhere, ray_cluster.address)


def _here(store: str, tmp_path: Path, elsewhere: Elsewhere, address: str | None = None) -> Here:
    job = tmp_path / "job.yaml"
    train = elsewhere.spec.model_dump(mode="json")
    job.write_text(yaml.safe_dump({"name": "paint", "train": train, "search": {"space": "smoke"}}))
    folder = tmp_path / "runs"
    folder.mkdir()
    return Here(folder, Registry(store, folder), job, address)


def a_study(here: Here, elsewhere: Elsewhere, loss: float, **lineage: Any) -> Version:
    """A version as a trial leaves it, with a loss of the test's own."""
    metrics = {"validation": {"loss": loss}}
    facts = {"base_metrics": elsewhere.base, **lineage}
    return here.registry.register("paint", 0, elsewhere.ours, metrics, facts)


@pytest.mark.parametrize("kind", ["peft", "mixlora", "ours"])
def test_a_folder_is_measured_against_the_base_and_promoted(
    kind: str, there: Here, elsewhere: Elsewhere
) -> None:
    folder: Path = getattr(elsewhere, kind)
    said = there.promote("paint", "--version", str(folder), "--job", str(there.job))
    version = there.champion("paint")
    manifest = there.registry.manifest(version)
    assert f"is version {version.id}: {LOSS} " in said
    assert f"paint is now paint@{version.id} (before: nothing)" in said
    model = elsewhere.spec.model.path
    assert manifest.origin == Origin(
        path=str(folder),
        digest=folder_digest(folder),
        base=manifest.origin and manifest.origin.base,
    )
    assert manifest.base.digest == base_digest(model)
    assert manifest.base.path == model
    assert (version.study, version.trial) == ("paint", None)
    assert manifest.base_metrics["validation"]["loss"] == pytest.approx(
        elsewhere.base["validation"]["loss"], rel=1e-5
    ), "the base as a study measures it"
    mine = manifest.metrics["validation"]["loss"]
    assert mine < manifest.base_metrics["validation"]["loss"]
    own = json.loads((elsewhere.ours / "manifest.json").read_text())["metrics"]["validation"]
    if kind != "peft":  # the very adapter that was trained there
        assert mine == pytest.approx(own["loss"], rel=1e-4)
        assert set(manifest.expert_load) == {"layers.0.mlp", "layers.1.mlp"}
        assert manifest.routing_sample is not None
    [event] = there.registry.history("paint")
    assert event.evidence["candidate"]["origin"] == folder.name
    assert event.evidence["base"]["value"] == manifest.base_metrics["validation"]["loss"]
    assert there.versions() == [version.digest]
    shown = CliRunner().invoke(app, ["adapter", "inspect", str(version.folder)]).output
    assert re.search(rf"^origin +{re.escape(str(folder)[:40])}", shown, re.MULTILINE)
    assert "measured_with" not in shown
    # How it was prompted here is how it is asked from now on.
    measurement = Measurement.of(there.registry, "paint", None, rows=5)
    assert measurement.spec.data.validation == elsewhere.spec.data.validation
    url = ClusterSpec(storage=str(there.folder)).store_url()
    assert served_base(url, there.folder, "paint").model.path == model


def test_the_names_own_rows_and_its_bases_figures_are_taken(
    there: Here, elsewhere: Elsewhere
) -> None:
    """A base that gave 0.1 there is not measured again; and the champion is what is to beat."""
    claimed = {"validation": {"loss": 0.1}}
    first = a_study(there, elsewhere, 50.0, base_metrics=claimed)
    there.promote("paint", "--version", first.id, "--force", "--reason", "to begin with")
    there.promote("paint", "--version", str(elsewhere.peft), "--canary", "10%")
    state = there.registry.rollout("paint")
    assert state is not None
    assert state.canary is not None
    version = there.registry.version(state.canary.version)
    manifest = there.registry.manifest(version)
    assert manifest.base_metrics == claimed
    assert manifest.data_digest == there.registry.manifest(first).data_digest
    evidence = there.registry.history("paint")[-1].evidence
    assert evidence["champion"]["value"] == 50.0
    assert evidence["reasons"] == []


def test_the_gate_judges_it_like_any_and_it_is_not_measured_twice(
    there: Here, elsewhere: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worse = write_adapter(Path(elsewhere.spec.model.path), tmp_path / "worse", 3, spread=2.0)
    words = ("paint", "--version", str(worse), "--job", str(there.job))
    with pytest.raises(InputError, match=r"is not better than .* of the bare base"):
        there.promote(*words)
    assert there.registry.names() == []
    [version] = there.registry.versions()

    def no_cluster(address: str | None = None) -> None:
        raise AssertionError("a cluster was asked for")

    monkeypatch.setattr(arrival, "session", no_cluster)
    said = there.promote(*words, "--force", "--reason", "to see it")
    assert f"was measured on these rows before, as version {version.id}" in said
    assert there.champion("paint") == version
    assert there.versions() == [version.digest]
    # Its own folder in the store is no other version.
    there.promote(
        "other",
        "--version",
        str(version.folder),
        "--job",
        str(there.job),
        "--force",
        "--reason",
        "to see it",
    )
    assert there.champion("other") == version


def test_what_is_not_finite_is_refused(there: Here, elsewhere: Elsewhere, tmp_path: Path) -> None:
    broken = write_adapter(Path(elsewhere.spec.model.path), tmp_path / "b", 3, spread=1e30)
    said = there.refused("paint", "--version", str(broken), "--job", str(there.job))
    assert said.startswith(f"{broken}: its loss is ")


def test_what_only_the_base_itself_shows_is_refused_too(
    there: Here, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    """By the cluster, whose message names the folder and not our copy of it."""
    lacking = tmp_path / "lacking"
    shutil.copytree(elsewhere.mixlora, lacking)
    tensors = load_file(lacking / WEIGHTS)
    kept = {name: t for name, t in tensors.items() if "layers.1.self_attn.q_proj" not in name}
    save_file(kept, lacking / WEIGHTS)
    said = there.refused("paint", "--version", str(lacking), "--job", str(there.job))
    assert said.startswith(f"{lacking}: does not fit this model")
    base = {"path": elsewhere.spec.model.path, "digest": "0" * 64}
    first = a_study(there, elsewhere, 50.0, base=base)
    there.promote("paint", "--version", first.id, "--force", "--reason", "to begin with")
    said = there.refused("paint", "--version", str(elsewhere.peft))
    assert said.startswith(f"study paint: its base model {base['path']} has changed since")


def test_the_references_own_adapter_on_its_own_base(there: Here, tmp_path: Path) -> None:
    """Its file is a pickle, which is imported by an act of its own."""
    job = yaml.safe_load(there.job.read_text())
    job["train"]["model"]["path"] = str(golden_base(tmp_path / "base"))
    rows = tmp_path / "words.jsonl"
    rows.write_text(
        "".join(f'{{"prompt": "w{i} w{i + 1}", "target": "w{i + 2}"}}\n' for i in range(9))
    )
    job["train"]["data"] |= {
        "train": str(rows),
        "validation": str(rows),
        "template": "plain",
        "max_length": 32,
    }
    there.job.write_text(yaml.safe_dump(job))
    words = ("gold", "--job", str(there.job), "--version")
    said = there.refused(*words, str(GOLDEN / "adapter"))
    assert (
        f"which is a pickle; make a folder without one first: moetune adapter import {GOLDEN}"
        in said
    )
    taken = import_folder(GOLDEN / "adapter", tmp_path / "taken")
    forced = ("--force", "--reason", "its training is not known")
    there.promote(*words, str(taken), *forced)
    manifest = there.registry.manifest(there.champion("gold"))
    assert manifest.base.digest == base_digest(GOLDEN / "base")
    assert manifest.origin is not None
    assert manifest.origin.base == "base"
    assert set(manifest.expert_load) == {"layers.0.mlp", "layers.1.mlp"}
    assert 0 < manifest.base_metrics["validation"]["loss"] != manifest.metrics["validation"]["loss"]


def golden_base(folder: Path) -> Path:
    """The reference's base with a tokenizer of its 64 tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    shutil.copytree(GOLDEN / "base", folder)
    names = ["<pad>", "<unk>", "</s>", *(f"w{i}" for i in range(61))]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def damaged(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-7])


def not_finite(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    next(iter(tensors.values())).fill_(torch.nan)
    save_file(tensors, folder / WEIGHTS)


def another_width(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = next(name for name in tensors if name.endswith("q_proj.lora_A.weight"))
    tensors[name] = torch.cat([tensors[name]] * 2, 1)
    save_file(tensors, folder / WEIGHTS)


def deeper(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    more = {name.replace("layers.1.", "layers.7."): t.clone() for name, t in tensors.items()}
    save_file({**tensors, **more}, folder / WEIGHTS)


def without_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def linked(folder: Path) -> None:
    real = (folder / WEIGHTS).rename(folder.parent / "elsewhere.safetensors")
    (folder / WEIGHTS).symlink_to(real)


def unknown(folder: Path) -> None:
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**values, "layer_replication": [[0, 1]]}))


def no_config(folder: Path) -> None:
    (folder / CONFIG).unlink()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (damaged, "is damaged"),
        (not_finite, "has values that are not finite"),
        (another_width, "is made for 128 features, but that linear has 64"),
        (deeper, "does not fit"),
        (without_weights, f"has neither {WEIGHTS} nor"),
        (pickled, "which is a pickle; make a folder without one"),
        (linked, "is no regular file"),
        (unknown, "layer_replication is set"),
        (no_config, f"has no {CONFIG}"),
    ],
)
@pytest.mark.parametrize("kind", ["peft", "mixlora"])
def test_a_bad_folder_is_refused_before_a_cluster_starts(
    kind: str,
    change: Callable[[Path], None],
    why: str,
    here: Here,
    elsewhere: Elsewhere,
    tmp_path: Path,
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(getattr(elsewhere, kind), bad)
    change(bad)
    said = here.refused("paint", "--version", str(bad), "--job", str(here.job))
    assert why in said
    assert str(bad) in said


def test_an_adapter_of_another_base_is_refused(
    here: Here, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    """Of the same shapes, by its digest; and where the base is known from the name's versions."""
    other = changed(write_model(tmp_path / "other"))
    foreign = write_adapter(other, tmp_path / "foreign", 1)
    by_job = ("paint", "--version", str(foreign), "--job", str(here.job))
    assert f"{foreign}: belongs to another base model, {other}" in here.refused(*by_job)
    first = a_study(here, elsewhere, 1.0)
    here.promote("paint", "--version", first.id)
    assert "belongs to another base model" in here.refused("paint", "--version", str(foreign))


def test_what_is_needed_is_said(here: Here, elsewhere: Elsewhere, tmp_path: Path) -> None:
    peft = str(elsewhere.peft)
    for words, why in (
        (("paint", "--version", peft), f"paint: has no version yet that says on which rows {peft}"),
        (("paint", "--version", str(tmp_path / "no")), "is neither an id (4 to 64 hex digits) nor"),
        (("s", "--to", "paint", "--version", peft), "no studies there yet"),
        (("paint", "--version", peft, "--job", str(tmp_path / "no.yaml")), "cannot be read"),
        (("paint", "--version", peft, "--job", str(here.job), "--canary=5%"), "no champion yet"),
        (("paint", "--version", peft, "--job", str(here.job), "--force"), "needs a reason"),
        (("tiny-llama", "--version", peft, "--job", str(here.job)), "call the bare base of"),
        (("pa int", "--version", peft, "--job", str(here.job)), "name 'pa int': write 1 to 63"),
    ):
        assert why in here.refused(*words)


def test_rows_that_are_gone_or_changed_are_refused(
    here: Here, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    first = a_study(here, elsewhere, 1.0, data_digest="0" * 64)
    here.promote("paint", "--version", first.id)
    words = ("paint", "--version", str(elsewhere.peft))
    assert "study paint: its rows (data.train" in here.refused(*words)
    lost = elsewhere.spec.model_dump(mode="json")
    lost["data"]["validation"] = str(tmp_path / "lost.jsonl")
    second = a_study(here, elsewhere, 0.5, data_digest="0" * 64, spec=lost)
    here.promote("paint", "--version", second.id)
    assert "lost.jsonl: no such file" in here.refused(*words)


def test_a_base_that_has_moved_is_named(here: Here, elsewhere: Elsewhere, tmp_path: Path) -> None:
    now, gone = elsewhere.spec.model.path, str(tmp_path / "gone")
    spec = elsewhere.spec.model_dump(mode="json")
    spec["model"]["path"] = gone
    record = {"path": gone, "digest": base_digest(now)}
    first = a_study(here, elsewhere, 1.0, spec=spec, base=record)
    here.promote("paint", "--version", first.id)
    words = ("paint", "--version", str(elsewhere.peft))
    assert f"is not at {gone} any more; --base PATH says where it is now" in here.refused(*words)
    with pytest.raises(AssertionError, match="a cluster was asked for"):
        here.promote(*words, "--base", now)
    other = write_model(tmp_path / "other", context=64)
    assert "is another base model" in here.refused(*words, "--base", str(changed(other)))


def changed(base: Path) -> Path:
    """A base model with other weights."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    model.get_input_embeddings().weight.data.mul_(1.5)
    model.save_pretrained(base)
    return base


def test_a_cluster_is_asked_for_only_when_all_else_is_well(
    here: Here, elsewhere: Elsewhere
) -> None:
    for folder in (elsewhere.peft, elsewhere.mixlora, elsewhere.ours):
        with pytest.raises(AssertionError, match="a cluster was asked for"):
            here.promote("paint", "--version", str(folder), "--job", str(here.job))
        assert here.versions() == [], "the copy is gone"


def test_a_job_says_where_versions_lie_and_may_be_smoke(
    elsewhere: Elsewhere, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a storage folder yet, which no job that is refused makes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MOETUNE_STORAGE", raising=False)
    words = ("promote", "home", "--version", str(elsewhere.peft), "--job")
    refused = CliRunner().invoke(app, [*words, "nowhere.yaml", "--storage", "new"])
    assert "nowhere.yaml" in str(refused.exception)
    assert not Path("new").exists()

    job = yaml.safe_load(here.job.read_text()) | {"cluster": {"storage": "told"}}
    here.job.write_text(yaml.safe_dump(job))
    for name, where in ((str(here.job), "told"), ("smoke", "runs")):
        asked = CliRunner().invoke(app, [*words, name])
        assert "a cluster was asked for" in str(asked.exception), asked.output
        assert (tmp_path / where).is_dir()


def test_the_same_measure_is_told_by_the_bases_digest_and_what_changes_figures(
    elsewhere: Elsewhere,
) -> None:
    spec = elsewhere.spec

    def manifest(digest: str | None, **changes: object) -> Manifest:
        asked = override(spec, changes, "test").model_dump(mode="json")
        record = BaseRecord(path=asked["model"]["path"], digest=digest)
        return Manifest(base=record, measured_with=asked)

    def of_before(known: Manifest) -> Manifest:
        asked = dict(known.asked_with or {})
        asked["data"] = {name: one for name, one in asked["data"].items() if name != "metrics"}
        return known.model_copy(update={"measured_with": asked})

    measure = Yardstick("s", spec, LOSS, "min", SearchSpec(), manifest("b"))
    moved = {"model.path": "moved", "evaluation.samples": 0, "evaluation.batch_size": 1}
    assert measure.measured_alike(manifest("b", **moved))
    encoded = {"data.processes": 2, "data.record_rows": True, "data.packing": True}
    assert measure.measured_alike(manifest("b", **encoded))
    assert measure.measured_alike(of_before(manifest("b"))), "it lacks a field that came later"
    assert measure.measured_alike(manifest("b", **{"model.dtype": "bfloat16"})), "as a GPU had it"
    assert not measure.measured_alike(manifest("c", **moved))
    assert not measure.measured_alike(manifest("b", **{"evaluation.rows_per_task": 1}))
    assert not measure.measured_alike(Manifest(base=BaseRecord(path="b", digest="b")))


def test_an_evaluation_that_breaks_is_told_in_one_line(
    ray_cluster: Session, elsewhere: Elsewhere
) -> None:
    def breaks(spec: TrainSpec, folder: Path | None) -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(ClusterError, match=r"^the evaluation failed: .*out of memory"):
        on_cluster(breaks, elsewhere.spec, {"base": None}, evaluation(1))
