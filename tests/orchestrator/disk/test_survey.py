"""What lies in a storage folder, what of it may go, and that nothing else does."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.running import claimed
from orchestrator.cli import app
from orchestrator.config.cluster import ClusterSpec
from orchestrator.config.job import JobSpec
from orchestrator.disk.deletion import delete_name, delete_version
from orchestrator.disk.survey import clean, survey
from orchestrator.disk.use import Item, measured
from orchestrator.registry.models import Version
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from orchestrator.tuning.lifecycle import locked
from orchestrator.tuning.storage import database_file
from orchestrator.tuning.study import Study, all_studies, trial_name
from workers.adapter.convert import import_folder
from workers.config.base import InputError
from workers.data.store.cache import COMPILED_FOLDER
from workers.run.files import DELETED
from workers.run.files import locked as locked_file

GOLDEN = Path(__file__).parents[2] / "fixtures" / "golden" / "mixlora_llama" / "adapter"
WEIGHTS = "adapter_model.safetensors"
LONG_AGO = 86400 * 3
Play = Callable[..., Any]
ENDS = ["finished", "stopped", "failed", "cut"]


@pytest.fixture(autouse=True)
def temporary(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A machine on which nobody has left anything."""
    if "store" in request.fixturenames:  # a server begins on the real one
        request.getfixturevalue("store")
    folder, home = tmp_path / "t", tmp_path / "h"
    for made in (folder, home):
        made.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setattr("cluster.running._home", lambda: home)
    return folder


@pytest.fixture
def job(job: JobSpec, store: str) -> JobSpec:
    return in_store(job, store)


@pytest.fixture
def trials(job: JobSpec, play: Play, request: pytest.FixtureRequest) -> list[Path]:
    """A study with a trial of each end, as Tune and their runs have left it: each with its adapter
    and two checkpoints; the finished one's is a version."""
    if file := database_file(job.cluster):
        left: JobSpec = request.getfixturevalue("left_study")
        copy_with_links(left.cluster.storage, job.cluster.storage)
        shutil.copy(database_file(left.cluster) or "", file)
    else:
        leave(job, play)
    return folders_of(job)


@pytest.fixture(scope="module")
def left_study(
    job_in: Callable[[Path], JobSpec], play: Play, tmp_path_factory: pytest.TempPathFactory
) -> JobSpec:
    """Such a study in a file, to be copied: a third of a second is what it takes to make one."""
    folder = tmp_path_factory.mktemp("left")
    job = in_store(job_in(folder / "runs"), f"sqlite:///{folder}/store.db")
    leave(job, play)
    return job


def copy_with_links(folder: str, to: str) -> None:
    """Files that are one are one in the copy as well."""
    there: dict[int, str] = {}

    def copy(source: str, target: str) -> None:
        first = there.setdefault(os.stat(source).st_ino, target)
        shutil.copy2(source, target) if first == target else os.link(first, target)

    shutil.copytree(folder, to, copy_function=copy)


def in_store(job: JobSpec, store: str) -> JobSpec:
    return job.model_copy(update={"cluster": job.cluster.model_copy(update={"store": store})})


def folders_of(job: JobSpec) -> list[Path]:
    return [job.study_folder() / "trials" / trial_name(n) for n in range(len(ENDS))]


def leave(job: JobSpec, play: Play) -> None:
    def register(number: int) -> str:
        adapter = import_folder(GOLDEN, folders[number] / "adapter")
        with closing(Registry(job.store_url(), job.cluster.storage)) as registry:
            return registry.register(job.name, number, adapter, {"validation": {"loss": 1.0}}).id

    folders = folders_of(job)
    play(job, ENDS, register=register)
    for folder in folders:
        if not (folder / "adapter").exists():
            import_folder(GOLDEN, folder / "adapter")
        for step in (10, 20):
            fill(folder / "checkpoints" / f"step-{step:08d}" / "state.pt")
    fill(job.study_folder() / "tune" / "20260101" / "experiment.json")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This machine's, of which no other test knows."""
    monkeypatch.setenv("MOETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def version(job: JobSpec, trials: list[Path]) -> Version:
    """That of the finished trial."""
    assert trials
    with closing(Registry(job.store_url(), job.cluster.storage)) as registry:
        [version] = registry.versions()
    return version


def fill(path: Path, age: float = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(100_000))
    for one in (path, path.parent):
        then = one.stat().st_mtime - age
        os.utime(one, (then, then))
    return path


def going(place: ClusterSpec, unfinished: bool = False) -> dict[str, tuple[Path, ...]]:
    """What may go, and where it is."""
    found: dict[str, tuple[Path, ...]] = {}
    for item in survey(place, unfinished):
        if item.goes:
            found[item.what.strip()] = found.get(item.what.strip(), ()) + item.paths
    return found


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_what_nobody_needs_may_go(job: JobSpec, trials: list[Path], version: Version) -> None:
    assert going(job.cluster) == {
        "checkpoints": tuple(trial / "checkpoints" for trial in trials[:3]),
        "Ray Tune's files": (job.study_folder() / "tune",),
        "stopped trials": (trials[1] / "adapter",),
    }
    before = files(Path(job.cluster.storage))
    clean(job.cluster)
    gone = before - files(Path(job.cluster.storage))
    assert {path.relative_to(job.study_folder()).parts[:3] for path in gone} == {
        *(("trials", trial.name, "checkpoints") for trial in trials[:3]),
        ("trials", trials[1].name, "adapter"),
        ("tune", "20260101", "experiment.json"),
    }
    assert (trials[3] / "checkpoints" / "step-00000020" / "state.pt").is_file()
    assert going(job.cluster) == {}
    with closing(Registry(job.store_url(), job.cluster.storage)) as registry:
        registry.verify(version)


def test_a_survey_changes_nothing(job: JobSpec, trials: list[Path], version: Version) -> None:
    before = {path: path.stat() for path in Path(job.cluster.storage).rglob("*")}
    survey(job.cluster, unfinished=True)
    after = {path: path.stat() for path in Path(job.cluster.storage).rglob("*")}
    same = {path for path in before if before[path].st_mtime_ns == after[path].st_mtime_ns}
    assert {path.name for path in before.keys() - same} <= {"runs", "moetune.db"}
    assert {path.name.split(".")[-1] for path in after.keys() - before.keys()} <= {"lock"}


def test_a_study_that_runs_stays_whole(job: JobSpec, trials: list[Path]) -> None:
    before = files(job.study_folder())
    with locked(job):
        assert going(job.cluster, unfinished=True) == {}
        [item] = [item for item in survey(job.cluster) if item.what == f"study {job.name}"]
        assert item.why == "it is running"
        clean(job.cluster, unfinished=True)
    assert files(job.study_folder()) == before


def test_what_resume_needs_goes_only_when_it_is_asked_for(
    job: JobSpec, trials: list[Path], play: Play
) -> None:
    fill(trials[3] / "group" / "state.json")
    assert trials[3] / "checkpoints" not in going(job.cluster)["checkpoints"]
    wanted = (trials[3] / "checkpoints", trials[3] / "group")
    assert going(job.cluster, unfinished=True)["unfinished trials"] == wanted
    clean(job.cluster, unfinished=True)
    assert not any(path.exists() for path in wanted)
    assert (trials[3] / "adapter" / WEIGHTS).is_file()
    [again] = play(job, ["finished"], resume=True)
    assert again == json.loads(json.dumps(again)), "it is gone on with, from its beginning"


def test_an_adapter_that_stands_twice_goes_once(
    job: JobSpec, trials: list[Path], version: Version, tmp_path: Path
) -> None:
    """As versions of old were made, and on two devices."""
    own = trials[0] / "adapter" / WEIGHTS
    assert own.samefile(version.folder / WEIGHTS)
    assert "copied adapters" not in going(job.cluster)
    copy = Path(shutil.copyfile(own, tmp_path / "copy"))
    os.replace(copy, own)
    assert going(job.cluster)["copied adapters"] == (trials[0] / "adapter",)
    changed = own.read_bytes()
    own.write_bytes(changed[:-1] + bytes([changed[-1] ^ 1]))
    assert "copied adapters" not in going(job.cluster), "it is not the same any more"
    own.write_bytes(changed)
    clean(job.cluster)
    assert not (trials[0] / "adapter").exists()
    with closing(Registry(job.store_url(), job.cluster.storage)) as registry:
        registry.verify(version)


def test_a_version_that_was_deleted_leaves_its_adapter_to_clean(
    job: JobSpec, trials: list[Path], version: Version
) -> None:
    with closing(Registry(job.store_url(), job.cluster.storage)) as registry:
        delete_version(registry, version.id, actor="ann")
    assert going(job.cluster)["dropped adapters"] == (trials[0] / "adapter",)


def test_versions_stay_whoever_leads_to_them(
    job: JobSpec, trials: list[Path], version: Version
) -> None:
    def told() -> str:
        [item] = [item for item in survey(job.cluster) if item.what == "versions"]
        assert (item.paths, item.goes) == ((version.folder,), False)
        return item.why

    assert told() == "1, names lead to 0"
    with closing(Registry(job.store_url(), job.cluster.storage)) as registry:
        promote(
            registry,
            version,
            "home",
            actor="a",
            metric="validation/loss",
            force=True,
            reason="t",
        )
        assert told() == "1, names lead to 1"
        delete_name(registry, "home", actor="a")
    assert told() == "1, names lead to 0"


def test_another_store_makes_nothing_go(
    job: JobSpec, trials: list[Path], version: Version, tmp_path: Path
) -> None:
    """Who forgets --store must lose nothing."""
    before = files(Path(job.cluster.storage))
    wrong = job.cluster.model_copy(update={"store": f"sqlite:///{tmp_path}/wrong.db"})
    for _ in range(2):  # without a database, and with an empty one
        assert going(wrong, unfinished=True) == {}
        why = {item.what: item.why for item in survey(wrong)}
        assert why["other studies"] == why["other versions"] == "this store does not know them"
        clean(wrong, unfinished=True)
        with closing(Registry(wrong.store_url(), wrong.storage)) as registry:
            registry.names()
    assert files(Path(job.cluster.storage)) == before


def unfinished(job: JobSpec, trials: list[Path], pid: int, key: str) -> list[Path]:
    """What a killed writer of each kind leaves, one of a version before with its `pid`."""
    folder, study, random = Path(job.cluster.storage), job.study_folder(), key * 32
    files = ("train.json", "exchange.json", "samples.json", "progress.jsonl", "error.txt")
    alone, rows = study / "longer", folder / "watch" / "home" / "home-2"
    of_before = [
        *(run / f".{name}.{pid}" for name in files for run in (trials[0], alone)),
        *(run / "ranks" / f".0.json.{pid}" for run in (trials[0], alone)),
        alone / f".base.json.{pid}",
        alone / f".base.samples.json.{pid}",
        folder / f".demo-summary.json.{pid}",
        rows / f".train.jsonl.{pid}",
        rows / f".validation.jsonl.{pid}",
        study / "inputs" / f".{key * 12}.base.json.{pid}",
        study / "inputs" / f".{key * 12}.base.samples.json.{pid}",
        study / f".job.json.{pid}",
        study / f".study.id.{pid}",
        study / f".report.html.{pid}",
    ]
    return [
        *(one.with_name(f"{one.name.removesuffix(str(pid))}{random}") for one in of_before),
        *of_before,
        folder / f".smoke.{random}",
        folder / "versions" / f".{random}",
        folder / "versions" / f"{DELETED}{random}",
        trials[0] / f".adapter.{random}",
        trials[0] / f".adapter.{random}.old",
        trials[0] / f".checkpoints.{random}",
        alone / f".adapter.{random}",
        alone / "checkpoints" / f".step-00000030.{random}",
        rows / f"{DELETED}{random}",
        trials[3] / "checkpoints" / f".step-00000030.{random}",
        trials[3] / "checkpoints" / f".step-00000030.{random}.old",
        trials[3] / "checkpoints" / f".step-0000003{pid % 10}.fetched",
        study / "inputs" / f".{key * 12}.json.{random}",
        study / "inputs" / f".dtype.{random}",
        study / f"{DELETED}{random}",
    ]


def test_a_study_of_the_same_name_in_another_store_makes_nothing_go(
    job: JobSpec, trials: list[Path], version: Version, play: Play, tmp_path: Path
) -> None:
    """It was begun in another storage folder, or before there were notes of whose a folder is."""
    before = files(job.study_folder())
    wrong = job.cluster.model_copy(update={"store": f"sqlite:///{tmp_path}/wrong.db"})
    apart = wrong.model_copy(update={"storage": str(tmp_path / "apart")})
    play(job.model_copy(update={"cluster": apart}), ENDS)
    with locked(job):
        assert going(wrong, unfinished=True) == {}
        [others] = [item for item in survey(wrong) if item.what == "other studies"]
        assert (others.paths, others.goes) == ((job.study_folder(),), False)
        clean(wrong, unfinished=True)
    assert files(job.study_folder()) == before
    assert going(job.cluster), "its own store lets go"


@pytest.mark.parametrize("look", [survey, clean])
def test_a_trial_that_ends_while_somebody_looks_keeps_its_adapter(
    look: Callable[[ClusterSpec], Any],
    job: JobSpec,
    trials: list[Path],
    play: Play,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The one that was cut off goes on and becomes a version, and then nobody runs the study."""
    adapter = trials[3] / "adapter"

    def register(number: int) -> str:
        with closing(Registry(job.store_url(), job.cluster.storage)) as registry:
            metrics = {"validation": {"loss": 0.5}}
            return registry.register(job.name, number, adapter, metrics).id

    def studies_later(place: ClusterSpec) -> list[Study]:
        play(job, ["finished"], resume=True, register=register)
        return all_studies(place)

    monkeypatch.setattr("orchestrator.disk.survey.all_studies", studies_later)
    dropped = [item for item in look(job.cluster) or [] if item.what == "  dropped adapters"]
    assert (dropped, (adapter / WEIGHTS).is_file()) == ([], True)


def test_left_overs_of_killed_processes_go_after_a_day(
    job: JobSpec, trials: list[Path], version: Version, temporary: Path
) -> None:
    old = unfinished(job, trials, 4711, "a")
    young = unfinished(job, trials, 4712, "b")
    old += [temporary / "moetune-job-abc", temporary / f"{DELETED}{'a' * 32}"]
    young.append(temporary / "moetune-job-def")
    for path in old:
        fill(path / "x", LONG_AGO)
    for path in young:
        fill(path / "x")
    found = {path for paths in going(job.cluster).values() for path in paths}
    assert {*old} - found == set()
    assert {*young} & found == set()
    clean(job.cluster)
    assert [path for path in old if path.exists()] == []
    assert [path for path in young if not path.exists()] == []


def test_what_somebody_hides_stays_however_old(
    job: JobSpec, trials: list[Path], version: Version
) -> None:
    """Its name is none of a writer's, or none of one that writes there."""
    folder, study, random = Path(job.cluster.storage), job.study_folder(), "a" * 32
    hidden = {
        folder: [".backup.20261101", f".notes.{random}", f".{random}"],
        folder / "versions": [".k", ".backup.20261101", f".adapter.{random}"],
        study: [".backup.20261101", f".trials.{random}", ".train.json.4711", f".{random}"],
        study / "inputs": [".rows.20261101", f".rows.json.{random}"],
        trials[0]: [".notes", ".backup.20261101", f".notes.{random}", ".job.json.4711"],
        trials[0] / "ranks": [".notes.4711"],
        trials[3] / "checkpoints": [".step-best", ".step-00000030.1", f".best.{random}"],
        study / "longer": [".backup.20261101", f".notes.{random}", ".job.json.4711"],
        folder / "watch" / "home": [f".diary.jsonl.{random}", f".train.jsonl.{random}"],
        folder / "watch" / "home" / "home-2": [".train.jsonl", f".train.json.{random}"],
    }
    theirs = {place / name for place, names in hidden.items() for name in names}
    kept = {fill(path / "x", LONG_AGO) for path in theirs}
    found = {path for paths in going(job.cluster).values() for path in paths}
    assert theirs & found == set()
    clean(job.cluster)
    assert {path for path in kept if not path.exists()} == set()


def test_clusters_whose_owner_was_killed_go(job: JobSpec, trials: list[Path]) -> None:
    with claimed() as living:
        killed = fill(living.folder.parent / "killed" / "ray" / "log").parents[1]
        assert going(job.cluster)["local clusters"] == (killed,)
        clean(job.cluster)
        assert not killed.exists()
        assert living.token_file.exists()


def test_encoded_rows_may_go_but_for_those_that_a_run_reads(tmp_path: Path, cache: Path) -> None:
    place = ClusterSpec(storage=str(tmp_path / "storage"))
    assert going(place) == {}
    for name in ("used", "unused"):
        fill(cache / "rows" / name / "rows.arrow")
    with (cache / "rows" / "used" / "rows.arrow").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert going(place) == {"encoded rows": (cache / "rows" / "unused",)}
        [stays] = [item for item in survey(place) if not item.goes]
        assert (stays.what, stays.paths) == ("encoded rows", (cache / "rows" / "used",))
        clean(place)
        assert [path.name for path in (cache / "rows").iterdir()] == ["used"]


def test_compiled_layers_go_once_no_run_has_just_made_them(tmp_path: Path, cache: Path) -> None:
    place, compiled = ClusterSpec(storage=str(tmp_path / "storage")), cache / COMPILED_FOLDER
    for name in ("old", "new"):
        fill(compiled / name / "graph.py")
    os.utime(compiled / "old", (1, 1))
    assert going(place) == {"compiled layers": (compiled / "old",)}
    clean(place)
    assert [path.name for path in compiled.iterdir()] == ["new"]


def test_what_a_killed_encoder_has_left_goes(tmp_path: Path, cache: Path) -> None:
    place, key = ClusterSpec(storage=str(tmp_path / "storage")), "a" * 32
    killed = cache / "rows" / f".{key}.{'0' * 32}"
    making = cache / "rows" / f".b{key}.{'0' * 32}"
    for folder in (killed, making):
        fill(folder / "rows.arrow")
    with locked_file(cache / "rows" / f"b{key}.lock") as mine:
        assert mine
        assert going(place) == {"encoded rows": (killed,)}
        assert not (cache / "rows" / f"{key}.lock").exists(), "looking changes nothing"
        clean(place)
    assert not killed.exists()
    assert making.exists()


def test_what_is_said_to_go_is_what_gets_free(
    job: JobSpec, trials: list[Path], version: Version
) -> None:
    def blocks() -> int:
        stats = [path.lstat() for path in (folder, *folder.rglob("*"))]
        return sum({s.st_ino: s.st_blocks * 512 for s in stats}.values())

    folder = Path(job.cluster.storage)
    used = measured(survey(job.cluster))
    before = blocks()
    says = sum(use.bytes for use in used if use.item.goes)
    assert abs(sum(use.bytes for use in used) - before) < 40_000, "the folders themselves"
    clean(job.cluster)
    assert says > 600_000
    assert abs(before - blocks() - says) < 40_000


def test_a_file_with_two_names_counts_once_and_for_what_stays(tmp_path: Path) -> None:
    one, other = fill(tmp_path / "a" / "x"), tmp_path / "b" / "x"
    other.parent.mkdir()
    os.link(one, other)
    goes, stays = Item("a", "", (one,), goes=True), Item("b", "", (other,))
    assert measured([goes, stays])[0].bytes == 0
    assert measured([goes])[0].bytes >= 100_000


def test_a_killed_clean_is_finished_by_the_next(
    job: JobSpec, trials: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was at has lost its name already, and is whole for nobody."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            clean(job.cluster)
    assert not (trials[0] / "checkpoints").exists()
    [hidden] = trials[0].glob(f"{DELETED}*")
    os.utime(hidden, (0, 0))
    clean(job.cluster)
    assert not hidden.exists()
    assert going(job.cluster) == {}


def run(job: JobSpec, *words: str) -> str:
    options = ["--storage", job.cluster.storage, "--store", str(job.cluster.store)]
    result = CliRunner().invoke(app, ["clean", *words, *options])
    if isinstance(result.exception, InputError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_shows_and_deletes_by_yes_alone(
    job: JobSpec, trials: list[Path], version: Version
) -> None:
    before = files(Path(job.cluster.storage))
    told = run(job)
    assert files(Path(job.cluster.storage)) >= before
    lines = told.splitlines()
    assert max(map(len, lines)) <= 80, told
    assert lines[0].split() == ["what", "size", "why"]
    [line] = [line for line in lines if line.startswith("  checkpoints")]
    assert line.split()[3:] == ["may", "go", "the", "trials", "have", "ended"]
    assert lines[-1].endswith("may go, by --yes")
    facts = json.loads(run(job, "--json"))
    assert facts["may_go_bytes"] == sum(i["bytes"] for i in facts["items"] if i["goes"]) > 600_000
    assert facts["deleted"] is False
    [item] = [item for item in facts["items"] if item["what"] == "checkpoints"]
    assert item["study"] == job.name
    assert item["paths"] == [str(trial / "checkpoints") for trial in trials[:3]]
    said = run(job, "--yes").splitlines()
    assert said[-1].startswith("freed ")
    assert [line for line in said if line.startswith("  checkpoints") and "gone" in line]
    assert run(job).splitlines()[-1].endswith("all stays")


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["clean", "--storage", str(tmp_path / "lost")])
    assert isinstance(result.exception, InputError)
    assert "no such folder" in str(result.exception)


def test_a_strange_folder_is_left_alone(tmp_path: Path) -> None:
    for path in ("home/notes.txt", "versions/mine/x", "studies/mine/x"):
        fill(tmp_path / "strange" / path, LONG_AGO)
    place = ClusterSpec(storage=str(tmp_path / "strange"))
    before = set((tmp_path / "strange").rglob("*"))
    assert going(place, unfinished=True) == {}
    clean(place, unfinished=True)
    assert set((tmp_path / "strange").rglob("*")) == before, "not even a database"
