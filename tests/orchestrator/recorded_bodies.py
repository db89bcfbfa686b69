"""Request bodies as common clients send them, by their public documentation and code."""

from typing import Any

TURNS = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Hello!"},
]
ZOD = {
    "type": "json_schema",
    "json_schema": {
        "name": "lights",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"on": {"type": "boolean"}, "room": {"enum": ["hall", None]}},
            "required": ["on", "room"],
            "additionalProperties": False,
            "$schema": "http://json-schema.org/draft-07/schema#",
        },
    },
}
CHATS: dict[str, dict[str, Any]] = {
    "langchain": {"messages": TURNS, "model": "home", "stream": False, "temperature": 0.7},
    "langchain, history": {
        "messages": [
            *TURNS,
            {"content": "Hi.", "role": "assistant"},
            {"role": "user", "content": [{"type": "text", "text": "Go on."}]},
        ],
        "model": "home",
        "n": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.7,
        "logprobs": None,
        "seed": None,
        "stop": None,
    },
    "langchain.js": {
        "model": "home",
        "temperature": 1,
        "top_p": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "n": 1,
        "stream": False,
        "messages": TURNS,
    },
    "litellm": {"model": "home", "messages": TURNS, "stream": False},
    "litellm, an answer comes back": {
        "model": "home",
        "messages": [
            *TURNS,
            {
                "content": "Hi.",
                "role": "assistant",
                "tool_calls": None,
                "function_call": None,
                "annotations": [],
            },
            {"role": "user", "content": "Go on."},
        ],
        "temperature": 0.0,
        "max_tokens": 16.0,
        "tools": None,
        "tool_choice": None,
        "logit_bias": {},
        "user": "",
        "metadata": {"trace": "7"},
    },
    "openai npm": {
        "model": "home",
        "messages": [{"role": "developer", "content": "Be brief."}, *TURNS[1:]],
        "max_completion_tokens": 16,
        "store": False,
        "stream": True,
        "parallel_tool_calls": True,
        "service_tier": "auto",
    },
    "openai npm, an answer comes back": {
        "model": "home",
        "messages": [
            *TURNS,
            {"role": "assistant", "content": "Hi.", "refusal": None, "annotations": []},
            {"role": "user", "content": [{"type": "text", "text": "Go on.", "annotations": None}]},
        ],
        "response_format": ZOD,
    },
}
PROMPTS = ["Tell me a joke", "And another one"]
TEXTS: dict[str, dict[str, Any]] = {
    "langchain": {
        "model": "home",
        "prompt": PROMPTS,
        "frequency_penalty": 0,
        "logprobs": None,
        "max_tokens": 256,
        "n": 1,
        "presence_penalty": 0,
        "seed": None,
        "temperature": 0.7,
        "top_p": 1,
    },
    "langchain.js": {
        "model": "home",
        "temperature": 0.7,
        "max_tokens": 256,
        "top_p": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "n": 1,
        "best_of": 1,
        "stream": False,
        "prompt": PROMPTS[:1],
    },
    "litellm": {"model": "home", "prompt": PROMPTS[0], "max_tokens": 16, "suffix": None},
    "openai npm": {
        "model": "home",
        "prompt": [[72, 101, 121], [72, 111]],
        "echo": False,
        "stream": True,
        "stream_options": {"include_usage": False, "include_obfuscation": False},
    },
}
