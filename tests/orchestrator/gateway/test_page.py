"""The gateway's page in a real browser, over a real engine with two adapters."""

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import httpx
import pytest
import uvicorn

from orchestrator.auth.keys import Caller, Key, KeyRing, key_hash
from orchestrator.config.health import HealthSpec
from orchestrator.config.limits import Allowance
from orchestrator.config.rollout import GuardSpec
from orchestrator.gateway import page
from orchestrator.gateway.app import create_app
from orchestrator.gateway.examples import Examples
from orchestrator.gateway.examples import routes as example_routes
from orchestrator.gateway.management_routes import health_routes
from orchestrator.gateway.services import GatewayServices, RolloutServices
from orchestrator.registry.plan import stage
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from orchestrator.rollout.catalog import ModelCatalog
from orchestrator.router_health.monitor import RouterHealth
from orchestrator.serve.proxy import free_port
from tests.orchestrator.browser import Page, browser
from workers.config.model import ModelSpec
from workers.engine.engine import ContinuousEngine
from workers.engine.request import Limits
from workers.engine.text_engine import TextEngine
from workers.models.base import load_base
from workers.run.samples import Sample, write_samples

KEY = "a key of the page's test"
SLOW_KEY = "a key that may ask once a second"
DARK = {"name": "prefers-color-scheme", "value": "dark"}
EXPERT_COLORS = (
    "rgb(119, 170, 221)",
    "rgb(238, 136, 102)",
    "rgb(238, 221, 136)",
    "rgb(255, 170, 187)",
)
EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
"""What a model, or a person with a reason, might say."""


@pytest.fixture(scope="module")
def url(
    tiny_model_dir: Path,
    make_adapter: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """A gateway over HTTP: `home` with a champion and a canary, a key, all routes."""
    folder = tmp_path_factory.mktemp("registry")
    registry = Registry(f"sqlite:///{folder}/moetune.db", folder)
    versions = [registry.register("study", n, make_adapter(n), {}) for n in (51, 52)]
    leave_samples(folder / "studies" / "study" / "trials" / "T051")
    force = partial(
        promote, registry, to="home", actor="<b>test</b>", metric="validation/loss", force=True
    )
    force(versions[0], reason=EVIL)
    force(versions[1], reason="a tenth of the users first", stage=stage("10%", None, False))
    base = load_base(ModelSpec(path=str(tiny_model_dir), device="cpu"))
    engine = ContinuousEngine(base, Limits(max_batch_tokens=128, cache_tokens=2048))
    backend = TextEngine(engine, base.tokenizer)
    catalog = ModelCatalog(registry, "tiny-llama", backend.load, backend.unload)
    health = RouterHealth.of(HealthSpec(), registry)
    rollout = RolloutServices.of(registry, catalog, GuardSpec(), health.drift)
    slow = Caller("slow", frozenset({"infer"}), rate=Allowance(1, "s"))
    keys = KeyRing(
        key_hash(KEY), lambda: [Key(key_hash(SLOW_KEY), slow, "", created=datetime.now(UTC))]
    )
    keys.refresh()
    services = GatewayServices(
        keys,
        observers=(rollout.observe, health),
        routers=(
            rollout.router,
            health_routes(health),
            example_routes(Examples(registry, folder, 2), catalog),
        ),
    )
    port = free_port("127.0.0.1", 0)
    app = create_app(backend, catalog, services)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    address = f"http://127.0.0.1:{port}"
    end = time.monotonic() + 60
    while not _ready(address) and time.monotonic() < end:
        time.sleep(0.05)
    yield address
    server.should_exit = True
    thread.join(60)
    engine.close()


def leave_samples(folder: Path) -> None:
    """What the champion's trial left: of these, two are whole, differ and are offered."""
    asked = [("part of a talk", False), (EVIL, True), (EVIL, True), ("lights?", True), ("3", True)]
    row = {"task": "t", "metric": "m", "expected": "secret", "answer": "secret", "score": 1}
    folder.mkdir(parents=True)
    samples = [Sample(**row, question=text, whole=whole) for text, whole in asked]
    write_samples(folder / "samples.json", samples)


def _ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/ready").is_success
    except httpx.HTTPError:
        return False


@pytest.fixture
def tab(url: str, tmp_path: Path, chromium: str) -> Iterator[Page]:
    with browser(tmp_path / "browser") as opened:
        opened.open(url)
        yield opened


def test_only_the_files_of_the_list_are_served(url: str) -> None:
    folder = Path(page.__file__).parent / "web"
    assert {path.name for path in folder.iterdir()} == set(page.FILES)
    answer = httpx.get(url)
    assert answer.headers["content-type"].startswith("text/html")
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    for name in page.FILES[1:]:
        assert httpx.get(f"{url}/page/{name}").content == (folder / name).read_bytes()
    for odd in ("", "main", "../page.py", "%2e%2e/page.py", "..%2fpage.py", "/etc/passwd"):
        assert httpx.get(f"{url}/page/{odd}").status_code == 404


def test_the_files_load_nothing_from_elsewhere_and_write_no_markup() -> None:
    folder = Path(page.__file__).parent / "web"
    for name in page.FILES:
        text = (folder / name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text
        assert "https:" not in text
        for banned in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert banned not in text, f"{name}: {banned}"
    html = (folder / "index.html").read_text()
    assert " on" not in html.replace(" on-", "")
    assert "style=" not in html
    assert html.count("<script") == html.count('src="/page/main.js"') == 1


def test_a_person_enters_the_key_chats_and_sees_all(tab: Page, url: str, tmp_path: Path) -> None:
    tab.until("document.querySelector('#trouble').innerText.includes('wants a key')")
    tab.fill("#key", KEY)
    tab.until("document.querySelectorAll('#model option').length >= 4")
    assert tab.js("sessionStorage.length") == 1
    assert tab.js("localStorage.length") == 0
    assert tab.js("document.cookie") == ""
    tab.until("document.querySelector('#ready').innerText === 'ready'")

    tab.fill("#tokens", "24")
    tab.fill("#question", EVIL)
    tab.click("#send")
    tab.until("document.querySelectorAll('.facts').length === 2")
    tab.until("!document.querySelector('.turn.waiting')")
    assert tab.js("document.querySelector('.turn.user').textContent") == EVIL
    assert not tab.js("document.querySelectorAll('.talk :is(img, script)').length")
    left, right = (tab.text(f"#{side} .facts") for side in ("left", "right"))
    assert left.startswith("home@")
    assert right.startswith("tiny-llama")
    assert "24 tokens" in left
    assert not tab.js("document.querySelectorAll('.turn.failed').length")
    assert not tab.js("document.querySelectorAll('#right .experts').length")
    seen = "[...document.querySelectorAll('#left .{}')].filter(one => one.checkVisibility()).length"
    assert tab.js(seen.format("answer .token")) == 23, "at once; the last one is never routed"
    assert tab.js(seen.format("layer")) == 0
    tab.screenshot(tmp_path / "chat.png")
    tab.click("#left .experts summary")
    assert tab.js(seen.format("layer")) == 2
    assert tab.js(seen.format("prompt .token")) > len(EVIL) / 10
    ground = "getComputedStyle(document.body).backgroundColor"
    light = tab.js(ground)
    tab.do("Emulation.setEmulatedMedia", features=[DARK])
    assert tab.js(ground) != light
    tab.screenshot(tmp_path / "dark.png")

    tab.click("#tab-versions")
    tab.until("document.querySelectorAll('#versions tbody tr').length >= 2")
    assert "canary 10 %" in tab.text("#versions .traffic")
    assert "to the canary, " in tab.text("#versions dl")
    assert EVIL in str(tab.js("document.querySelector('#versions table').textContent"))
    assert "<b>test</b>" in tab.text("#versions table")
    tab.screenshot(tmp_path / "versions.png")

    tab.click("#tab-routers")
    tab.until("document.querySelectorAll('#routers .layer').length >= 2")
    assert "home@" in tab.text("#routers h2")
    tab.screenshot(tmp_path / "routers.png")

    assert tab.js("document.title") == "moetune"
    assert all(asked.startswith(url) or asked == "about:blank" for asked in tab.asked)
    assert [w for w in tab.wrong if "401" not in w] == []


@pytest.mark.usefixtures("chromium")
def test_a_layers_experts_have_its_own_colours_and_are_never_summed_over_layers(tab: Page) -> None:
    tab.fill("#key", KEY)
    tab.until("document.querySelectorAll('#model option').length >= 4")
    ask(tab, "the kitchen light", 2)
    style = "getComputedStyle(document.querySelector('#left .answer .e{}')).backgroundColor"
    shown = tab.js("[...document.querySelectorAll('#left .answer .token')].map(t => t.className)")
    first = next(int(one[-1]) for one in shown if one.startswith("token e"))
    assert tab.js(style.format(first)) == EXPERT_COLORS[first]
    layers = tab.js("[...document.querySelectorAll('#left .experts option')].map(o => o.text)")
    told = [tab.text("#left .key")]
    titles = "[...document.querySelectorAll('#left .answer .token')].map(t => t.title)"
    assert all(title.startswith(f"{layers[0]}\nexpert ") for title in tab.js(titles))
    tab.fill("#left .experts select", "1")
    told.append(tab.text("#left .key"))
    assert all(title.startswith(f"{layers[1]}\nexpert ") for title in tab.js(titles))
    for key in told:  # of one layer each: its experts' shares are a whole
        assert key.count("expert ") == 4
        assert sum(int(share) for share in re.findall(r"(\d+) %", key)) in range(97, 104)


@pytest.mark.usefixtures("chromium")
def test_a_question_alone_takes_nothing_of_the_talk_along(tab: Page) -> None:
    tab.fill("#key", KEY)
    tab.until("document.querySelectorAll('#model option').length >= 4")
    tab.js(
        "(() => { const get = fetch; window.sent = []; window.fetch = (url, options) => {"
        "if (options?.body) sent.push(JSON.parse(options.body).messages.map(m => m.content));"
        "return get(url, options); }; })()"
    )
    ask(tab, "one", 2)
    ask(tab, "two", 4)
    assert {len(contents) for contents in tab.js("sent.slice(2)")} == {3}, "with history"
    tab.click("#alone")
    ask(tab, "three", 6)
    ask(tab, "four", 8)
    assert tab.js("sent.slice(4)") == [["three"]] * 2 + [["four"]] * 2
    facts = tab.js("[...document.querySelectorAll('#left .facts')].map(f => f.innerText)")
    assert ["asked alone" in one for one in facts] == [False, False, True, True]
    tab.click("#alone")
    ask(tab, "five", 10)
    assert [contents[0] for contents in tab.js("sent.slice(8)")] == ["four"] * 2, "goes on from it"
    assert tab.wrong == [] or all("401" in one for one in tab.wrong)


def test_only_what_a_roll_out_has_tells_questions(url: str) -> None:
    def told(name: str, **headers: str) -> httpx.Response:
        return httpx.get(f"{url}/moetune/v1/examples/{name}", headers=headers)

    key = {"Authorization": f"Bearer {KEY}"}
    champion = httpx.get(f"{url}/moetune/v1/rollouts/home", headers=key).json()["champion"]
    for name in ("home", f"home@{champion}"):
        assert told(name, **key).json() == {"name": name, "questions": [EVIL, "lights?"]}
    assert told("home@0123456789ab", **key).json()["questions"] == []
    assert told("house", **key).status_code == 404
    assert told("home@latest", **key).status_code == 400
    assert told("home").status_code == 401


def test_questions_of_the_versions_own_rows_are_offered_and_no_others(
    tab: Page, tmp_path: Path
) -> None:
    tab.fill("#key", KEY)
    offered = "[...document.querySelectorAll('#examples button')].map(b => b.textContent)"
    tab.until("document.querySelectorAll('#examples button').length === 2")
    assert tab.js(offered) == [EVIL, "lights?"]
    tab.click("#examples button:last-child")
    assert tab.js("document.querySelector('#question').value") == "lights?"
    assert tab.js("document.querySelectorAll('.turn').length") == 0, "nothing is sent by itself"
    tab.screenshot(tmp_path / "examples.png")
    options = tab.js("[...document.querySelectorAll('#model option')].map(o => o.value)")
    canary = next(one for one in options if "@" in one and one != options[1])
    for other in (canary, "tiny-llama"):
        tab.fill("#model", "home")
        tab.until("document.querySelectorAll('#examples button').length === 2")
        tab.fill("#model", other)
        tab.until("document.querySelector('#examples').hidden")
        assert tab.js(offered) == []
    assert all("401" in one for one in tab.wrong)


def ask(tab: Page, question: str, answers: int) -> None:
    """Ask, and wait until there are so many answers of both sides."""
    tab.fill("#tokens", "6")
    tab.fill("#question", question)
    tab.click("#send")
    tab.until(f"document.querySelectorAll('.facts').length === {answers}")
    tab.until("document.querySelector('#send').innerText === 'Send'")


def test_a_view_waits_for_the_keys_rate_and_is_seldom_asked_for(tab: Page) -> None:
    tab.fill("#key", SLOW_KEY)
    tab.until("document.querySelectorAll('#model option').length >= 4")
    tab.click("#tab-versions")
    tab.until("document.querySelectorAll('#versions tbody tr').length >= 2")
    tab.until("document.querySelector('#trouble').hidden")
    asked = len(tab.asked)
    time.sleep(7)  # more than two looks at whether it is ready
    tab.until("true")
    later = tab.asked[asked:]
    assert len([url for url in later if url.endswith("/ready")]) >= 2
    assert not [url for url in later if "/moetune/" in url]


def test_a_wrong_key_and_a_stopped_answer_are_told(tab: Page) -> None:
    tab.fill("#key", "wrong")
    tab.until("document.querySelector('#trouble').innerText.includes('wants a key')")
    tab.fill("#key", KEY)
    tab.until("document.querySelectorAll('#model option').length >= 4")
    assert tab.js("document.querySelector('#trouble').hidden")
    tab.fill("#tokens", "100000")
    tab.fill("#question", "hello")
    tab.click("#send")
    tab.until("document.querySelectorAll('.turn.failed').length === 2")
    assert "max_tokens" in tab.text("#left .turn.failed")
    tab.fill("#tokens", "256")
    tab.fill("#question", "hello again")
    tab.click("#send")
    tab.until("document.querySelector('#send').innerText === 'Stop'")
    tab.click("#send")
    tab.until("document.querySelector('#send').innerText === 'Send'")
    last = "[...document.querySelectorAll('#left .turn')].at(-1).textContent"
    assert str(tab.js(last)).endswith("(stopped)")
