"""A small client of the endpoint: what `moetune ask`, `health` and `explain` use."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from orchestrator.auth.operator_key import KEY_VARIABLE
from orchestrator.serve.tls import trusting
from workers.config.base import InputError
from workers.engine.request import RequestError

CONNECT_SECONDS, READ_SECONDS = 5, 300
CHATS = "/v1/chat/completions"


class Answer(NamedTuple):
    """A whole answer."""

    model: str
    """The exact version that gave it: NAME@VERSION, or the base model."""
    text: str


class Client:
    """Asks an endpoint. Every failure is an InputError of one line."""

    def __init__(self, url: str, key: str | None = None, ca: str | Path | None = None) -> None:
        """`url` is the endpoint's (`http://127.0.0.1:8000`, with or without `/v1`). `ca` is a file
        of certificates to trust, where the endpoint's own is from nobody that this machine knows.
        """
        self._url = url
        self._address = url.rstrip("/").removesuffix("/v1")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._verify = trusting(ca) if ca else True

    def ask(self, model: str, text: str, stream: bool = False, **fields: Any) -> Iterator[str]:
        """Ask one question; yields the answer whole, or in pieces with `stream`.

        `fields` are further ones of OpenAI's chat completions. InputError comes before the pieces,
        or between them.
        """
        if not stream:
            yield self.answer(model, text, **fields).text
            return
        body = {**chat(model, text), "stream": True, **fields}
        with self._answer("POST", CHATS, json=body) as response:
            yield from _pieces(self._url, response)

    def answer(self, model: str, text: str, **fields: Any) -> Answer:
        """The whole answer to one question, and who gave it."""
        body = {**chat(model, text), **fields}
        with self._answer("POST", CHATS, json=body) as response:
            reply = json.loads(response.read())
            return Answer(reply["model"], reply["choices"][0]["message"]["content"])

    def get(self, path: str) -> Any:
        """What lies at a path, from JSON."""
        with self._answer("GET", path) as response:
            return json.loads(response.read())

    def post(self, path: str, body: Any) -> Any:
        """What the endpoint says to a body, both in JSON."""
        with self._answer("POST", path, json=body) as response:
            return json.loads(response.read())

    @contextmanager
    def _answer(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        try:
            with (
                httpx.Client(headers=self._headers, timeout=timeout, verify=self._verify) as client,
                client.stream(method, f"{self._address}{path}", **options) as response,
            ):
                if response.status_code != httpx.codes.OK:
                    raise _refusal(self._url, response.read(), response.status_code)
                yield response
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            said = error or type(error).__name__
            raise InputError(f"{self._url}: no answer: {said}") from None
        except (ValueError, KeyError, IndexError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self._url}: is no OpenAI endpoint: {error!r}") from None


def chat(model: str, text: str) -> dict[str, Any]:
    """Body of a chat of one question."""
    return {"model": model, "messages": [{"role": "user", "content": text}]}


def _pieces(url: str, response: httpx.Response) -> Iterator[str]:
    """The texts of a stream's events."""
    for line in response.iter_lines():
        data = line.removeprefix("data: ")
        if not line or data == "[DONE]":
            continue
        event = json.loads(data)
        if "error" in event:
            raise InputError(f"{url}: {event['error']['message']}")
        for choice in event["choices"]:
            if text := choice["delta"].get("content"):
                yield text


def _refusal(url: str, raw: bytes, status: int) -> RequestError:
    """What an OpenAI error body says, or what there is instead."""
    try:
        error = json.loads(raw)["error"]
        message, code = str(error["message"]), error.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        said = " ".join(raw.decode(errors="replace").split())[:200]
        message, code = f"HTTP {status}: {said}", None
    hint = f" (yours is read from {KEY_VARIABLE})" if status == httpx.codes.UNAUTHORIZED else ""
    return RequestError(f"{url}: {message}{hint}", None, status, code)
