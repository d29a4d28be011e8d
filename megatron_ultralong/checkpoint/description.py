"""What a checkpoint folder says of itself, in `ultralong.json` beside megatron-core's files.

Conversion writes it, training reads it at step 0 and writes it with every checkpoint, export reads it: so the
rope that was trained, and nothing else, is the rope that is exported.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from megatron_ultralong.errors import UserError
from megatron_ultralong.families.defaults import completed
from megatron_ultralong.files import read_json, write_json
from megatron_ultralong.rope.scaling import RopeScaling

DESCRIPTION = "ultralong.json"
FORMAT = 1


def sizes(folder: Path) -> dict[str, int]:
    """What `Description.files` records: every file of a checkpoint but its description."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != DESCRIPTION)
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(files)}


@dataclasses.dataclass(frozen=True)
class Description:
    """What a checkpoint says of itself.

    Attributes:
        hf_config: the model's Hugging Face config.json, with its loader's defaults.
        rope: the scaling that the weights were trained with.
        tokenizer_fingerprint: of the tokenizer whose ids the model takes, or "".
        step: optimizer steps done; 0 for converted weights.
        run: the resolved configuration with versions, or what converted the weights.
        data: how far the data was read (`data.blend.Position`), or None if the weights come from no run.
        validation: what the run's validations had found (`training.validation.Standing`), or None if it had none.
        files: size in bytes of every other file of the folder, by name; empty: not recorded.
    """

    hf_config: dict[str, Any]
    rope: RopeScaling
    tokenizer_fingerprint: str
    step: int
    run: dict[str, Any]
    data: dict[str, Any] | None = None
    validation: dict[str, Any] | None = None
    files: dict[str, int] = dataclasses.field(default_factory=dict)

    def damage(self, folder: Path) -> str:
        """What is wrong with the folder's files, as far as their sizes show; "" for nothing."""
        found = sizes(folder)
        for name, size in self.files.items():
            if name not in found:
                return f"{folder / name} is missing"
            if found[name] != size:
                return f"{folder / name} has {found[name]} bytes and not {size}"
        return ""

    def write(self, folder: Path) -> None:
        """Write ultralong.json into a checkpoint folder."""
        write_json(folder / DESCRIPTION, {"format": FORMAT, **dataclasses.asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> Description:
        """Read ultralong.json of a checkpoint folder.

        Raises:
            UserError: it is missing, broken, or of a later format.
        """
        mend = "give a folder written by tools/convert_hf_to_megatron.py or a run's step_N"
        value = read_json(folder / DESCRIPTION, "the checkpoint's description", mend)
        found = value.get("format") if isinstance(value, dict) else None
        if found != FORMAT:
            raise UserError(f"{folder / DESCRIPTION}: format {found} is not {FORMAT}; {mend}.")
        try:
            optional = {name: value.get(name) for name in ("data", "validation")} | {"files": value.get("files", {})}
            fields = {field.name: value[field.name] for field in dataclasses.fields(cls) if field.name not in optional}
            for name in ("hf_config", "run"):
                if not isinstance(fields[name], dict):
                    raise TypeError(f"{name} is {fields[name]!r}")
            fields["hf_config"] = completed(fields["hf_config"])
            return cls(**{**fields, **optional, "rope": RopeScaling(**value["rope"])})
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder / DESCRIPTION}: an entry is missing or unknown ({error}); {mend}.") from None
