"""Passwords and keys in URIs: such URIs are refused where they would be written down, and read
without them where people see them."""

import re
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import unquote_plus

from pydantic import AfterValidator

_USER = re.compile(r"(?<=://)(?P<user>[^:/?#@\[]*):(?!\d+(?:/|$))[^@]*@(?:[^/?@]*@)*")
"""A user's password. What stands there is not always quoted as it should be; only digits are a
port."""
_SECRET = re.compile(
    r"passw|passphrase|secret|token|credential|signature"
    r"|(access|account|api|shared|storage).?key|^(pass|pwd|pw|sas|sig)$",
    re.IGNORECASE,
)
"""Names of fields in a URI's query that hold one."""


def without_credentials(uri: str) -> str:
    """The URI without passwords and keys: of its user, and in its query."""
    uri = _USER.sub(r"\g<user>@", uri)
    place, asks, query = uri.partition("?")
    fields = query.split("&")
    kept = [field for field in fields if not _is_secret(field)]
    if "://" not in place or kept == fields:  # in a path, ? stands for any letter
        return uri
    return place + asks * bool(kept) + "&".join(kept)


def shown(value: Any) -> str:
    """A value as Python writes it, for messages, with no password or key in any of its texts."""
    return repr(_bare(value))


def _bare(value: Any) -> Any:
    if isinstance(value, str):
        return without_credentials(value)
    if isinstance(value, Mapping):
        return {_bare(name): _bare(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        bare = [_bare(one) for one in value]
        return bare if isinstance(value, list) else tuple(bare)
    return value


def refuse_credentials(uri: str, instead: str) -> str:
    """The URI; ValueError where it holds a password or key, and what takes it `instead`."""
    if without_credentials(uri) != uri:
        raise ValueError(f"holds a password or key, which would be written down; {instead}")
    return uri


def _is_secret(field: str) -> bool:
    name, equals, _ = field.partition("=")
    return bool(equals and _SECRET.search(unquote_plus(name)))


def _no_credentials(uri: str) -> str:
    return refuse_credentials(
        uri,
        "leave it out and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (Google: "
        "GOOGLE_APPLICATION_CREDENTIALS; Azure: AZURE_TENANT_ID, AZURE_CLIENT_ID and "
        "AZURE_CLIENT_SECRET)",
    )


Uri = Annotated[str, AfterValidator(_no_credentials)]
"""A path or URI. Jobs and manifests name it, so it holds no password."""
