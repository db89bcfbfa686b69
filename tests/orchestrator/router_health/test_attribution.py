"""The page of an answer's experts: complete, self-contained, and no text of anybody is markup."""

from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from orchestrator.router_health.attribution import Explained
from orchestrator.router_health.attribution_page import render, views
from tests.orchestrator.browser import browser
from workers.config.base import InputError
from workers.engine.routing.types import LayerRouting, RequestRouting, TokenRouting

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


def test_a_token_has_the_colour_of_its_first_expert_and_tells_all_of_them() -> None:
    told = Explained.of("?", body())
    first, second = views(told, list(told.tokens()))
    assert [token.kind for token in first.tokens] == ["c0", "c2"]
    assert [token.begins for token in first.tokens] == [0, 2]
    assert first.tokens[1].told == "layers.0.mlp\nexpert 2: gate 0.60\nexpert 0: gate 0.40"
    assert [(one.expert, one.tokens) for one in first.legend] == [(0, 1), (2, 1)]
    assert first.others == (1,)
    assert [token.begins for token in second.tokens] == [1, None], "told where it begins"


def test_with_more_experts_than_colours_the_busiest_have_them() -> None:
    tokens = [*range(12), *[11] * 4, *[5] * 3]
    load = tuple(tokens.count(expert) for expert in range(12))
    layer = LayerRouting("layers.0.mlp", load, tuple(map(float, load)), 1.0, 0.5)
    by_token = tuple((TokenRouting((expert,), (1.0,)),) for expert in tokens)
    told = Explained.of("?", body(RequestRouting(len(tokens), (layer,), by_token)))
    [view] = views(told, list(told.tokens()))
    kinds = {one.expert: one.kind for one in view.legend}
    colored = [kind for kind in kinds.values() if kind != "other"]
    assert len(colored) == len({*colored}) == 8, "no colour means two experts"
    assert kinds[11] != "other"
    assert kinds[5] != "other"


def test_a_token_without_an_expert_is_shown_without_colour() -> None:
    layer = LayerRouting("layers.0.mlp", (1, 0), (1.0, 0.0), 1.0, 0.5)
    by_token = ((TokenRouting((0,), (1.0,)),), (TokenRouting((), ()),))
    told = Explained.of("?", body(RequestRouting(2, (layer,), by_token, ("a", "b"))))
    [view] = views(told, list(told.tokens()))
    assert [token.kind for token in view.tokens] == ["c0", "void"]
    assert view.tokens[1].told == "layers.0.mlp\nno expert had room"


@pytest.mark.usefixtures("chromium")
def test_a_reader_chooses_a_layer_and_sees_its_colours(tmp_path: Path) -> None:
    """No script runs on the page, so it is the style that does it."""
    page = tmp_path / "explained.html"
    page.write_text(render(Explained.of(EVIL, body())))
    with browser(tmp_path / "browser") as tab:
        tab.open(page.as_uri())
        assert "the busiest, expert 1 of layers.1.mlp, has 100 %" in tab.text(".conclusion")
        shown = "getComputedStyle(document.querySelector('#view{} {}')).{}"
        assert tab.js(shown.format(1, "", "display")) == "block"
        assert tab.js(shown.format(0, "", "display")) == "none"
        tab.click("#layer0")
        assert tab.js(shown.format(1, "", "display")) == "none"
        assert tab.js(shown.format(0, "", "display")) == "block"
        assert EVIL in tab.text("#view0")
        colors = [tab.js(shown.format(0, f".c{e}", "backgroundColor")) for e in (0, 2)]
        assert colors == ["rgb(119, 170, 221)", "rgb(238, 221, 136)"]
        folded = "[...document.querySelectorAll('table')].every(t => !t.checkVisibility())"
        assert tab.js(folded), "numbers come after what they mean"
        assert tab.wrong == []
        assert str(tab.js("document.title")).startswith("home@3f9a1b2c3d4e ")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(body(None), id="none"),
        pytest.param(body(moetune={"routing": {"tokens": 1}}), id="half"),
        pytest.param({}, id="nothing"),
        pytest.param(body(RequestRouting(2, (), ((), ()), ("a", "b"))), id="no layer"),
        pytest.param(body(RequestRouting(0, LAYERS)), id="no token"),
        pytest.param(body(RequestRouting(0, ())), id="neither"),
        pytest.param(body(RequestRouting(1, LAYERS, (BY_TOKEN[0][:1],))), id="too few layers"),
    ],
)
def test_an_answer_without_routing_is_refused_in_one_line(answer: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="tells no routing"):
        Explained.of("?", answer)
