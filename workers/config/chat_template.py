"""A chat template of one's own: a job names its file, and holds its text from then on."""

from pathlib import Path

MOST = 2**18
"""Bytes of a template."""


def is_template(value: str) -> bool:
    """Whether it is a template's text, and no file's name."""
    return "{{" in value or "{%" in value


def template_text(value: str | None) -> str | None:
    """The text of a template, or of the file that holds one. ValueError where there is none."""
    if value is None or is_template(value):
        return value
    try:
        with Path(value).open(encoding="utf-8") as file:
            text = file.read(MOST + 1)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ValueError(f"{value}: cannot be read: {why}") from None
    if len(text) > MOST or not is_template(text):
        raise ValueError(
            f"{value}: is no chat template, which is a Jinja file of up to {MOST} bytes"
        )
    return text
