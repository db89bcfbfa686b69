"""Who is noted as the one that decided."""

import os

import pytest

from orchestrator.commands.versions import _actor


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 5)
    assert _actor() == f"uid {2**31 - 5}"
