"""What a study's trials learn from: their values compare only over the same rows and base.

STUDY/inputs.json    written by the first trial that could read them; the others are held to it
"""

import json
import os
import uuid
from pathlib import Path

from workers.configuration import InputError, Spec, validated

INPUTS = "inputs.json"


class UsedInputs(Spec):
    """Digests of a study's rows and base model."""

    data: str
    """Of both sources."""
    base: str
    earlier_data: tuple[str, ...] = ()
    """Of rows that its checkpoints may come from, which somebody agreed to."""


def read_used(study: Path) -> UsedInputs | None:
    """What the study in this folder uses, None before its first trial could read it."""
    path = study / INPUTS
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text())
    except ValueError:
        raise InputError(f"{path}: is damaged; remove it to have it made anew") from None
    return validated(UsedInputs, values, str(path))


def hold_to_study(study: Path, mine: UsedInputs) -> None:
    """The first to come says what the study uses. Raises InputError for other rows or another
    base than that."""
    note_used(study, mine)
    check_same(read_used(study) or mine, mine, f"study {study.name}")


def note_used(study: Path, used: UsedInputs) -> None:
    """Write it whole, unless it was written before: by another process, perhaps, just now."""
    temporary = study / f".{INPUTS}.{uuid.uuid4().hex}"
    temporary.write_text(used.model_dump_json(indent=2) + "\n")
    try:
        os.link(temporary, study / INPUTS)
    except FileExistsError:
        pass
    finally:
        temporary.unlink(missing_ok=True)


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
