"""What does not fit a base model is refused from its configuration alone."""

from collections.abc import Callable

import pytest

from workers.fit import check_fit
from workers.spec import InputError, TrainSpec

SpecMaker = Callable[..., TrainSpec]


@pytest.mark.parametrize("experts", ["block", "linear"])
def test_what_fits_passes(make_spec: SpecMaker, experts: str) -> None:
    check_fit(make_spec(adapter__experts=experts, data__max_length=512))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter__target_modules": ["fc1"]}, "no linear is called fc1; there are .*up_proj"),
        (
            {"adapter__target_modules": ["q_proj"]},
            "block experts need a linear of the feed-forward",
        ),
        ({"data__max_length": 513}, "data.max_length is 513, but the base model reads at most 512"),
    ],
)
def test_what_does_not_fit_is_refused(
    make_spec: SpecMaker, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_fit(make_spec(**changes))
