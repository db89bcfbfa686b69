"""The pages of the documentation, and what stands in them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
MARKDOWN = MarkdownIt("gfm-like", {"linkify": False})


@dataclass(frozen=True)
class Block:
    """A fenced block: ```LANGUAGE WORDS."""

    where: str
    language: str
    words: tuple[str, ...]
    text: str

    def commands(self) -> list[str]:
        """What a reader would type: the lines behind `$ `, each with those that `> ` continues."""
        found: list[str] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append(line[2:])
            elif line.startswith("> ") and found and found[-1].endswith("\\"):
                found[-1] += f"\n{line[2:]}"
        return found

    @property
    def status(self) -> int:
        """The exit status that its commands end with: 0, or that of a word such as exit=2."""
        told = [word.removeprefix("exit=") for word in self.words if word.startswith("exit=")]
        return int(told[0]) if told else 0


@dataclass(frozen=True)
class Page:
    """One Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        """Its path in the repository."""
        return str(self.path.relative_to(ROOT))

    @cached_property
    def tokens(self) -> list[Token]:
        """What markdown-it reads in it."""
        return MARKDOWN.parse(self.path.read_text())

    def blocks(self, language: str = "") -> list[Block]:
        """Its fenced blocks, or those of a language."""
        fences = [token for token in self.tokens if token.type == "fence" and token.map]
        blocks = [
            Block(f"{self.name}:{one.map[0] + 1}", *_words(one.info), one.content)  # type: ignore[index]
            for one in fences
        ]
        return [one for one in blocks if language in ("", one.language)]

    def links(self) -> list[str]:
        """Where it leads to: links and pictures, HTML's too."""
        return [*_links(self.tokens)]

    def anchors(self) -> set[str]:
        """What a link may say behind its #, as GitHub makes it of headings."""
        seen: dict[str, int] = {}
        for before, heading in pairwise(self.tokens):
            if before.type == "heading_open":
                plain = "".join(one.content for one in heading.children or ())
                slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
                seen[slug] = seen.get(slug, -1) + 1
        return {
            f"{slug}-{n}" if n else slug for slug, most in seen.items() for n in range(most + 1)
        }


def _words(info: str) -> tuple[str, tuple[str, ...]]:
    language, *words = info.split() or [""]
    return language, tuple(words)


def _links(tokens: list[Token]) -> Iterator[str]:
    for token in tokens:
        if token.type in ("html_block", "html_inline"):
            yield from re.findall(r"""(?:href|src)=["']([^"']+)""", token.content)
        for name in ("href", "src"):
            if target := token.attrGet(name):
                yield str(target)
        yield from _links(token.children or [])


OF_THE_PRODUCT = [
    Page(path)
    for pattern in ("README.md", "docs/*.md", "examples/**/README.md")
    for path in sorted(ROOT.glob(pattern))
]
"""Pages for users: what they say to type is run."""
OF_THE_PROJECT = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = [*OF_THE_PRODUCT, *(Page(ROOT / name) for name in OF_THE_PROJECT)]
"""All of them."""
