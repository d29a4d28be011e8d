"""ultralong.json: what a Megatron checkpoint folder says about the model in it.

megatron-core's files hold tensors only. This card carries what is needed to build the model again and to hand
it back: the Hugging Face configuration, the rope that was trained, and where it all came from.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from pathlib import Path
from typing import Any

import megatron_ultralong
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import read_json, write_json
from megatron_ultralong.model.rope import RopeScaling

NAME = "ultralong.json"
_FORMAT = 1


def installed_versions() -> dict[str, str]:
    """Versions of this project and of the libraries whose files it writes."""
    names = ("torch", "megatron-core", "safetensors")
    return {"megatron-ultralong": megatron_ultralong.__version__} | {
        name: importlib.metadata.version(name) for name in names
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointCard:
    """The content of ultralong.json.

    Attributes:
        hf_config: config.json of the model the weights started from.
        rope: how its rotary frequencies are derived now, which may no longer be what hf_config says.
        tokenizer_fingerprint: of the tokenizer.json it was trained with, or "".
        step: optimizer steps taken; 0 for converted weights.
        precision: of the stored weights: "fp32", "bf16", "fp16" or "mixed".
        source: the folder the weights came from.
        versions: of the libraries that wrote it.
    """

    hf_config: dict[str, Any]
    rope: RopeScaling
    tokenizer_fingerprint: str = ""
    step: int = 0
    precision: str
    source: str
    versions: dict[str, str] = dataclasses.field(default_factory=installed_versions)

    def write(self, folder: Path) -> None:
        """Write it into a checkpoint folder."""
        write_json(Path(folder) / NAME, {"format": _FORMAT, **dataclasses.asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> CheckpointCard:
        """Read it from a checkpoint folder.

        Raises:
            UserError: missing, not JSON, of a later format, or fields missing.
        """
        path = Path(folder) / NAME
        mend = "give a folder that tools/convert_hf_to_megatron.py or a training run wrote"
        content = read_json(path, "the checkpoint's description", mend)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise UserError(f"{path}: not of format {_FORMAT}, the one this version reads; {mend}.")
        known = {field.name for field in dataclasses.fields(cls)}
        try:
            fields = {name: value for name, value in content.items() if name in known}
            return cls(**fields | {"rope": RopeScaling(**content["rope"])})
        except (TypeError, KeyError) as error:
            raise UserError(f"{path} is damaged ({error}); {mend}.") from None
