"""What a plan leaves in a folder: extend.toml, sft.toml and settings.sh, ready for examples/slurm/submit.sh."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.planning.job import JobPlan

_SETTINGS = """\
# What this plan needs to know of your files and your cluster. Each line is a default: set the variable in the
# environment for once, or edit it here for good. Written by tools/plan_run.py; examples/slurm/README.md explains it.
# shellcheck shell=bash disable=SC2034

# Files, on a disk that every node sees
: "${{MODEL:={model}}}" # the model in Hugging Face format
: "${{CORPUS:=data/corpus}}" # documents for continued pretraining
: "${{CHATS:=data/chats}}" # chats for instruction tuning
: "${{HELDOUT:=data/heldout.jsonl}}" # documents for evaluation, never trained on
: "${{RUN:={run}}}" # everything that the steps make

# Data
: "${{LENGTH:={length}}}" # tokens a sample in extend
: "${{SFT_LENGTH:={sft_length}}}" # tokens a sample in sft
: "${{TOTAL_TOKENS:={tokens}}}" # after resampling: steps x samples x tokens of extend.toml, so one epoch
: "${{SHARDS:=64}}" # tasks of the preprocessing array

# Nodes
: "${{NODES:={nodes}}}"
: "${{GPUS_PER_NODE:={gpus}}}"
: "${{CPUS_PER_TASK:=8}}"
: "${{TIME_LIMIT:={limit}}}" # of one training job; it is queued again until its stage is finished
: "${{WARN_SECONDS:={warn}}}" # before that limit, SLURM tells the job to save: more than a step and a save take

# Evaluation: each prompt lies over EVALUATE_TENSOR x EVALUATE_CONTEXT GPUs, as a sample of training
: "${{EVALUATE_LENGTHS:={lengths}}}" # tokens of RULER's prompts; needles go to LENGTH
: "${{EVALUATE_NODES:={evaluate_nodes}}}"
: "${{EVALUATE_TENSOR:={evaluate_tensor}}}"
: "${{EVALUATE_CONTEXT:={evaluate_context}}}"
"""


def toml(config: RunConfig, heading: str) -> str:
    """A configuration as TOML: what differs from the defaults, by section."""
    lines = [f"# {heading}"]
    for section in dataclasses.fields(config):
        value = getattr(config, section.name)
        entries = [
            f"{field.name} = {_toml_value(getattr(value, field.name))}"
            for field in dataclasses.fields(value)
            if field.default is dataclasses.MISSING or getattr(value, field.name) != field.default
        ]
        if entries:
            lines += ["", f"[{section.name}]", *entries]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(f"{{ index = {_toml_value(one.index)}, weight = {one.weight} }}" for one in value) + "]"
    if isinstance(value, Path | str):
        return json.dumps(str(value))
    return str(value).lower() if isinstance(value, bool) else repr(value)


def times(longest: float, hours: float) -> tuple[int, int]:
    """Hours of a job, and seconds before its end at which it is told to save: three of the longest steps, of hours one
    and a half and half an hour. A job has a day at most, unless that and one step more do not go into it.

    Args:
        longest: seconds of a step with a save, in any stage.
        hours: of the longest stage.
    """
    warn = math.ceil(max(300.0, min(3 * longest, 1.5 * longest + 1800)))
    return max(min(24, max(2, math.ceil(hours))), math.ceil((warn + longest) / 3600)), warn


def write(folder: Path, stages: dict[str, RunConfig], jobs: dict[str, JobPlan], domain: int, heading: str) -> None:
    """The files; `folder` is being made whole by the caller.

    Args:
        folder: where.
        stages: "extend" and "sft".
        jobs: of the same.
        domain: GPUs of one machine at most.
        heading: one line on the plan.
    """
    extend, sft, job = stages["extend"], stages["sft"], jobs["extend"]
    for name, config in stages.items():
        (folder / f"{name}.toml").write_text(toml(config, f"{name}: {heading}"), encoding="utf-8")
    gpus = min(job.ranks, 8 if domain % 8 == 0 else domain)
    longest = max(one.step_seconds + one.write_seconds for one in jobs.values())
    tensor, length = extend.parallel.tensor, extend.data.sequence_length
    whole = math.lcm(tensor, gpus)  # machines are asked for whole
    over = min(job.ranks, -(-tensor * extend.parallel.context // whole) * whole)
    hours, warn = times(longest, max(one.hours for one in jobs.values()))
    settings = _SETTINGS.format(
        model=extend.model.hf,
        run=extend.checkpoint.save.parent if extend.checkpoint.save else "runs/plan",
        length=length,
        lengths=" ".join(
            map(str, [*(4096 << doubled for doubled in range(max(0, (length - 1) // 4096).bit_length())), length])
        ),
        evaluate_nodes=over // gpus,
        evaluate_tensor=tensor,
        evaluate_context=over // tensor,
        sft_length=sft.data.sequence_length,
        tokens=job.tokens,
        nodes=job.ranks // gpus,
        gpus=gpus,
        limit=f"{hours:02}:00:00",
        warn=warn,
    )
    (folder / "settings.sh").write_text(settings, encoding="utf-8")
