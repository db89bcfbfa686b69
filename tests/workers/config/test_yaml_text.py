"""YAML from people: what has no end is refused in one line."""

import pytest

from workers.config.base import InputError
from workers.config.yaml_text import DEEPEST, read_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)
BAD = {
    "deep lists": ("[" * 100_000, "nests more than"),
    "deep mappings": ("{a: " * 5_000, "nests more than"),
    "a little too deep": ("[" * 40 + "]" * 40, "nests more than"),
    "cyclic list": ("a: &a [*a]", "an alias holds itself"),
    "cyclic mapping": ("name: &x {y: {z: *x}}", "an alias holds itself"),
    "aliases that multiply": (BOMB, "holds more than"),
    "a number of 5000 digits": ("a: " + "9" * 5000, "is no YAML"),
    "no date": ("a: 2024-13-01", "is no YAML"),
    "no text": (b"\xff\xfe\x00\xd8", "is no YAML"),
    "a list as a key": ("? [a]\n: b", "is no YAML"),
    "a tag": ("a: !!python/object/apply:os.system [ls]", "is no YAML"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_said_in_one_line(text: str | bytes, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_yaml(text, "job.yaml")
    said = str(caught.value)
    assert said.startswith("job.yaml: ")
    assert message in said
    assert "\n" not in said
    assert len(said) < 500


def test_what_people_write_is_read() -> None:
    deep = "[" * (DEEPEST - 1) + "1" + "]" * (DEEPEST - 1)
    assert str(read_yaml(deep, "x")) == deep
    aliased = "a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}"
    assert read_yaml(aliased, "x") == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}
    assert read_yaml(b"a: \xc3\xa4", "x") == {"a": "ä"}
    assert read_yaml("", "x") is None
