"""Whether Transformer Engine is here in a version that megatron-core's wrappers fit; nothing of it is imported.

megatron-core 0.16.1 is made for 2.9 to 2.11; tests/engine/test_transformer_engine.py compares its calls and ours
with those versions' own sources.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util

SUPPORTED = ("2.9", "2.10", "2.11")
"""Minor versions; pyproject.toml's extra `te` says the same."""
_MEND = (
    'run pip install --no-build-isolation "transformer-engine[pytorch]>=2.9,<2.12" on a machine with CUDA, or set '
    'parallel.attention to "torch", which needs no more than PyTorch.'
)


def problem() -> str | None:
    """Why parallel.attention "te" cannot work here, in one sentence; None where it can."""
    wanted = f"Transformer Engine {SUPPORTED[0]} to {SUPPORTED[-1]}"
    try:
        version = importlib.metadata.version("transformer-engine")
    except importlib.metadata.PackageNotFoundError:
        return f'parallel.attention is "te", but {wanted} is not installed; {_MEND}'
    if ".".join(version.split(".")[:2]) not in SUPPORTED:
        return f'parallel.attention is "te", but Transformer Engine is {version} here, not {wanted}; {_MEND}'
    if importlib.util.find_spec("transformer_engine_torch") is None:
        return f'parallel.attention is "te", but Transformer Engine {version} lacks its part for PyTorch; {_MEND}'
    return None
