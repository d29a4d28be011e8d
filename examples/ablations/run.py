"""The paper's claims at a scale that two cores carry: arms and seeds of arms.toml, trained and judged alike.

    python examples/ablations/run.py list                  what is planned, what it costs, what is done
    python examples/ablations/run.py run --hours 4         go on with it; twice, in two terminals, for two cores
    python examples/ablations/run.py table                 means, intervals and verdicts of the results there are
    python examples/ablations/run.py pictures              a picture a claim, and the heatmap of needles
    python examples/ablations/run.py base --base MODEL --output FOLDER    what made base/
    python examples/ablations/run.py report --scale x32 --seed 1     arms side by side, by tools/evaluate.py compare

A run may be killed at any time: the same command goes on where it was. docs/ablations.md has design and results.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from _arms import QUICK, Experiment, Run, read_experiment, refuse_no_model
from _base import base_stages
from _pictures import draw_pictures
from _results import MEASURES, Rows, read_result, read_results, write_result
from _stages import Stage, stages
from _table import claims_table, core_hours, markdown
from _work import ROOT, OutOfTimeError, StageFailedError, Work, left

from megatron_ultralong.cli import run_commands
from megatron_ultralong.errors import UserError, listing
from megatron_ultralong.files import disk_errors_named, writable, write_json

logger = logging.getLogger("ablations")
HERE = Path("examples/ablations")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """Which runs, and where they are kept."""

    plan: Path = HERE / "arms.toml"
    """arms.toml."""
    work: Path = Path("build/ablations")
    """Folder of all stages."""
    results: Path = HERE / "results"
    """Folder of the results, a file a run."""
    quick: bool = False
    """Every stage of every arm once, in short form, in a folder of its own: shows that it runs, not that it works."""
    arm: tuple[str, ...] = ()
    """These arms alone."""
    seed: tuple[int, ...] = ()
    """These seeds alone."""
    scale: tuple[str, ...] = ()
    """These scales alone."""

    @functools.cached_property
    def experiment(self) -> Experiment:
        """What arms.toml says, with bases that are there."""
        found = read_experiment(self.plan)
        for name, scale in found.scales.items():
            refuse_no_model(scale.base, f"{self.plan}: scales.{name}: base")
        if unknown := [m for claim in found.claims for m in claim.measures if m not in MEASURES]:
            raise UserError(f"{self.plan}: {unknown[0]} is no measure; claims take {listing(MEASURES, 20)}.")
        return found

    @functools.cached_property
    def runs(self) -> list[Run]:
        """In the plan's order."""
        return self.experiment.runs(self.quick, self.arm, self.seed, self.scale)

    @property
    def work_folder(self) -> Path:
        """Of all stages."""
        return self.work / QUICK if self.quick else self.work

    @property
    def results_folder(self) -> Path:
        """Of the results; of the short form, beside its stages unless another is named."""
        own = self.results != Chosen.results
        return self.results if own or not self.quick else self.work_folder / "results"

    def stages(self, run: Run) -> list[Stage]:
        """What a run takes."""
        return stages(self.experiment, run)

    def result(self, run: Run) -> Path:
        """A run's file of results."""
        return self.results_folder / f"{run.name}.json"

    def stands(self, run: Run) -> bool:
        """Whether a run's result is there, made by the stages that the plan has now."""
        path = self.result(run)
        if not path.exists():
            return False
        return list(read_result(path)["stages"]) == [s.folder for s in self.stages(run)]

    @property
    def found(self) -> Rows:
        """Results of the runs that were chosen."""
        if not self.results_folder.is_dir():
            raise UserError(f"--results is {self.results_folder}, where there is no folder; run.py run makes it.")
        found = read_results(self.results_folder)
        chosen = [one for one in found if Run(one["scale"], one["arm"], one["seed"]) in self.runs]
        if len(chosen) < len(found):
            logger.warning("%d of %d results are of other runs than were chosen", len(found) - len(chosen), len(found))
        return chosen


def show_plan(chosen: Chosen, *, commands: bool = False) -> None:
    """Print the plan: runs in their order, what they are expected to take, and what is done.

    What runs share is counted once, in the first row that needs it; of what is left, in the first that still does.

    Args:
        chosen: which runs.
        commands: print every command of the runs too.
    """
    state = Work(chosen.work_folder)
    blocks: dict[str, list[Run]] = {}
    for run in chosen.runs:
        blocks.setdefault(f"{run.scale} {run.arm}", []).append(run)
    print(f"{'scale and arm':24} {'seeds':>5} {'done':>5} {'core hours':>11} {'left':>6}")
    counted, waiting = set[Stage](), set[Stage]()
    for name, runs in blocks.items():
        todo = [run for run in runs if not chosen.stands(run)]
        new = {stage for run in runs for stage in chosen.stages(run)} - counted
        more = {stage for run in todo for stage in chosen.stages(run)} - waiting
        counted, waiting = counted | new, waiting | more
        whole, rest = sum(map(state.expected, new)) / 3600, left(state, more)[1] / 3600
        print(f"{name:24} {len(runs):5} {len(runs) - len(todo):5} {whole:11.2f} {rest:6.2f}")
    whole, (number, seconds) = sum(map(state.expected, counted)) / 3600, left(state, waiting)
    print(f"{len(chosen.runs)} runs, {whole:.1f} core hours in all, {whole / 2:.1f} hours of two cores.")
    print(f"{number} stages are left: {seconds / 3600:.1f} core hours, {seconds / 7200:.1f} hours of two cores.")
    for stage in dict.fromkeys(stage for run in chosen.runs if commands for stage in chosen.stages(run)):
        print(f"{stage.folder}\t{' '.join(stage.words)}")


def go_on(chosen: Chosen, *, hours: float = 0.0) -> None:
    """Do what is left of the plan, in its order, on one core.

    Args:
        chosen: which runs.
        hours: stop before a stage that would end later than so many hours from now; 0: no limit.
    """
    _refuse_unwritable({"--work": chosen.work_folder, "--results": chosen.results_folder}, hours)
    state, failed = Work(chosen.work_folder, hours), list[str]()
    for run in chosen.runs:
        if chosen.stands(run):
            continue
        try:
            with state.locked(run.name, wait=False), disk_errors_named(chosen.work_folder):
                listed = chosen.stages(run)
                number, seconds = left(state, listed)
                logger.info("%s: %d stages to do, about %.0f min", run.name, number, seconds / 60)
                records = [state.ensure(stage) for stage in listed]
                measures = write_result(chosen.result(run), chosen.experiment, run, state.folder, listed, records)
                logger.info("%s: %s", run.name, ", ".join(f"{name} {value:g}" for name, value in measures.items()))
        except BlockingIOError:
            logger.info("%s is being done by another process", run.name)
        except OutOfTimeError as error:
            logger.info("stopped before %s of %s, which would pass --hours; the same command goes on", error, run.name)
            break
        except StageFailedError as error:
            logger.error("%s: %s", run.name, error)
            failed.append(run.name)
    logger.info("%d of %d runs stand; run.py table shows them", sum(map(chosen.stands, chosen.runs)), len(chosen.runs))
    if failed:
        raise UserError(f"{listing(failed)}: failed; mend what is said above and give the command again.")


def _refuse_unwritable(folders: Mapping[str, Path], hours: float = 0.0) -> None:
    """What a command that writes checks first."""
    if not 0 <= hours < float("inf"):
        raise UserError(f"--hours is {hours:g}; give 0 or more.")
    for flag, folder in folders.items():
        if not writable(folder):
            raise UserError(f"{flag} is {folder}, where nothing can be written; name another folder.")


def show_table(chosen: Chosen, *, form: Literal["markdown", "json"] = "markdown") -> None:
    """Print means, 95 % intervals by Student's t over seeds, and the verdict on each claim.

    Args:
        chosen: which runs' results.
        form: markdown, as docs/ablations.md has it, or JSON.
    """
    experiment, found = chosen.experiment, chosen.found
    print(markdown(experiment, found) if form == "markdown" else json.dumps(_said(experiment, found), indent=2))


def pictures(chosen: Chosen, *, output: Path = Path("docs")) -> None:
    """Draw heatmap.png and, for each claim of one arm against another, ablations_LETTER.png.

    Args:
        chosen: which runs' results.
        output: folder of the pictures.
    """
    _refuse_unwritable({"--output": output})
    for path in draw_pictures(chosen.experiment, chosen.found, output):
        print(path)


def _said(experiment: Experiment, found: list[dict[str, Any]]) -> dict[str, Any]:
    """What the table says, as data."""
    return {"claims": claims_table(experiment, found), "core_hours": round(core_hours(found), 3)}


def report(chosen: Chosen, *, output: Path | None = None) -> None:
    """Put finished runs side by side by tools/evaluate.py compare, with the table of all seeds.

    Args:
        chosen: of one scale and seed: --scale x32 --seed 1.
        output: folder for the report; by default report_SCALE_SEED in the folder of all stages.
    """
    state, order = Work(chosen.work_folder), list(chosen.experiment.arms)  # the base first: the others' reference
    runs = sorted(filter(chosen.stands, chosen.runs), key=lambda run: order.index(run.arm))
    if len(kinds := {(run.scale, run.seed) for run in runs}) != 1:
        raise UserError(
            f"--scale and --seed leave finished runs of {len(kinds)} kinds; name one: --scale x32 --seed 1."
        )
    words, metrics = list[str](), list[str]()
    for run in runs:
        for stage in chosen.stages(run):
            folder = state.folder / stage.folder / "run"
            if not folder.is_dir() and stage.name in ("answers", "perplexity"):
                raise UserError(
                    f"{folder} is gone, and the result of {run.name} alone is left; delete {chosen.result(run)}, and "
                    f"run.py run --scale {run.scale} --arm {run.arm} --seed {run.seed} makes both again."
                )
            if stage.name in ("answers", "perplexity"):
                words.append(f"{run.arm}={folder}")
            if stage.name == "train" and folder.is_dir():
                metrics.append(f"{run.arm} {stage.folder[-4:]}={folder / 'metrics.jsonl'}")
    folder = output or state.folder / f"report_{runs[0].scale}_{runs[0].seed}"
    extra = folder.with_suffix(".json")
    write_json(extra, _said(chosen.experiment, read_results(chosen.results_folder)))  # of all seeds
    command = [sys.executable, "tools/evaluate.py", "compare", *words, "--extra", str(extra), "--output", str(folder)]
    os.chdir(ROOT)
    os.execv(sys.executable, [*command, *(["--metrics", *metrics] if metrics else [])])


def train_base(
    *,
    base: str,
    output: Path,
    plan: Path = Chosen.plan,
    work: Path = Chosen.work,
    steps: int = 6000,
    seed: int = 1234,
    hours: float = 0.0,
) -> None:
    """Train a base further on several keys, several values and chains of variables, within its context.

    Args:
        base: the model that is trained further.
        output: folder of the new one.
        plan: arms.toml, for the context.
        work: folder of all stages.
        steps: of 16 samples.
        seed: of data and order.
        hours: stop before a stage that would end later than so many hours from now; 0: no limit.
    """
    if steps < 1:
        raise UserError(f"--steps is {steps}; give at least 1.")
    refuse_no_model(base, "--base")
    _refuse_unwritable({"--work": work, "--output": output}, hours)
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
    run_commands(
        {
            "list": show_plan,
            "run": go_on,
            "table": show_table,
            "pictures": pictures,
            "report": report,
            "base": train_base,
        }
    )
