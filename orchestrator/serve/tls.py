"""Trust in the certificates of an endpoint."""

import ssl
from pathlib import Path

from workers.config.base import InputError


def trusting(certificates: str | Path) -> ssl.SSLContext:
    """A client's context that trusts the certificates of this file, and what they have signed."""
    try:
        context = ssl.create_default_context(cafile=str(certificates))
    except OSError as error:  # ssl.SSLError too
        said = error.strerror or "is no file of certificates in PEM"
        raise InputError(f"--ca {certificates}: {said}") from None
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # an endpoint's own certificate will do
    return context


def own(certificate: str) -> ssl.SSLContext:
    """A context for the endpoint's own address, which its certificate need not name."""
    context = trusting(certificate)
    context.check_hostname = False
    return context
