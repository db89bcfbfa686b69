"""Metrics of packages: imported when a row is scored by them, and held to what they promise."""

from typing import Any

from workers.config.base import InputError, one_line
from workers.config.row_metrics import package, plugged
from workers.data.gold import Gold


def plugged_score(metric: str, prediction: str, gold: Gold) -> float:
    """What a package's metric gives for an answer. InputError names the package where it cannot be
    imported, fails, or gives anything but a number from 0 to 1."""
    entry = plugged(metric, gold.where or "score")
    whose = f"metric {metric} of {package(entry)}"
    function = _imported(whose, entry)
    if not callable(function):
        raise InputError(f"{whose}: {entry.value} is no function of an answer and its row")
    try:
        value = function(prediction, gold)
        number = float(value)
    except Exception as error:
        raise InputError(f"{gold.where}: {whose} fails: {_told(error)}") from error
    if not 0 <= number <= 1:
        raise InputError(f"{gold.where}: {whose} gives {value!r}, not a number from 0 to 1")
    return number


def _imported(whose: str, entry: Any) -> Any:
    try:
        return entry.load()
    except (Exception, SystemExit) as error:  # code of others, which may do anything
        raise InputError(f"{whose} cannot be imported: {_told(error)}") from error


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
