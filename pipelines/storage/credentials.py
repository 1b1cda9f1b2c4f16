"""Credentials have no place in URLs: what a URL says is written into configs, manifests, events and error messages.

They come from the environment, a profile or a role. A URL that carries some is refused before it is written anywhere.
"""

from __future__ import annotations

import re

from pipelines.errors import PipelineError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^\s]*)")
# user@host is a name and no secret for these; of Azure's, the container. Elsewhere it is a key or a token.
_NAMED = {"sftp", "ssh", "hdfs", "abfs", "abfss", "wasb", "wasbs"}
_SIGNED = re.compile(
    r"[?&][^=&#]*(?:sig|signature|token|credential|secret|password|api_?key)[^=&#]*=[^&#]", re.IGNORECASE
)


def refuse_credentials(text: str, name: str = "") -> None:
    """Raise PipelineError, in one line that does not repeat them, if a URL holds credentials; any other text is fine.

    text: a URL, or several in one text. name: of the key it was given by, for the message.
    """
    for kind, host, rest in _URL.findall(text):
        user, at, place = host.rpartition("@")
        # A key may hold a '/', which ends the host early: then what is left is no port.
        port = place.rpartition(":")[2] if ":" in place else ""
        cut = bool(port) and not port.isdigit() and not place.startswith(("arn:", "["))
        if (at and (":" in user or kind.lower() not in _NAMED)) or cut or _SIGNED.search(rest):
            raise PipelineError(
                f"{name + '=' if name else ''}{kind}://...: holds credentials, which would be written into what a job "
                "leaves behind; take them out, and give them by the environment, a profile or a role"
            )


def redact(value: object) -> str:
    """A value as text, without what could be a secret in a URL: user:password@ and signed query strings."""
    text = re.sub(r"(\w://)[^/@\s]+@", r"\1", str(value))
    return re.sub(r"(\w://[^\s?]+)\?\S*(?:sig|token|key|cred|secret)\S*", r"\1", text, flags=re.IGNORECASE)
