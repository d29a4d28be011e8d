"""URLs of inputs: which can be read and written down, and with which package."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

from megatron_ultralong.errors import UserError, shown

PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    "hf": "huggingface_hub",
    **dict.fromkeys(("http", "https"), "aiohttp"),
    "memory": "fsspec",
}
"""What fsspec needs for each scheme."""

WEB = ("http", "https")
"""Schemes without lists of files."""

_LOCAL = ("file", "local")


def is_url(path: str) -> bool:
    """Whether it is a URL, of whatever scheme."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


def absolute(path: str) -> str:
    """What a file is called wherever a command is given: its URL, or its absolute path."""
    return path if is_url(path) else os.path.abspath(path)


def checked(url: str) -> str:
    """A URL that can be read and written down; of file:// its path.

    Raises:
        UserError: its scheme is not known, or it holds a name, a password or a signature.
    """
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme in _LOCAL:
        return "/" + unquote(rest.removeprefix("localhost")).lstrip("/")
    if scheme not in PACKAGES:
        known = ", ".join(f"{each}://" for each in (*PACKAGES, "file"))
        raise UserError(f"input {scheme}://...: there is no way to read this scheme (known: {known}); fetch the files.")
    head, _, path = rest.partition("/")
    port = head.rpartition(":")[2] if ":" in head and not head.startswith("arn:") else "0"
    if "@" in head or not port.isdecimal() or (scheme in WEB and "?" in rest) or re.search(r"\?[^/]*=", path):
        raise UserError(
            f"input {scheme}://...{shown(rest.partition('?')[0].rpartition('/')[2].rpartition('@')[2])}: a URL with a "
            "name, a password or a query may hold a secret, which manifests and logs would show; leave that out, and "
            "give credentials by the environment (docs/data.md)."
        )
    return f"{scheme}://{rest}"
