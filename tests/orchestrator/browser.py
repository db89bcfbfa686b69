"""Debian's chromium without a window, driven through its DevTools protocol."""

import base64
import contextlib
import itertools
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
SECONDS = 40
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--remote-debugging-port=0",
    "--window-size=1240,820",
)


class Page:
    """One page of the browser."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.wrong: list[str] = []
        """Uncaught errors, refused loads and other complaints of the page."""
        self.asked: list[str] = []
        """URLs that the page has asked for."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **parameters: Any) -> Any:
        """One command; events that come meanwhile are noted."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=SECONDS))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def open(self, url: str) -> None:
        """Go there and wait for its scripts."""
        self.do("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def js(self, code: str) -> Any:
        """The value of an expression; promises are awaited."""
        found = self.do("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, code: str) -> Any:
        """Wait until an expression is true."""
        end = time.monotonic() + SECONDS
        while not (value := self.js(code)):
            assert time.monotonic() < end, f"never came true: {code}; {self.wrong}"
            time.sleep(0.05)
        return value

    def text(self, selector: str) -> str:
        """What a reader sees of an element."""
        return str(self.js(f"document.querySelector({json.dumps(selector)}).innerText"))

    def click(self, selector: str) -> None:
        """Press an element."""
        self.js(f"document.querySelector({json.dumps(selector)}).click()")

    def fill(self, selector: str, value: str) -> None:
        """Write into a field, as a person who leaves it then."""
        self.js(
            f"(() => {{ const field = document.querySelector({json.dumps(selector)});"
            f"field.value = {json.dumps(value)};"
            "field.dispatchEvent(new Event('change')); })()"
        )

    def screenshot(self, path: Path) -> None:
        """A picture of what is shown."""
        path.write_bytes(base64.b64decode(self.do("Page.captureScreenshot")["data"]))

    def _note(self, message: dict[str, Any]) -> None:
        said = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.wrong.append(json.dumps(said["exceptionDetails"])[:500])
            case "Log.entryAdded" if said["entry"]["level"] in ("error", "warning"):
                self.wrong.append(said["entry"]["text"])
            case "Network.requestWillBeSent":
                self.asked.append(said["request"]["url"])


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A page of a browser of its own, with nothing remembered. Its cases take `chromium`."""
    assert CHROMIUM
    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        found = (re.search(r"ws://([^/]+)/", line) for line in process.stderr)
        address = next(one for one in found if one)[1]
        target = httpx.put(f"http://{address}/json/new?about:blank", timeout=SECONDS).json()
        with connect(target["webSocketDebuggerUrl"], max_size=None) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        process.wait(SECONDS)
        shutil.rmtree(folder, ignore_errors=True)
