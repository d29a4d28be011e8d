"""Whether Transformer Engine is here in a version that megatron-core's wrappers fit; nothing of it is imported.

tests/engine/test_transformer_engine.py compares megatron-core's calls and ours with the sources of the oldest and the
newest supported version and of some between.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util

OLDEST, NEWEST = (2, 9), (2, 20)
"""Minor versions; pyproject.toml's extra `te` says the same."""
DOCUMENTS = {"p2p": (2, 9), "a2a": (2, 10), "all_gather": (2, 18), "a2a+p2p": (2, 19)}
"""parallel.cp_comm_type -> the first version in which it takes packed documents."""
_MEND = (
    'run pip install --no-build-isolation "transformer-engine[pytorch]>=2.9,<2.21" on a machine with CUDA, or set '
    'parallel.attention to "torch", which needs no more than PyTorch.'
)


def installed() -> tuple[int, int] | None:
    """Major and minor version of what is installed."""
    try:
        major, minor, *_ = importlib.metadata.version("transformer-engine").split(".")
    except importlib.metadata.PackageNotFoundError:
        return None
    return int(major), int(minor)


def problem() -> str | None:
    """Why parallel.attention "te" cannot work here, in one sentence; None where it can."""
    wanted, version = f"Transformer Engine {named(OLDEST)} to {named(NEWEST)}", installed()
    if version is None:
        return f'parallel.attention is "te", but {wanted} is not installed; {_MEND}'
    if not OLDEST <= version <= NEWEST:
        return f'parallel.attention is "te", but Transformer Engine is {named(version)} here, not {wanted}; {_MEND}'
    if importlib.util.find_spec("transformer_engine_torch") is None:
        return (
            f'parallel.attention is "te", but Transformer Engine {named(version)} lacks its part for PyTorch; {_MEND}'
        )
    return None


def takes_documents(kind: str) -> bool:
    """Whether what is installed (the oldest supported version, where nothing is) takes documents in this way."""
    return (installed() or OLDEST) >= DOCUMENTS[kind]


def named(version: tuple[int, int]) -> str:
    """As its maker writes it: "2.9"."""
    return ".".join(map(str, version))
