"""What a study's trials learn from: their values compare only over the same rows and base.

STUDY/inputs/KEY.json    of one base and its rows, as the specification names them (a search
                         space may vary these, too); written by the first trial that could read
                         them, and the others are held to it
STUDY/inputs/dtype       the base's precision where `model.dtype` is auto, as the first worker of
                         them could compute it
"""

import hashlib
import json
from pathlib import Path

from workers.adapter.manifest import Manifest
from workers.config.base import InputError, Spec, validated
from workers.config.model import ModelSpec
from workers.config.train import TrainSpec
from workers.run.files import write_once


class UsedInputs(Spec):
    """Digests of a study's rows and base model."""

    data: str
    """Of both sources."""
    base: str
    earlier_data: tuple[str, ...] = ()
    """Of rows that its checkpoints may come from, which somebody agreed to."""


def inputs_key(spec: TrainSpec) -> tuple[object, ...]:
    """Equal for runs that can share their base and their rows, loaded once."""
    return spec.model, spec.data, spec.evaluation.rows_per_task


def used_file(study: Path, spec: TrainSpec) -> Path:
    """Where a study keeps what it uses for such a run; sources are named by whole paths."""
    data = spec.data.model_dump(mode="json")
    names = (spec.model.path, spec.model.revision, data["train"], data["validation"])
    key = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:12]
    return study / "inputs" / f"{key}.json"


def base_file(study: Path, spec: TrainSpec) -> Path:
    """Where a study keeps what the bare base gives on these rows (`evaluation.baseline`)."""
    return used_file(study, spec).with_suffix(".base.json")


def hold_dtype(study: Path, spec: TrainSpec, mine: ModelSpec) -> TrainSpec:
    """`spec` in the precision of its study, which the first to come has settled: like `mine`, the
    base as this worker would have it. What is no study's keeps it in its own folder."""
    if spec.model.dtype != "auto":
        return spec
    path = dtype_file(study)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_once(path, f"{mine.dtype}\n")
    values = {**mine.model_dump(mode="json"), "dtype": path.read_text().strip()}
    return spec.with_model(validated(ModelSpec, values, f"{path}: the study's precision"))


def dtype_file(study: Path) -> Path:
    """Where a study keeps the precision that its first worker has settled."""
    return study / "inputs" / "dtype"


def keep_dtype(former: Path, study: Path) -> None:
    """Let a study that goes on with a former one have its precision."""
    if dtype_file(former).exists():
        write_once(dtype_file(study), dtype_file(former).read_text())


def read_used(path: Path) -> UsedInputs | None:
    """What a study uses, None before its first trial could read it."""
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text())
    except ValueError:
        raise InputError(f"{path}: is damaged; remove it to have it made anew") from None
    return validated(UsedInputs, values, str(path))


def hold_to_study(path: Path, mine: UsedInputs) -> None:
    """The first to come says what the study uses. Raises InputError for other rows or another
    base than that."""
    note_used(path, mine)
    check_same(read_used(path) or mine, mine, f"study {path.parents[1].name}")


def note_used(path: Path, used: UsedInputs) -> None:
    """Write it whole, unless it was written before: by another process, perhaps, just now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_once(path, used.model_dump_json(indent=2) + "\n")


def check_same(before: UsedInputs, now: UsedInputs, whose: str) -> None:
    """InputError where rows or base are not what they were."""
    if before.base != now.base:
        raise InputError(
            f"{whose}: its base model has changed since it began: it was {before.base[:12]}, and "
            f"is {now.base[:12]}; an adapter goes with the base that it was trained on"
        )
    check_same_data(before, now.data, whose)


def check_same_data(before: UsedInputs, now: str, whose: str) -> None:
    """InputError where the rows are not what they were."""
    if before.data != now:
        raise InputError(
            f"{whose}: its rows (data.train, data.validation) have changed since it began: they "
            f"were {before.data[:12]}, and are {now[:12]}; undo the change, or go on as a new "
            "study with --resume --accept-new-data"
        )


def data_before(
    then: Manifest, now: UsedInputs, study: UsedInputs | None, where: str
) -> tuple[str, ...]:
    """Digests of the rows that a checkpoint's run has learned from, but for today's. InputError
    where its rows or base are others than today's, unless its study has accepted them."""
    before = then.data_digest or now.data
    accepted = study is not None and before in study.earlier_data
    known = UsedInputs(data=now.data if accepted else before, base=then.base.digest or now.base)
    check_same(known, now, where)
    return (*then.earlier_data, before) if accepted else then.earlier_data
