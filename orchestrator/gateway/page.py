"""The web page at `/`: a fixed list of files of ours, and nothing from anywhere else."""

from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import Response

TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
FILES = (
    "index.html",
    "style.css",
    "icon.svg",
    "main.js",
    "elements.js",
    "gateway.js",
    "chat.js",
    "experts.js",
    "versions.js",
    "routers.js",
)
PATHS = {name: "/" if name == "index.html" else f"/page/{name}" for name in FILES}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class WebFile:
    """One file of the page, read once."""

    def __init__(self, name: str) -> None:
        self._content = (files("orchestrator.gateway") / "web" / name).read_bytes()
        self._type = TYPES[name.rpartition(".")[2]]

    async def answer(self) -> Response:
        """The file, and what a browser may do with it."""
        return Response(self._content, media_type=self._type, headers=HEADERS)


def routes() -> APIRouter:
    """`/` and `/page/FILE` for each file. They hold no data; the page asks for that with a key."""
    router = APIRouter(include_in_schema=False)
    for name, path in PATHS.items():
        router.get(path)(WebFile(name).answer)
    return router
