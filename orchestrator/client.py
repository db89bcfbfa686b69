"""A small client of the endpoint: what `moetune ask` uses."""

import json
from collections.abc import Iterator
from typing import Any

import httpx

from workers.spec import InputError

CONNECT_SECONDS, READ_SECONDS = 5, 300


def ask(
    url: str,
    model: str,
    text: str,
    key: str | None = None,
    stream: bool = False,
    **fields: Any,
) -> Iterator[str]:
    """Ask one question; yields the answer whole, or in pieces with `stream`.

    `url` is the endpoint's (`http://127.0.0.1:8000`, with or without `/v1`), `fields` are further
    ones of OpenAI's chat completions. Raises InputError, before or between the pieces.
    """
    messages = [{"role": "user", "content": text}]
    body = {"model": model, "messages": messages, "stream": stream, **fields}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
    address = f"{url.rstrip('/').removesuffix('/v1')}/v1/chat/completions"
    try:
        with httpx.stream("POST", address, json=body, headers=headers, timeout=timeout) as response:
            if response.status_code != httpx.codes.OK:
                raise InputError(f"{url}: {_reason(response.read(), response.status_code)}")
            if stream:
                yield from _pieces(url, response)
            else:
                yield json.loads(response.read())["choices"][0]["message"]["content"]
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise InputError(f"{url}: no answer: {error or type(error).__name__}") from None
    except (ValueError, KeyError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{url}: is no OpenAI endpoint: {error!r}") from None


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


def _reason(raw: bytes, status: int) -> str:
    """The message of an OpenAI error body, or what there is instead."""
    try:
        return str(json.loads(raw)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {status}: {' '.join(raw.decode(errors='replace').split())[:200]}"
