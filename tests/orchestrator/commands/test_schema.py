"""`moetune schema`: one JSON document, at once."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.json_schema import SCHEMAS


@pytest.mark.parametrize("name", SCHEMAS)
def test_it_prints_the_schema(name: str) -> None:
    shown = CliRunner().invoke(app, ["schema", name])
    assert json.loads(shown.stdout) == SCHEMAS[name]()


def test_a_job_is_meant_where_nothing_is_said() -> None:
    assert json.loads(CliRunner().invoke(app, ["schema"]).stdout) == SCHEMAS["job"]()


@pytest.mark.usefixtures("processes")
def test_it_loads_nothing_heavy() -> None:
    code = (
        "import sys; from orchestrator.cli import app; app(['schema'], standalone_mode=False); "
        "heavy = {'torch', 'ray', 'transformers', 'optuna'} & sys.modules.keys(); "
        "print(sorted(heavy), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr.strip() == "[]"
