"""Runs `fused_cases.py` in a process of its own: Triton reads TRITON_INTERPRET when imported."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from workers.layers.fused import supports

CASES = Path(__file__).with_name("fused_cases.py")


def test_the_fused_kernels_equal_the_plain_loop() -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed: the fused kernels cannot run, not even interpreted")
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="Triton's interpreter is on")
def test_the_eager_path_stays_the_default_on_a_cpu() -> None:
    assert not supports(torch.zeros(2, 32), 8, 2, "silu")


def test_triton_is_not_imported_with_the_layers() -> None:
    code = "import sys, workers.layers.fused; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CASES.parents[3])
