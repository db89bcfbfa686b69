"""Takes the pictures of README and docs from what the real demo has left.

    python -m tests.pictures.take [--demo FOLDER] [--to FOLDER]

`make pictures` runs it. Where there is no finished run of the demo, the demo runs first. Nothing is
changed there: a copy is served, on which a canary begins.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.orchestrator.browser import CHROMIUM, Page, browser
from tests.pictures import terminal
from tests.pictures.demo_run import DemoRun, made
from tests.served import serving

ROOT = Path(__file__).parents[2]
NAME, STUDY = "home", "smart-home"
"""What the demo promotes to, and its study."""
ASKED = (
    "Name the area in this request: how warm is it in the guest room",
    "Call the intent for this request: please switch the desk lamp in the office on",
)
USERS = 12
"""Of the roll-out's picture; some of them get the canary."""
WIDTH = 1240
PATIENCE_SECONDS = 300.0


def take(run: DemoRun, to: Path) -> None:
    """All pictures, into a folder."""
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pictures-") as temporary:
        copy = run.copied(Path(temporary) / "runs")
        with browser(Path(temporary) / "browser") as page:
            page.do("Emulation.setScrollbarsHidden", hidden=True)
            _terminal(page, copy, Path(temporary) / "terminal.html", to / "terminal.png")
            _report(page, copy, to / "report.png")
            _begin_canary(copy)
            words = (NAME, "--storage", str(copy.folder), "--set", "examples=4")
            with serving(*words, env={**os.environ}) as (_, url):
                _chat(page, url, to / "chat.png")
                _rollout(page, url, to / "rollout.png")


def _terminal(page: Page, run: DemoRun, file: Path, picture: Path) -> None:
    typed = (["leaderboard", STUDY], ["models"], ["history", NAME])
    place = ("--storage", str(run.folder))
    talk = [(f"moetune {' '.join(w)}", terminal.printed([*w, *place])) for w in typed]
    file.write_text(terminal.page(talk))
    page.open(file.as_uri())
    width = page.js("document.querySelector('pre').scrollWidth")
    height = page.js("document.querySelector('pre').scrollHeight")
    _shot(page, picture, height, max(WIDTH, width))


def _report(page: Page, run: DemoRun, picture: Path) -> None:
    path = terminal.printed(["report", STUDY, "--storage", str(run.folder)])
    page.open(Path(path).as_uri())
    # The base by its name: where it lies is this machine's affair.
    base = "document.querySelector('p code').textContent"
    page.js(f"{base} = {base}.split('/').pop()")
    _shot(page, picture, 960)


def _begin_canary(run: DemoRun) -> None:
    """The demo's other version answers a part of the users."""
    from orchestrator.commands.options import registry

    book = registry(str(run.folder), None)
    champion = book.rollout(NAME).champion
    other = next(one.id for one in book.versions() if one.id != champion)
    words = ["promote", NAME, "--version", other, "--canary", "25%", "--storage", str(run.folder)]
    terminal.printed([*words, "--force", "--reason", "to see a canary"])


def _chat(page: Page, url: str, picture: Path) -> None:
    page.open(f"{url}/")
    page.until("document.querySelector('#model').options.length > 1")
    page.fill("#tokens", "32")
    page.js("document.querySelector('#alone').checked = true")
    for at, question in enumerate(ASKED, 1):
        page.fill("#question", question)
        page.click("#send")
        said = f"document.querySelectorAll('#left .facts:not(:empty)').length === {at}"
        _wait(page, f"{said} && document.querySelector('#send').textContent === 'Send'")
    _shot(page, picture, 900)


def _rollout(page: Page, url: str, picture: Path) -> None:
    from orchestrator.client import Client

    client = Client(url)
    for user in range(USERS):
        client.answer(NAME, ASKED[0], temperature=0, max_tokens=4, user=f"user {user}")
    page.click("#tab-versions")
    _wait(page, "document.querySelectorAll('#versions table tr').length > 1")
    _shot(page, picture, 450)


def _wait(page: Page, code: str) -> None:
    """Longer than a test would: the model is a real one, and the machine may be busy."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not page.js(code):
        assert time.monotonic() < end, f"never came true: {code}; {page.wrong}"
        time.sleep(0.2)


def _shot(page: Page, picture: Path, height: int, width: int = WIDTH) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    page.do("Emulation.setDeviceMetricsOverride", **size)
    time.sleep(1)  # plots draw themselves anew
    page.screenshot(picture)
    print(f"{picture}: {picture.stat().st_size >> 10} KiB", flush=True)


def main(words: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Take the pictures of README and docs.")
    parser.add_argument("--demo", type=Path, default=ROOT / "runs" / "demo", metavar="FOLDER")
    parser.add_argument("--to", type=Path, default=ROOT / "docs" / "pictures", metavar="FOLDER")
    given = parser.parse_args(words)
    if CHROMIUM is None:
        print("pictures: no chromium is on the path: apt-get install chromium", file=sys.stderr)
        return 2
    take(made(given.demo), given.to)
    return 0


if __name__ == "__main__":
    sys.exit(main())
