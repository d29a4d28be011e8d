"""What both tools do around the weights: refuse an output that exists or a disk that is too small, and say so."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import torch

from megatron_ultralong.convert.formats.row_stream import Tally
from megatron_ultralong.errors import UserError, listing
from megatron_ultralong.files import atomic_directory, disk_errors_named

logger = logging.getLogger(__name__)

Dtype = Literal["keep", "fp32", "bf16", "fp16"]
TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPE_NAMES = {value: name for name, value in TORCH_DTYPES.items()}


def refuse_existing(output: Path, overwrite: bool, own: Iterable[str]) -> None:
    """Raise UserError if `output` exists and may not be replaced, or holds what matches none of the patterns `own`."""
    output = Path(output)
    if not output.exists():
        return
    if not overwrite:
        raise UserError(f"{output} exists; give another --output, or --overwrite to replace it.")
    if not output.is_dir():
        raise UserError(f"{output} is a file; give another --output.")
    for path in sorted(output.iterdir()):
        if not any(path.match(pattern) for pattern in own):
            raise UserError(
                f"{output} holds {path.name}, which no conversion wrote and --overwrite would delete; "
                "give another --output."
            )


def refuse_loss(output: Path, *sources: Path | None) -> None:
    """Raise UserError if replacing `output` would remove what is read: it is a source, or holds one."""
    target = Path(output).resolve()
    for source in filter(None, sources):
        if target in (Path(source).resolve(), *Path(source).resolve().parents):
            raise UserError(f"--output {output} is or holds {source}, which is read; give another --output.")


def check_counts(**counts: int) -> None:
    """Raise UserError for an option that is too small: workers below 1, another below 0."""
    for name, value in counts.items():
        least = 1 if name == "workers" else 0
        if value < least:
            raise UserError(f"--{name.replace('_', '-')} is {value}; give {least} or more.")


def free_space(output: Path) -> int:
    """Bytes free where `output` will lie."""
    existing = next(parent for parent in Path(output).absolute().parents if parent.exists())
    return shutil.disk_usage(existing).free


def check_text(path: Path | None, verify: str) -> None:
    """Refuse a --verify-text that is no readable file, or that nothing reads, before hours go into a conversion."""
    if path is not None and verify != "logits":
        raise UserError(f"--verify-text is read by --verify logits, and --verify is {verify}; change one of them.")
    if path is not None and not (Path(path).is_file() and os.access(path, os.R_OK)):
        raise UserError(f"--verify-text is {path}, which is no file that can be read; give a text file.")


@contextlib.contextmanager
def writing(output: Path, size: int) -> Iterator[Path]:
    """`atomic_directory`, refused where fewer than `size` bytes are free; a failing disk is one sentence.

    Raises:
        UserError: too little space before, or an error of the disk while it is written.
    """
    free = free_space(output)
    if free < size:
        raise UserError(
            f"{output} takes {gigabytes(size)}, but {gigabytes(free)} are free there; "
            "free space or give another --output."
        )
    mend = "free space or give another --output; nothing of it is left"
    with disk_errors_named(output, mend), atomic_directory(output) as folder:
        yield folder


def gigabytes(size: float) -> str:
    """Bytes as people say them, in powers of ten."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} bytes"


def precision_name(dtypes: Iterable[torch.dtype]) -> str:
    """Name the one dtype ("fp32", "bf16", "fp16") all tensors have, or "mixed"."""
    found = set(dtypes)
    return DTYPE_NAMES[found.pop()] if len(found) == 1 else "mixed"


def warn_not_finite(where: Path, tally: Tally) -> None:
    """Say which tensors hold NaN or infinity, if any."""
    if tally.not_finite:
        logger.warning("%s: NaN or infinite weights in %s", where, listing(sorted(tally.not_finite), 8))
