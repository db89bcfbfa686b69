"""The operator's key, which the environment names: an endpoint's own, and its clients'."""

import os
from pathlib import Path

from cluster.address import is_loopback
from workers.config.base import InputError

KEY_VARIABLE = "MOETUNE_API_KEY"
KEY_FILE_VARIABLE = "MOETUNE_API_KEY_FILE"
SHORTEST_KEY = 16
RULES = f"at least {SHORTEST_KEY} printable ASCII characters, without spaces"


def read_key() -> str | None:
    """The key from MOETUNE_API_KEY or MOETUNE_API_KEY_FILE; None where neither is set."""
    key, path = os.environ.get(KEY_VARIABLE), os.environ.get(KEY_FILE_VARIABLE)
    if not key and not path:
        return None
    where = KEY_VARIABLE if key else f"{KEY_FILE_VARIABLE}: {path}"
    try:
        key = (key or Path(path or "").read_text(errors="replace")).strip()
    except OSError as error:
        raise InputError(f"{where}: {error.strerror}") from None
    # It travels in a header; HTTP libraries quote one that they cannot send, key and all.
    if not key.isascii() or not key.isprintable() or len(key.split()) != 1:
        raise InputError(f"{where}: a key has {RULES}")
    return key


def accepted_key(host: str) -> str | None:
    """What an endpoint at `host` keeps of the key; None without one, which only loopback may be.
    Raises InputError where one is needed, or too short."""
    from orchestrator.auth.keys import key_hash  # with the web framework, which clients do not need

    key = read_key()
    if key is None:
        if not is_loopback(host):
            raise InputError(
                f"serve.host is {host}, beyond loopback: set a key in {KEY_VARIABLE} ({RULES}), or "
                f"name its file in {KEY_FILE_VARIABLE}"
            )
        return None
    if len(key) < SHORTEST_KEY:
        raise InputError(f"{KEY_VARIABLE}: a key has {RULES}")
    return key_hash(key)
