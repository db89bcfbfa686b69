"""The page about the command line, out of the commands themselves."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer.main

from docs.generate.markdown import anchor, table
from orchestrator.cli import app

_INTRO = Path(__file__).with_name("cli_intro.md")


@dataclass(frozen=True)
class Command:
    """A command, or all of them: its words, and what click knows of it."""

    words: str
    command: Any
    parent: Any

    @property
    def help(self) -> str:
        """What it does, in paragraphs."""
        paragraphs = (self.command.help or "").split("\n\n")
        return "\n\n".join(map(_paragraph, paragraphs))

    @property
    def brief(self) -> str:
        """The first sentence."""
        first = self.help.partition("\n\n")[0]
        return first.partition(". ")[0].removesuffix(".") + "."

    def section(self) -> str:
        """Its part of the page."""
        context = self.command.make_context(
            self.words, [], parent=self.parent, resilient_parsing=True
        )
        usage = " ".join((self.words, *self.command.collect_usage_pieces(context)))
        parts = [f"## {self.words}", f"```text\n{usage}\n```", self.help]
        records = [one.get_help_record(context) for one in self.command.get_params(context)]
        rows = [(f"`{name.removesuffix(' <str>')}`", text) for name, text in filter(None, records)]
        return "\n\n".join([*parts, table(("argument or option", "what it says"), rows)])


def page() -> str:
    """The whole page."""
    root = typer.main.get_command(app)
    context = root.make_context("moetune", [], resilient_parsing=True)
    commands = [*_commands(root, "moetune", context)]
    index = [(f"[{one.words}](#{anchor(one.words)})", one.brief) for one in commands]
    sections = [one.section() for one in (Command("moetune", root, None), *commands)]
    return "\n".join([_INTRO.read_text(), table(("command", "what it does"), index), *sections])


def _commands(group: Any, words: str, parent: Any) -> Iterator[Command]:
    for name, command in group.commands.items():
        own = f"{words} {name}"
        if hasattr(command, "commands"):
            yield from _commands(command, own, parent)
        else:
            yield Command(own, command, parent)


def _paragraph(text: str) -> str:
    """As Markdown: click lays out no paragraph that begins with a backspace."""
    kept = text.removeprefix("\b\n")
    return " ".join(text.split()) if kept == text else f"```text\n{kept}\n```"
