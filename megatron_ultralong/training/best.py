"""The best checkpoint of a run by a metric of its validations: `checkpoint.save`/best, a link that is always whole."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from megatron_ultralong.training import checkpoints

logger = logging.getLogger(__name__)

LINK = "best"


def point(save: Path, standing: dict[str, Any] | None) -> set[Path]:
    """Have the link lead to the best checkpoint, if that is there; else leave it as it was.

    Args:
        save: `checkpoint.save`.
        standing: what the newest checkpoint says of validations; None: nothing.

    Returns:
        The checkpoint that it leads to, which is to be kept; none if there is no best one.
    """
    link, step = save / LINK, (standing or {}).get("best_step", -1)
    target = checkpoints.step_folder(save, step)
    if step >= 0 and target.is_dir() and not (link.is_symlink() and link.readlink() == Path(target.name)):
        temporary = save / f".{LINK}.tmp"
        try:
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(target.name)
            temporary.replace(link)
        except OSError as error:
            logger.warning("%s cannot be made (%s); %s is kept as the best one", link, error.strerror, target)
            return {target}
    return {save / link.readlink()} if link.is_symlink() and link.exists() else set()
