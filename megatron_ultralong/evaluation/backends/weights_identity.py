"""Which weights a folder holds, told from 4 MiB a file, so that a resumed run asks the model that it began with."""

from __future__ import annotations

import hashlib
from pathlib import Path

from megatron_ultralong.files import fingerprint

_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.bin", "*.distcp")


def weights_fingerprint(folder: Path) -> str:
    """SHA-256 (hex) over the names and fingerprints of configuration and weights."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _FILES for path in Path(folder).glob(pattern)}):
        digest.update(f"{path.name} {fingerprint(path)}\n".encode())
    return digest.hexdigest()
