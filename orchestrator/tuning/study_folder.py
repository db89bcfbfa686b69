"""Whose a study's folder is.

The lock that a study is run under is its store's, and several stores may use one storage folder: a
study of the same name in another store is another one. So each notes a random id in its store and
in its folder. Both may be moved.
"""

import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from workers.config.base import InputError
from workers.run.files import write_text

if TYPE_CHECKING:
    import optuna

_ATTRIBUTE = "id"
_NOTE = "study.id"


def is_anothers(folder: Path, study: "optuna.Study | None") -> bool:
    """Whether another study writes there than this one, or than one that is still to be made.
    Studies that were begun before there were ids have noted nothing."""
    try:
        noted = (folder / _NOTE).read_text()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return study is None or noted != study.user_attrs.get(_ATTRIBUTE)


def check_folder(folder: Path, study: "optuna.Study | None") -> None:
    """InputError where another study writes there."""
    if is_anothers(folder, study):
        raise InputError(
            f"study {folder.name}: its folder {folder} belongs to a study of this name in another "
            "store; name that store (cluster.store or MOETUNE_STORE), or give the job another name "
            "(--set name=NAME)"
        )


def take_folder(folder: Path, study: "optuna.Study") -> None:
    """Make the folder, and note whose it is, there and in the study."""
    check_folder(folder, study)
    if _ATTRIBUTE not in study.user_attrs:
        study.set_user_attr(_ATTRIBUTE, uuid.uuid4().hex)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / _NOTE, study.user_attrs[_ATTRIBUTE], durable=True)
