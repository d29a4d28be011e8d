"""Show what a RoPE scaling does to a model: wavelengths, how each dimension is treated, what an export will say.

    python tools/inspect_rope.py --model models/llama-3.1-8b --target 1048576

Prints a table with both forms of YaRN and llama3 side by side, and config.json's entries; draws the same as a PNG.
The flags of --rope are those of a run's [rope] section. docs/rope.md says how to choose.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from rich.console import Console

from megatron_ultralong.checkpoint.description import DESCRIPTION, Description
from megatron_ultralong.cli import run
from megatron_ultralong.config.sections import RopeConfig
from megatron_ultralong.convert.hf_config import served, with_rope
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import atomic_file, disk_errors_named, read_json
from megatron_ultralong.rope import config_json
from megatron_ultralong.rope.recipes import scaled
from megatron_ultralong.rope.scaling import RopeScaling

logger = logging.getLogger(__name__)

_RECIPE = RopeConfig(kind="ultralong")
_WIDTH = 100  # of the table, also where the terminal is narrower or a file


def main(
    *,
    model: Path,
    target: int = 0,
    rope: RopeConfig = _RECIPE,
    output: Path = Path("rope.png"),
    every_row: bool = False,
) -> None:
    """Print a table of a model's rope at a target length and what an export will say, and draw it.

    Args:
        model: a folder in Hugging Face format, a config.json, or a Megatron checkpoint (step_N).
        target: tokens of context to reach; 0: the model as it is.
        rope: how, as a run's [rope] section says it; the recipe by default.
        output: the picture, a .png file.
        every_row: show every dimension, not only those where something changes.
    """
    import _rope_report  # beside this file

    if output.suffix != ".png":
        raise UserError(f"--output {output} is no .png file; give one.")
    hf_config, own = _read(model)
    dim = own.rotary_dim(_head_dim(hf_config, model))
    if target < 0:
        raise UserError(f"--target {target} is negative; give tokens of context, or 0 for the model as it is.")
    chosen = scaled(own, dataclasses.replace(rope, target_length=target), target) if target else own
    ropes = _rope_report.variants(own, chosen)
    entries = with_rope(hf_config, chosen)
    stated = {name: entries[name] for name in (*config_json.ENTRIES, "max_position_embeddings") if name in entries}
    picture = _rope_report.picture(ropes, dim, f"{model.name} at {chosen.length:,} tokens")

    console = Console(soft_wrap=True, highlight=False)
    console.width = max(_WIDTH, console.width)
    console.print(_rope_report.table(ropes, dim, every_row))
    for sentence in _rope_report.sentences(ropes, chosen, dim):
        console.print(sentence)
    console.print("\nconfig.json of an export:")
    console.print(json.dumps(stated, indent=2), markup=False)
    factor = served(hf_config, chosen)[1]
    if factor != 1.0:
        console.print(f"The rotated channels of the exported queries are multiplied by {factor:.9g}: no entry says it.")
    with disk_errors_named(output), atomic_file(output) as path:
        path.write_bytes(picture)
    logger.info("wrote %s", output)


def _read(model: Path) -> tuple[dict[str, Any], RopeScaling]:
    """The config.json and the rope that the model has now."""
    if (model / DESCRIPTION).is_file():
        description = Description.read(model)
        return description.hf_config, description.rope
    path = model if model.suffix == ".json" else model / "config.json"
    mend = "give --model a folder in Hugging Face format or its config.json"
    hf_config = read_json(path, "the model's configuration", mend)
    if not isinstance(hf_config, dict):
        raise UserError(f"{path}: the model's configuration is no JSON object; {mend}.")
    return hf_config, config_json.read(hf_config)


def _head_dim(hf_config: dict[str, Any], model: Path) -> int:
    """Channels of a head."""
    try:
        return config_json.head_dim(hf_config)
    except (KeyError, TypeError, ZeroDivisionError):
        raise UserError(
            f"{model}: neither head_dim nor hidden_size and num_attention_heads are given; is it a language model's "
            "config.json?"
        ) from None


if __name__ == "__main__":
    run(main)
