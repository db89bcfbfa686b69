"""Records out of data sets of the Hugging Face hub: `hub:NAME[:CONFIG][#SPLIT]`."""

from typing import Any

from workers.config.base import InputError, one_line
from workers.data.sources.columnar import NO_VALUE
from workers.data.sources.record import Records, Wanted, picked

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


def hub_stream(source: str, wanted: Wanted) -> Records:
    """The same, read from where it lies: nothing of it is kept."""
    number = 0
    try:
        for number, record in enumerate(hub_dataset(source, streaming=True), 1):
            yield picked(record, f"{source}: row {number}", wanted)
    except InputError:
        raise
    except Exception as error:  # of a network, of files: a dozen kinds
        reason = one_line(_first_cause(error))
        raise InputError(f"{source}: row {number + 1}: cannot be read: {reason}") from None


def hub_listing(source: str) -> str:
    """Another one where the files of the data set are others."""
    from datasets import load_dataset_builder

    name, config, split = _named(source)
    try:
        builder = load_dataset_builder(name, config)
    except Exception as error:
        raise _not_loaded(source, error) from None
    found = (builder.config.data_files or {}).get(split) or []
    times = getattr(found, "origin_metadata", None)
    return repr((name, config, split, builder.hash, [str(one) for one in found], times))


def hub_fingerprint(source: str) -> str:
    """Another one where the data set is another."""
    return str(hub_dataset(source)._fingerprint)


def hub_dataset(source: str, *, streaming: bool = False) -> Any:
    """The data set; its split is `train` where none is named. InputError where it cannot be had."""
    from datasets import load_dataset

    name, config, split = _named(source)
    try:
        return load_dataset(name, config, split=split, streaming=streaming)
    except Exception as error:  # whatever is wrong with somebody's files: a dozen kinds
        raise _not_loaded(source, error) from None


def _named(source: str) -> tuple[str, str | None, str]:
    """Name, configuration and split."""
    name, _, split = source.removeprefix(HUB).partition("#")
    name, _, config = name.partition(":")
    return name, config or None, split or "train"


def _not_loaded(source: str, error: Exception) -> InputError:
    reason = one_line(_first_cause(error))
    return InputError(f"{source}: cannot be loaded from the hub: {reason}")


def _first_cause(error: BaseException) -> BaseException:
    """What an error came from: `datasets` says of most that one occurred."""
    return _first_cause(error.__cause__) if error.__cause__ else error
