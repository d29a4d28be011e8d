"""Where a model under evaluation comes from: a Megatron checkpoint as it lies, or a Hugging Face folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from megatron_ultralong.checkpoint.description import DESCRIPTION, Description
from megatron_ultralong.checkpoint.loading import load_weights
from megatron_ultralong.convert.companions import Companions
from megatron_ultralong.convert.formats.hf_folder import HfFolder
from megatron_ultralong.convert.hf_into_model import load_hf_weights
from megatron_ultralong.errors import UserError
from megatron_ultralong.rope import config_json
from megatron_ultralong.rope.scaling import RopeScaling


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A model before its weights are read.

    Attributes:
        folder: as given.
        kind: "megatron" or "hugging face".
        step: optimizer steps done, of a Megatron checkpoint.
        hf_config: its config.json, completed.
        rope: the scaling that it was trained with, or states.
        companions: the folder of its tokenizer and generation_config.json.
        load: fills this rank's part of a model with the weights.
    """

    folder: Path
    kind: str
    step: int | None
    hf_config: dict[str, Any]
    rope: RopeScaling
    companions: Path
    load: Callable[[torch.nn.Module], None]

    @property
    def context_length(self) -> int:
        """Tokens that the model was made for."""
        stated = self.hf_config.get("max_position_embeddings") if self.step is None else None
        return int(stated or self.rope.length)


def open_source(folder: Path, hf: Path | None = None) -> ModelSource:
    """Read what a folder says of its model.

    Args:
        folder: written by tools/convert_hf_to_megatron.py, a training run's step_N, or in Hugging Face format.
        hf: where a checkpoint's tokenizer lies; None: where the checkpoint says.

    Raises:
        UserError: it is none of these, or a file of it is missing or damaged.
    """
    folder = Path(folder)
    if (folder / DESCRIPTION).exists():
        description = Description.read(folder)
        if damage := description.damage(folder):
            raise UserError(f"{damage}: the checkpoint is damaged; copy or convert it again.")
        return ModelSource(
            folder,
            "megatron",
            description.step,
            description.hf_config,
            description.rope,
            Companions.of(hf, description).folder,
            lambda model: load_weights(model, folder),
        )
    if not (folder / "config.json").exists():
        raise UserError(
            f"{folder}: holds neither {DESCRIPTION} (a Megatron checkpoint; of a run, name a step_N folder) nor "
            "config.json (a model in Hugging Face format)."
        )
    source = HfFolder.open(folder)
    rope = config_json.read(source.config)
    return ModelSource(
        folder,
        "hugging face",
        None,
        source.config,
        rope,
        Path(hf or folder),
        lambda model: load_hf_weights(model, source),
    )
