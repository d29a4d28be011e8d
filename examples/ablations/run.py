"""The paper's claims at a scale that two cores carry: arms and seeds of arms.toml, trained and judged alike.

    python examples/ablations/run.py list                  what is planned, what it costs, what is done
    python examples/ablations/run.py run --hours 4         go on with it; twice, in two terminals, for two cores
    python examples/ablations/run.py table                 means, intervals and verdicts of the results there are
    python examples/ablations/run.py base --output build/ablations_base   a base that can do more, first
    python examples/ablations/run.py report --seed 1       one seed's arms side by side, by tools/evaluate.py compare

A run may be killed at any time: the same command goes on where it was. docs/ablations.md has design and results.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Literal

from _arms import QUICK, Run, read_experiment
from _base import base_stages
from _results import MEASURES, read_results, write_result
from _stages import Stage, stages
from _table import claims_table, core_hours, markdown
from _work import ROOT, OutOfTimeError, StageFailedError, Work, left

from megatron_ultralong.cli import run_commands
from megatron_ultralong.errors import UserError, listing
from megatron_ultralong.files import read_json, writable, write_json

logger = logging.getLogger("ablations")
ARMS, RESULTS, WORK = (
    Path(name) for name in ("examples/ablations/arms.toml", "examples/ablations/results", "build/ablations")
)


class _Plan:
    """What the flags that all commands share come to."""

    def __init__(
        self, plan: Path, work: Path, results: Path, quick: bool, arm: tuple[str, ...] = (),
        seed: tuple[int, ...] = (), scale: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.experiment = read_experiment(plan)
        self.work = work / QUICK if quick else work
        self.results = work / QUICK / "results" if quick and results == RESULTS else results
        _check_base(plan, self.experiment.base)
        self.runs = self.experiment.runs(quick, arm, seed, scale)
        if not self.runs:
            raise UserError("--arm, --seed and --scale leave nothing of the plan; run.py list shows it.")
        if unknown := [m for claim in self.experiment.claims for m in claim.measures if m not in MEASURES]:
            raise UserError(f"{plan}: {unknown[0]} is no measure; claims take {listing(MEASURES, 20)}.")

    def stages(self, run: Run) -> list[Stage]:
        return stages(self.experiment, run)

    def result(self, run: Run) -> Path:
        return self.results / f"{run.name}.json"

    def stands(self, run: Run) -> bool:
        """Whether a run's result is there, made by the stages that the plan has now."""
        path = self.result(run)
        if not path.exists():
            return False
        return list(read_json(path, "a run's result", "delete it")["stages"]) == [s.folder for s in self.stages(run)]


def _check_base(plan: Path, base: str) -> None:
    if not (Path(base) / "config.json").exists():
        raise UserError(
            f"{plan}: base is {base}, where there is no config.json; name a model's folder from the repository's root, "
            f"or make it: run.py base --output {base}."
        )


def show_plan(
    *, plan: Path = ARMS, work: Path = WORK, results: Path = RESULTS, quick: bool = False, arm: tuple[str, ...] = (),
    seed: tuple[int, ...] = (), scale: tuple[str, ...] = (), commands: bool = False,
) -> None:  # fmt: skip
    """Print the plan: runs in their order, what they are expected to take, and what is done.

    Args:
        plan: arms.toml.
        work: folder of all stages.
        results: folder of the results.
        quick: every stage of every arm in short form: shows that it runs, not that it works.
        arm: these arms alone.
        seed: these seeds alone.
        scale: these scales alone.
        commands: print every command of the runs too.
    """
    given = _Plan(plan, work, results, quick, arm, seed, scale)
    state = Work(given.work)
    blocks: dict[str, list[Run]] = {}
    for run in given.runs:
        blocks.setdefault(f"{run.scale} {run.arm}", []).append(run)
    print(f"{'scale and arm':24} {'seeds':>5} {'done':>5} {'core hours':>11} {'left':>6}")
    counted: set[Stage] = set()
    for name, runs in blocks.items():
        done = [run for run in runs if given.stands(run)]
        new = {stage for run in runs for stage in given.stages(run)} - counted
        todo = {stage for run in runs if run not in done for stage in given.stages(run)} - counted
        counted |= new
        whole, rest = sum(map(state.expected, new)) / 3600, left(state, list(todo))[1] / 3600
        print(f"{name:24} {len(runs):5} {len(done):5} {whole:11.2f} {rest:6.2f}")
    todo = {stage for run in given.runs if not given.stands(run) for stage in given.stages(run)}
    number, seconds = left(state, list(todo))
    whole = sum(map(state.expected, counted)) / 3600
    print(f"{len(given.runs)} runs, {whole:.1f} core hours in all, {whole / 2:.1f} hours of two cores.")
    print(f"{number} stages are left: {seconds / 3600:.1f} core hours, {seconds / 7200:.1f} hours of two cores.")
    for stage in dict.fromkeys(stage for run in given.runs if commands for stage in given.stages(run)):
        print(f"{stage.folder}\t{' '.join(stage.words)}")


def go_on(
    *, plan: Path = ARMS, work: Path = WORK, results: Path = RESULTS, quick: bool = False, arm: tuple[str, ...] = (),
    seed: tuple[int, ...] = (), scale: tuple[str, ...] = (), hours: float = 0.0,
) -> None:  # fmt: skip
    """Do what is left of the plan, in its order, on one core.

    Args:
        plan: arms.toml.
        work: folder of all stages.
        results: folder of the results.
        quick: every stage of every arm in short form: shows that it runs, not that it works.
        arm: these arms alone.
        seed: these seeds alone.
        scale: these scales alone.
        hours: stop before a stage that would end later than so many hours from now; 0: no limit.
    """
    given = _Plan(plan, work, results, quick, arm, seed, scale)
    for flag, folder in (("--work", given.work), ("--results", given.results)):
        if not writable(folder):
            raise UserError(f"{flag} is {folder}, where nothing can be written; name another folder.")
    state, failed = Work(given.work, hours), list[str]()
    for run in given.runs:
        if given.stands(run):
            continue
        try:
            with state.locked(run.name, wait=False):
                listed = given.stages(run)
                number, seconds = left(state, listed)
                logger.info("%s: %d stages to do, about %.0f min", run.name, number, seconds / 60)
                records = [state.ensure(stage) for stage in listed]
                measures = write_result(given.result(run), given.experiment, run, state.folder, listed, records)
                logger.info("%s: %s", run.name, ", ".join(f"{name} {value:g}" for name, value in measures.items()))
        except BlockingIOError:
            logger.info("%s is being done by another process", run.name)
        except OutOfTimeError as error:
            logger.info("stopped before %s of %s, which would pass --hours; the same command goes on", error, run.name)
            break
        except StageFailedError as error:
            logger.error("%s: %s", run.name, error)
            failed.append(run.name)
    if failed:
        raise UserError(
            f"{len(failed)} runs failed: {listing(failed)}; mend what is said above and give the command again."
        )


def show_table(
    *, plan: Path = ARMS, results: Path = RESULTS, form: Literal["markdown", "json"] = "markdown",
) -> None:  # fmt: skip
    """Print means, 95 % intervals by Student's t over seeds, and the verdict on each claim.

    Args:
        plan: arms.toml.
        results: folder of the results.
        form: markdown, as docs/ablations.md has it, or JSON.
    """
    experiment, found = read_experiment(plan), read_results(results)
    if form == "markdown":
        print(markdown(experiment, found))
        return
    write_json(Path("/dev/stdout"), {"claims": claims_table(experiment, found), "core_hours": core_hours(found)})


def report(
    *, plan: Path = ARMS, work: Path = WORK, results: Path = RESULTS, quick: bool = False, arm: tuple[str, ...] = (),
    seed: int = 1, scale: str = "x16", output: Path | None = None,
) -> None:  # fmt: skip
    """Put the arms of one scale and seed side by side by tools/evaluate.py compare, with the table of all seeds.

    Args:
        plan: arms.toml.
        work: folder of all stages.
        results: folder of the results.
        quick: of the runs in short form.
        arm: these arms alone.
        seed: whose runs are shown.
        scale: whose runs are shown.
        output: folder for the report; by default report_SCALE_SEED in the folder of all stages.
    """
    given = _Plan(plan, work, results, quick, arm, (seed,), (QUICK if quick else scale,))
    state = Work(given.work)
    runs = [run for run in given.runs if given.stands(run)]
    words, metrics = list[str](), list[str]()
    for run in runs:
        for stage in given.stages(run):
            folder = state.folder / stage.folder / "run"
            if stage.name in ("answers", "perplexity") and folder.is_dir():
                words.append(f"{run.arm}={folder}")
            if stage.name == "train" and folder.is_dir():
                metrics.append(f"{run.arm} {stage.folder[-4:]}={folder / 'metrics.jsonl'}")
    if not words:
        raise UserError(f"{given.work} has no run of that scale and seed; run.py run --scale {scale} --seed {seed}.")
    folder = output or state.folder / f"report_{scale}_{seed}"
    found = read_results(given.results)
    extra = folder.with_suffix(".json")
    write_json(extra, {"claims": claims_table(given.experiment, found), "core_hours": core_hours(found)})
    command = [sys.executable, "tools/evaluate.py", "compare", *words, "--extra", str(extra), "--output", str(folder)]
    os.chdir(ROOT)
    os.execv(sys.executable, [*command, *(["--metrics", *metrics] if metrics else [])])


def train_base(
    *, output: Path, plan: Path = ARMS, work: Path = WORK, base: str = "examples/tiny_cpu/base", steps: int = 6000,
    seed: int = 1234, hours: float = 0.0,
) -> None:  # fmt: skip
    """Train the shipped base further on several keys, several values and chains of variables, within its context.

    Args:
        output: folder of the model; name it as `base` in arms.toml.
        plan: arms.toml, for the context.
        work: folder of all stages.
        base: the model that is trained further.
        steps: of 16 samples.
        seed: of data and order.
        hours: stop before a stage that would end later than so many hours from now; 0: no limit.
    """
    if steps < 1:
        raise UserError(f"--steps is {steps}; give at least 1.")
    if not writable(output):
        raise UserError(f"--output is {output}, where nothing can be written; name another folder.")
    state = Work(work, hours)
    listed = base_stages(read_experiment(plan), base, steps, seed, output)
    number, seconds = left(state, listed)
    logger.info("%d stages to do, about %.1f core hours", number, seconds / 3600)
    try:
        for stage in listed:
            state.ensure(stage)
    except OutOfTimeError as error:
        logger.info("stopped before %s, which would pass --hours; the same command goes on", error)
    except StageFailedError as error:
        raise UserError(f"{error}") from None


if __name__ == "__main__":
    run_commands({"list": show_plan, "run": go_on, "table": show_table, "report": report, "base": train_base})
