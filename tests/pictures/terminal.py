"""What commands print, as a page that looks like a terminal."""

import html
import subprocess
import sys
from collections.abc import Sequence

COMMAND = (sys.executable, "-m", "orchestrator.cli")
PAGE = """<!doctype html><meta charset="utf-8"><title>terminal</title><style>
body {{ margin: 0; background: #16202b; color: #dde5ec;
       font: 13px/1.45 "DejaVu Sans Mono", monospace; }}
pre {{ margin: 0; padding: 20px 24px; white-space: pre; font: inherit; }}
b {{ color: #8fd3a8; font-weight: 600; }}
</style><pre>{lines}</pre>"""


def printed(words: Sequence[str]) -> str:
    """What `moetune` with these words prints on stdout. CalledProcessError where it fails."""
    done = subprocess.run([*COMMAND, *words], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.rstrip("\n")


def page(talk: Sequence[tuple[str, str]]) -> str:
    """Commands as people type them, each with what it has printed."""
    said = (f"<b>$ {html.escape(typed)}</b>\n{html.escape(answer)}\n" for typed, answer in talk)
    return PAGE.format(lines="\n".join(said))
