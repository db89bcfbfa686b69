"""Runs the fused kernels' tests in processes of their own: Triton reads its environment at import.

`cases.py` computes with them, on a GPU or else in Triton's interpreter; `compiled.py`
compiles them, which needs no GPU.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from workers.layers.kernels.support import supports

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed: the fused kernels cannot run, not even interpreted",
)


def run_file(name: str, tmp_path: Path, **settings: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"} | settings
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / name)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.usefixtures("processes")
@needs_triton
def test_the_fused_kernels_equal_the_plain_loop(tmp_path: Path) -> None:
    settings = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    run_file("cases.py", tmp_path, **settings)


@pytest.mark.usefixtures("processes")
@needs_triton
def test_the_fused_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    run_file("compiled.py", tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="Triton's interpreter is on")
def test_the_eager_path_stays_the_default_on_a_cpu() -> None:
    assert not supports(torch.zeros(2, 32), 8, 8, 2, "silu")


@pytest.mark.usefixtures("processes")
def test_triton_is_not_imported_with_the_layers() -> None:
    code = "import sys, workers.layers.kernels.support; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE.parents[3])
