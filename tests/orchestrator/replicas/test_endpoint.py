import subprocess
import sys

import pytest


@pytest.mark.usefixtures("processes")
def test_what_a_process_holds_when_it_has_begun_is_not_looked_at_again() -> None:
    """In a process of its own: it is for the whole of one."""
    code = (
        "import gc; from orchestrator.replicas.endpoint import begun; "
        "before = len(gc.get_objects()); "
        "begun(); print(before, len(gc.get_objects()))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, shown.stdout.split())
    assert after < before / 100
