"""Gather the quickstart's numbers in one file: what README quotes, from the two runs and compare.json.

    python examples/tiny_cpu/results.py build/quickstart

Scores are 0 to 1. `passkey` has a row a cell of the grid of needles, `passkey_at_target` their mean at the longest
length, `short_task` the share of single keys recalled within the base's context, `ruler` the scores by task and length.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from megatron_ultralong.cli import run
from megatron_ultralong.evaluation.run_folder import read_run
from megatron_ultralong.files import read_json, write_json

SHORT_TASK = "recall"


def share(score: float) -> float:
    """0 to 1, of a score from 0 to 100."""
    return round(score / 100, 4)


def of_model(name: str, compared: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One model's numbers."""
    header, results = read_run(folder).header, read_run(folder).results
    grid, families = compared["needles"]["needles"][name], compared["families"]
    target = max(row["length"] for row in grid)
    at_target = [row["score"] for row in grid if row["length"] == target]
    (short,) = families["recall"]["models"][name]["tasks"][SHORT_TASK].values()
    ruler = families["ruler"]["models"][name]["tasks"] if "ruler" in families else {}
    return {
        "folder": header["model"],
        "context_length": header["context_length"],
        "passkey": [row | {"score": share(row["score"])} for row in grid],
        "passkey_at_target": share(sum(at_target) / len(at_target)),
        "short_task": share(short["score"]),
        "short_task_questions": short["samples"],
        "ruler": {task: {n: share(cell["score"]) for n, cell in cells.items()} for task, cells in ruler.items()},
        "seconds": results["seconds"],
    }


def main(output: Path, /) -> None:
    """Write results.json.

    Args:
        output: the quickstart's folder, with compare.json, the runs base/ and extended/ and the model in extended/.
    """
    compared = read_json(output / "compare.json", "what compare wrote", "run examples/tiny_cpu/run.sh")
    models = {name: of_model(name, compared, Path(found["runs"][0])) for name, found in compared["models"].items()}
    target = max(row["length"] for row in compared["needles"]["needles"]["extended"])
    perplexity = compared["perplexity"]["perplexity/by_position"]
    config = json.loads((output / "extended" / "config.json").read_text(encoding="utf-8"))
    write_json(
        output / "results.json",
        models
        | {
            "target_length": target,
            "perplexity": {name: [row for row in rows if row["length"] == target] for name, rows in perplexity.items()},
            "rope_scaling": config.get("rope_scaling") or config.get("rope_parameters"),
            "settings": read_run(output / "runs" / "extended").header["settings"],
        }
        | compared["extra"],
    )


if __name__ == "__main__":
    sys.exit(run(main))
