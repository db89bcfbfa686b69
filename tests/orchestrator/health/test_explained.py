"""The page of an answer's experts: complete, self-contained, and no text of anybody is markup."""

from dataclasses import asdict
from html.parser import HTMLParser
from typing import Any

import pytest

from orchestrator.health.explained import Explained, render
from workers.engine.routing import LayerRouting, RequestRouting, TokenRouting
from workers.spec import InputError

EVIL = '<script>alert("x")</script>'
LAYERS = (
    LayerRouting("layers.0.mlp", (2, 1, 1), (1.2, 0.5, 0.3), 1.0, 0.5),
    LayerRouting("layers.1.mlp", (0, 2), (0.0, 2.0), 0.1, 1.5),
)
BY_TOKEN = (
    (TokenRouting((0, 1), (0.7, 0.3)), TokenRouting((1,), (1.0,))),
    (TokenRouting((2, 0), (0.6, 0.4)), TokenRouting((1,), (1.0,))),
)
ROUTING = RequestRouting(2, LAYERS, BY_TOKEN, ("a b", EVIL))


def body(routing: RequestRouting | None = ROUTING, **changes: Any) -> dict[str, Any]:
    told = {} if routing is None else {"moetune": {"routing": asdict(routing)}}
    return {
        "model": "home@3f9a1b2c3d4e",
        "choices": [{"message": {"content": f"yes {EVIL}"}}],
        "usage": {"prompt_tokens": 1},
        **told,
        **changes,
    }


class Page(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.in_cell = False
        self.tags: list[str] = []
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        self.in_cell = tag in ("td", "th")
        if self.in_cell:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = False

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.rows[-1][-1] += data


def test_the_page_shows_tokens_by_experts_of_each_layer() -> None:
    page = Page(render(Explained.of("is it?", body())))
    assert ["layers.0.mlp", "60", "25", "15"] in page.rows, "shares of the gates"
    assert ["layers.1.mlp", "0", "100"] in page.rows
    assert ["a\N{OPEN BOX}b", "0.70", "0.30", ""] in page.rows
    assert [EVIL, "0.40", "", "0.60"] in page.rows
    assert ["a\N{OPEN BOX}b", "", "1.00"] in page.rows


def test_the_page_runs_nothing_and_loads_nothing() -> None:
    question = f"{EVIL} & <img src=http://elsewhere/x>"
    text = render(Explained.of(question, body(model=f"home@1{EVIL}")))
    page = Page(text)
    assert not {"script", "img", "link", "iframe"} & set(page.tags)
    assert page.links == []
    assert "default-src 'none'" in text
    assert "&lt;img src=http://elsewhere/x&gt;" in text


def test_the_answers_tokens_are_told_from_the_prompts() -> None:
    prompt, answer = Explained.of("?", body()).tokens()
    assert (prompt.answer, answer.answer) == (False, True)
    assert answer.gates == {"layers.0.mlp": (0.4, 0.0, 0.6), "layers.1.mlp": (0.0, 1.0)}


@pytest.mark.parametrize("answer", [body(None), body(moetune={"routing": {"tokens": 1}}), {}])
def test_an_answer_without_routing_is_refused_in_one_line(answer: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="tells no routing"):
        Explained.of("?", answer)
