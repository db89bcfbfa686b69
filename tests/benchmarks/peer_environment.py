"""The virtual environment that the published moe-peft runs in.

It needs a transformers two years older than ours, so it gets an environment of its own, which
shares nothing with ours: moe-peft tries at import what else is installed (bitsandbytes, flash
attention), and must not find what a newer project happens to have. torch has our version, since
the comparison is of packages; it comes from wherever pip finds it.
"""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

CACHE = Path.home() / ".cache" / "moetune" / "peers"
MOE_PEFT = "moe-peft==2.0.2"
# What moe-peft imports. Without it, since it asks for a torch below 2.6, and runs with a newer one.
NEEDED = ("transformers==4.46.3", "accelerate", "datasets", "evaluate", "scikit-learn")
VERSIONS = """
from importlib.metadata import version
print(version("moe-peft"), "with transformers", version("transformers"))
"""


def python_of(folder: Path = CACHE) -> Path:
    """The environment's interpreter; makes or renews the environment where it is not up to date."""
    torch = f"torch=={version('torch').partition('+')[0]}"
    wanted = "\n".join((sys.version, torch, *NEEDED, MOE_PEFT))
    python, stamp = folder / "bin" / "python", folder / "ready"
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing {MOE_PEFT} into {folder} (some minutes, once)", file=sys.stderr)
    stamp.unlink(missing_ok=True)
    _run(sys.executable, "-m", "venv", "--clear", str(folder))
    _run(str(python), "-m", "pip", "install", "--quiet", torch, *NEEDED)
    _run(str(python), "-m", "pip", "install", "--quiet", "--no-deps", MOE_PEFT)
    stamp.write_text(wanted)
    return python


def versions_in(python: Path) -> dict[str, str]:
    """Version of moe-peft in the environment, and what it runs with."""
    return {"moe-peft": _run(str(python), "-c", VERSIONS).strip()}


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout
