"""Certificates of the endpoint."""

import ssl
from pathlib import Path
from typing import Self

from pydantic import model_validator

from workers.config.base import InputError, Spec


class TlsSpec(Spec):
    """HTTPS; both files in PEM, on every machine that listens."""

    cert: str | None = None
    """The certificate, with those between it and its authority behind it."""
    key: str | None = None
    """Its private key, without a password."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key belong together: name both files, or none")
        return self

    def checked(self) -> "TlsSpec":
        """The same with whole paths; InputError where the files do not serve."""
        if self.cert is None or self.key is None:
            return self
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        where = f"serve.tls: {self.cert}, {self.key}"
        try:
            context.load_cert_chain(self.cert, self.key, password=_no_password)
        except ssl.SSLError as error:
            said = error.reason or "they are no certificate and key without a password"
            raise InputError(f"{where}: {said.lower().replace('_', ' ')}") from None
        except OSError as error:
            raise InputError(f"{where}: {error.strerror}") from None
        return TlsSpec(cert=str(Path(self.cert).resolve()), key=str(Path(self.key).resolve()))


def _no_password() -> str:
    """OpenSSL would ask at the terminal."""
    return ""
