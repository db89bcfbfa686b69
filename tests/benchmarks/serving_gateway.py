"""The gateway over one engine in a process of its own, with no Ray: what serving.py loads.

Says its port, then its CPU time whenever it is asked.
"""

import asyncio
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from serving_process import answer_all

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from orchestrator.gateway.app import create_app
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from orchestrator.rollout.catalog import ModelCatalog
from workers.config.model import ModelSpec
from workers.engine.engine import ContinuousEngine
from workers.engine.request import Limits
from workers.engine.text_engine import TextEngine
from workers.models.base import load_base


def start(options: dict[str, Any]) -> Callable[..., Any]:
    """Serve the base as `base`, the adapters as a0, a1, …."""
    torch.set_num_threads(1)
    base = load_base(ModelSpec(path=options["base"], device="cpu", dtype="float32"))
    limits = Limits(
        max_batch_tokens=512,
        cache_tokens=options["cache_tokens"],
        max_new_tokens=options["answer"],
        max_adapters=max(len(options["adapters"]), 1),
    )
    text = TextEngine(ContinuousEngine(base, limits), base.tokenizer)
    folder = tempfile.mkdtemp(prefix="moetune-serving-")
    registry = Registry(f"sqlite:///{folder}/moetune.db", folder)
    for number, adapter in enumerate(options["adapters"]):
        version = registry.register("serving", number, adapter, {"validation": {"loss": 1.0}})
        how = {"actor": "benchmark", "metric": "validation/loss", "reason": "benchmark"}
        promote(registry, version, f"a{number}", **how, force=True)
    app = create_app(text, ModelCatalog(registry, "base", text.load))
    vocabulary = base.model.get_input_embeddings().num_embeddings
    facts = {"port": listen(app), "vocabulary": vocabulary}
    return lambda: facts | {"cpu": time.process_time()}


def listen(app: FastAPI) -> int:
    """Serve the application from a thread of its own; gives the port."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    threading.Thread(
        target=lambda: asyncio.run(server.serve([listening])), name="uvicorn", daemon=True
    ).start()
    return int(listening.getsockname()[1])


if __name__ == "__main__":
    answer_all(start)
