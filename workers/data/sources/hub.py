"""Records out of data sets of the Hugging Face hub: `hub:NAME[:CONFIG][#SPLIT]`."""

from typing import Any

from workers.config.base import InputError, one_line
from workers.data.sources.columnar import NO_VALUE
from workers.data.sources.record import Records, Wanted

HUB = "hub:"


def hub_records(source: str, wanted: Wanted) -> Records:
    """Every record of the data set."""
    data = hub_dataset(source)
    columns = list(wanted(source, data.column_names))
    number = 0
    try:
        for number, record in enumerate(data.select_columns(columns), 1):
            yield f"{source}: row {number}", record
    except NO_VALUE as error:
        raise InputError(f"{source}: row {number + 1}: cannot be read: {one_line(error)}") from None


def hub_fingerprint(source: str) -> str:
    """Another one where the data set is another."""
    return str(hub_dataset(source)._fingerprint)


def hub_dataset(source: str) -> Any:
    """The data set; its split is `train` where none is named. InputError where it cannot be had."""
    from datasets import load_dataset

    name, _, split = source.removeprefix(HUB).partition("#")
    name, _, config = name.partition(":")
    try:
        return load_dataset(name, config or None, split=split or "train")
    except Exception as error:  # whatever is wrong with somebody's files: a dozen kinds
        reason = one_line(_first_cause(error))
        raise InputError(f"{source}: cannot be loaded from the hub: {reason}") from None


def _first_cause(error: BaseException) -> BaseException:
    """What an error came from: `datasets` says of most that one occurred."""
    return _first_cause(error.__cause__) if error.__cause__ else error
