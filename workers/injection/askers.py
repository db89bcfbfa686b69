"""Prompts to several adapters of one model."""

from collections.abc import Sequence
from typing import NamedTuple

from workers.injection.row_map import RowMap, Slot


class Askers(NamedTuple):
    """Whose prompts they are."""

    rows: RowMap
    """The model's."""
    slots: Sequence[Slot]
    """Of each prompt."""
