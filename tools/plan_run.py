"""Plan a run before paying for it: which layouts fit a cluster, how long a step takes, what the job costs.

    python tools/plan_run.py --model models/Llama-3.1-8B/config.json --length 4194304 --gpus 256 --hardware H100
    python tools/plan_run.py --model ... --gpus 64 --longest          # the longest sequence
    python tools/plan_run.py --model ... --length 1048576 --fewest    # the fewest GPUs
    python tools/plan_run.py --config examples/llama3.1_8b_4m/extend.toml --model ... --gpus 256   # that layout alone

Arithmetic from data sheets or tools/calibrate.py's measurements (docs/planning.md); no GPU, no torch, seconds.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]  # this checkout, installed or not

import _plan_folder  # noqa: E402
import _plan_tables  # noqa: E402
from _plan_question import Assumptions, Question, asked  # noqa: E402

from megatron_ultralong.cli import run  # noqa: E402
from megatron_ultralong.config.reading import load_config  # noqa: E402
from megatron_ultralong.config.sections import RunConfig  # noqa: E402
from megatron_ultralong.errors import UserError  # noqa: E402
from megatron_ultralong.files import atomic_directory, disk_errors_named, refuse_others, writable, write_json  # noqa: E402
from megatron_ultralong.planning.job import JobPlan, Reliability  # noqa: E402
from megatron_ultralong.planning.search.layouts import problem  # noqa: E402
from megatron_ultralong.planning.search.ranking import (  # noqa: E402
    Plan,
    fewest,
    longest,
    planned,
    rank,
    room,
)
from megatron_ultralong.planning.step_time import forward_seconds  # noqa: E402


def main(
    assumptions: Assumptions,
    reliability: Reliability,
    *,
    model: Path | None = None,
    length: int | None = None,
    gpus: int | None = None,
    config: Path | None = None,
    longest: bool = False,
    fewest: bool = False,
    top: int = 10,
    output: Path | None = None,
    json: Path | None = None,
    rehearse: bool = False,
) -> None:
    """Say which layouts fit, how long a step takes and what the job costs.

    Args:
        model: config.json of a Hugging Face model, or its folder; default: model.hf of --config. A file of another name
            is read, and the run that --output writes expects its model in models/NAME.
        length: tokens a sample; default: data.sequence_length of --config.
        gpus: how many.
        config: a run.toml, whose own layout is planned instead of searched for.
        longest: find the longest sequence that the GPUs hold.
        fewest: find the fewest GPUs that hold the length.
        top: layouts to show.
        output: folder for extend.toml, sft.toml, settings.sh (for examples/slurm/submit.sh), plan.json and memory.png
            of the fastest layout.
        json: file for the plans that are shown, as JSON.
        rehearse: with --output, take a step of the fastest layout's ranks on this machine (tools/rehearse.py).
    """
    given = load_config(config) if config else None
    question = asked(model, given, assumptions, reliability)
    if length is None and given is not None:
        length = given.data.sequence_length
    _check_numbers({"--length": length, "--gpus": gpus, "--batch": assumptions.batch, "--top": top}, longest and fewest)
    own = given is not None and not longest and not fewest
    _check_files(output, json, rehearse, own)
    if longest:
        length, top = _say_longest(question, _needed("--gpus", gpus)), min(top, 3)
    elif fewest:
        gpus, top = _say_fewest(question, _needed("--length", length)), min(top, 3)
    if given is not None and own:
        _say_own(question, given, _needed("--gpus", gpus), json)
        return
    length, gpus = _needed("--length", length), _needed("--gpus", gpus)
    _search(question, length, gpus, top, output, json)
    if rehearse and output is not None:
        _rehearse(output, question, gpus)


_WRITTEN = ("extend.toml", "sft.toml", "settings.sh", "plan.json", "memory.png", "rehearsal.html", "rehearsal.json")


def _check_numbers(given: dict[str, int | None], both: bool) -> None:
    if both:
        raise UserError("--longest and --fewest are given; the one has --gpus and the other --length, so ask in turn.")
    for name, value in given.items():
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; give 1 or more.")


def _check_files(output: Path | None, json: Path | None, rehearse: bool, own: bool) -> None:
    """Whether what is to be written can be, before anything is computed."""
    if rehearse and output is None:
        raise UserError("--rehearse is given without --output, whose configuration it takes a step of; name a folder.")
    if own and output is not None:
        raise UserError(
            "--output is given with --config, whose layout is there already; remove one (tools/rehearse.py --config "
            "takes a step of it)."
        )
    if output is not None:
        refuse_others(output, _WRITTEN)
    for name, path in (("--output", output), ("--json", json)):
        if path is not None and not writable(path.parent):
            raise UserError(f"{name} is {path}; give a place in a folder that can be written.")
    if json is not None and json.is_dir():
        raise UserError(f"--json is {json}, a folder; name a file.")


def _needed(name: str, value: int | None) -> int:
    if value is None:
        raise UserError(f"{name} is missing; give a whole number.")
    return value


def _longest(question: Question, gpus: int) -> int | None:
    return longest(question.base, question.hf_config, gpus, question.profile, margin=question.assumed.margin)


def _say_longest(question: Question, gpus: int) -> int:
    found = _longest(question, gpus)
    if found is None:
        raise UserError(
            f"--gpus {gpus} of {question.profile.name} hold not even 131,072 tokens of this model, whatever is "
            "recomputed or offloaded; give more GPUs, or larger ones (--hardware)."
        )
    print(f"{gpus} {question.profile.name}: {found:,} tokens a sample at most, in multiples of 131,072")
    return found


def _say_fewest(question: Question, length: int) -> int:
    found = fewest(question.base(length), question.hf_config, question.profile, margin=question.assumed.margin)
    if found is None:
        raise UserError(
            f"--length {length:,} does not fit 16,384 {question.profile.name}; give a shorter one, or --hardware "
            "with more memory."
        )
    print(f"{length:,} tokens: {found} {question.profile.name} at least")
    return found


def _say_own(question: Question, given: RunConfig, gpus: int, json: Path | None) -> None:
    why = problem(given, question.hf_config, gpus)
    if why is not None:
        raise UserError(why)
    if len(set(given.data.masks)) > 1 and question.assumed.document is None:
        print("Some sources isolate documents: --document says how long; without it they count as whole samples.")
    if given.validation.sources:
        print("The job's hours are of its steps, without their validations.")
    plan = planned(given, question.hf_config, gpus, question.profile, question.assumed.document)
    job = question.job(plan)
    _plan_tables.show([_plan_tables.parts_table(plan, question.profile), _plan_tables.job_table({"run": job}, None)])
    most = room(question.profile, question.assumed.margin)
    if plan.memory.needed > most:
        print(f"It does not fit: {plan.memory.needed / 1e9:,.1f} GB, of which a plan may fill {most / 1e9:,.1f}.")
    if json:
        with disk_errors_named(json):
            write_json(json, {"plans": [_plan_tables.as_json(plan)], "job": {"run": _plan_tables.job_json(job)}})


def _search(question: Question, length: int, gpus: int, top: int, output: Path | None, json: Path | None) -> None:
    profile, hf_config = question.profile, question.hf_config
    ranking = rank(
        question.base(length),
        hf_config,
        gpus,
        profile,
        margin=question.assumed.margin,
        document=question.assumed.document,
    )
    if not ranking.plans:
        _plan_tables.show([_plan_tables.reasons_table(ranking, room(profile, question.assumed.margin))])
        raise UserError(_nothing_fits(question, length, gpus))
    best = ranking.plans[0]
    jobs = {"extend": question.job(best)}
    tuned = rank(question.tuning(length), hf_config, gpus, profile, margin=question.assumed.margin)
    if tuned.plans:
        jobs["sft"] = question.job(tuned.plans[0])
    most = room(profile, question.assumed.margin)
    tables = [_plan_tables.ranking_table(ranking.plans, top), _plan_tables.reasons_table(ranking, most)]
    tables += [
        _plan_tables.parts_table(best, profile),
        _plan_tables.job_table(jobs, _evaluation(question, best, length)),
    ]
    _plan_tables.show(tables)
    found = {
        "plans": [_plan_tables.as_json(plan) for plan in ranking.plans[:top]],
        "job": {name: _plan_tables.job_json(job) for name, job in jobs.items()},
        "hardware": profile.name,
        "considered": ranking.considered,
    }
    if json:
        with disk_errors_named(json):
            write_json(json, found)
    if output:
        if not tuned.plans:
            raise UserError(f"--output {output}: no layout of {gpus} GPUs takes the second stage of 128 samples.")
        _write(output, ranking.plans[:top], tuned.plans[0], jobs, question, found)


def _evaluation(question: Question, plan: Plan, length: int) -> float:
    """Seconds of the paper's passkey grid on the layout that trained: 10 depths of 40 lengths up to the target."""
    lengths = [max(1.0, length * place / 39) for place in range(40)]
    replicas = plan.world_size // (
        plan.config.parallel.tensor * plan.config.parallel.context * plan.config.parallel.pipeline
    )
    once = [forward_seconds(plan.config, question.hf_config, plan.world_size, question.profile, n) for n in lengths]
    return 10 * sum(once) / replicas


def _nothing_fits(question: Question, length: int, gpus: int) -> str:
    """The sentence for it, with the nearest length that fits."""
    found = _longest(question, gpus)
    mend = f"the longest that fits is {found:,}" if found and found < length else "no length fits"
    return (
        f"--length {length:,} fits no layout of {gpus} {question.profile.name} (reasons above); {mend}; give another "
        "length, --gpus, --batch or --hardware."
    )


def _write(
    output: Path, plans: list[Plan], tuned: Plan, jobs: dict[str, JobPlan], question: Question, found: dict[str, Any]
) -> None:
    """The folder for submit.sh."""
    best = plans[0]
    stages = {"extend": _with_interval(best.config, jobs["extend"]), "sft": _with_interval(tuned.config, jobs["sft"])}
    heading = f"{best.world_size} {question.profile.name}, {best.time.total:,.1f} s a step by tools/plan_run.py"
    with disk_errors_named(output), atomic_directory(output) as folder:
        _plan_folder.write(folder, stages, jobs, question.profile.domain or 1, heading)
        write_json(folder / "plan.json", found)
        _plan_tables.chart(plans, question.profile, folder / "memory.png")
        for name in ("extend", "sft"):
            load_config(folder / f"{name}.toml")
    print(f"written: {output}; submit it with examples/slurm/submit.sh {output} all")


def _rehearse(output: Path, question: Question, gpus: int) -> None:
    """The real step of the layout that was written, for ranks that differ; its page goes into the folder."""
    tool = Path(__file__).parent / "rehearse.py"
    words: list[object] = ["--config", output / "extend.toml", "--world-size", gpus, "--model", question.path]
    words += ["--html", output / "rehearsal.html", "--json", output / "rehearsal.json"]
    done = subprocess.run([sys.executable, str(tool), *map(str, words)], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def _with_interval(config: RunConfig, job: JobPlan) -> RunConfig:
    """A checkpoint as often as loses least."""
    return dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, interval=job.interval))


if __name__ == "__main__":
    run(main)
