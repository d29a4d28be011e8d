"""What the seeds say: mean and 95 % interval of each measure, and of each claim the verdict and what more would cost.

Arms are compared within a seed (same documents, chats, needles), and the interval is of the mean of those differences.
It is Student's t, not the bootstrap that reports use over the samples of one run: with five values the bootstrap's
percentiles leave out the uncertainty of the spread and cover 95 % in name alone (sqrt(4/5) of the spread, and 2.0
instead of 2.8 of its errors), while t is exact where differences are normal, which means over many prompts nearly are.
What varies is what seeds vary; one base model is behind all of it, so nothing is said of other bases.
"""

from __future__ import annotations

import dataclasses
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from _arms import REFERENCE, Claim, Experiment
from _results import MEASURES, lower_is_better, mean_grid, of_arm

SHOWN = ("needles", "needles_worst_length", "long", "ruler", "ruler_past", "short", "short_ruler", "loss_short",
         "loss_long", "loss_past")  # fmt: skip
MOST_SEEDS = 100
AGREES, DISAGREES, OPEN = "agrees", "disagrees", "cannot tell"
_OWN = ("train", "tune", "export", "answers", "perplexity")  # stages that one more seed would take
# fmt: off
_T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
         2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)
# fmt: on
_Z975 = 1.959964  # of the normal distribution
NO_RESULTS = "No results yet: `python examples/ablations/run.py run` makes them."


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over seeds and its 95 % interval; of one seed without bounds."""

    mean: float
    half: float
    seeds: int

    @property
    def low(self) -> float:
        """The lower bound."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """The upper bound."""
        return self.mean + self.half


def t_quantile(freedom: int) -> float:
    """The 97.5th percentile of Student's t; beyond 30 degrees of freedom the first terms of its expansion."""
    if freedom <= len(_T975):
        return _T975[freedom - 1]
    z = _Z975
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def interval(values: Sequence[float]) -> Interval:
    """Mean of seeds with Student's t around it."""
    n = len(values)
    half = t_quantile(n - 1) * statistics.stdev(values) / math.sqrt(n) if n > 1 else math.inf
    return Interval(statistics.fmean(values), half, n)


def seeds_to_tell(values: Sequence[float], above: float) -> int | None:
    """Seeds at which an interval of this mean and spread would leave out `above`; None: more than MOST_SEEDS."""
    distance, spread = abs(statistics.fmean(values) - above), statistics.stdev(values)
    for n in range(2, MOST_SEEDS + 1):
        if t_quantile(n - 1) * spread / math.sqrt(n) < distance:
            return n
    return None


def verdict(claim: Claim, scale: str, measure: str, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the seeds that are there say of one measure of a claim."""
    values = leads(results, scale, claim.arm, claim.against, measure)
    row: dict[str, Any] = {"claim": claim.name, "scale": scale, "measure": measure, "above": claim.above}
    row |= {"pooled": claim.pooled, "seeds": len(values), "verdict": OPEN, "values": values}
    if claim.pooled and values:
        worst = worst_length(results, scale, claim.arm)
        said, needles = AGREES if worst["score"] >= claim.above else DISAGREES, worst["needles"]
        low, high = wilson(worst["score"], needles)
        row |= {"mean": worst["score"], "low": low, "high": high, "verdict": f"{said}, as found"}
        return row | {"more": f"at {worst['length']:,} tokens, {needles} needles of all seeds"}
    if len(values) < 2:
        return row | {"more": "at least two seeds are needed"}
    found = interval(values)
    if found.low > claim.above:
        said = AGREES
    else:
        said = DISAGREES if found.high < claim.above else OPEN
    row |= {"mean": found.mean, "low": found.low, "high": found.high, "verdict": said, "more": ""}
    if said == OPEN:
        needed = seeds_to_tell(values, claim.above) if len(set(values)) > 1 else None
        cost = sum(_seed_hours(results, scale, name) for name in filter(None, (claim.arm, claim.against)))
        row["more"] = (
            f"{needed} seeds in all if mean and spread stay, {(needed - len(values)) * cost:.1f} core hours more"
            if needed is not None and needed > len(values) else "no number of seeds under 100 would"
        )  # fmt: skip
    return row


def worst_length(results: Sequence[Mapping[str, Any]], scale: str, arm: str) -> dict[str, Any]:
    """{length, score, needles}: of the lengths of an arm's grid, the worst in all seeds' needles together."""
    columns: dict[int, list[float]] = {}
    own = of_arm(results, scale, arm)
    for row in mean_grid([result["needles"] for result in own]):
        columns.setdefault(row["length"], []).append(row["score"])
    score, length = min((statistics.fmean(scores), length) for length, scores in columns.items())
    return {"length": length, "score": score, "needles": sum(one["scores"][f"needles {length}"][1] for one in own)}


def wilson(score: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of `n` in percent, by Wilson's score."""
    z, p = _Z975, score / 100
    middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return tuple(100 * (middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1))  # type: ignore[return-value]


def leads(results: Sequence[Mapping[str, Any]], scale: str, arm: str, against: str, measure: str) -> list[float]:
    """How much better `arm` is than `against`, seed by seed; without an `against`, how good."""
    sign = -1.0 if lower_is_better(measure) else 1.0
    if not against:
        return [sign * value for _, value in sorted(_measured(results, scale, arm, measure).items())]
    own, other = (_measured(results, scale, name, measure) for name in (arm, against))
    return [sign * (own[seed] - other[seed]) for seed in sorted(own.keys() & other.keys())]


def claims_table(experiment: Experiment, results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a claim, scale and measure."""
    return [
        verdict(claim, scale, measure, results)
        for claim in experiment.claims for scale in claim.scales for measure in claim.measures
    ]  # fmt: skip


def arms_table(experiment: Experiment, results: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, Interval]]]:
    """Scale -> arm -> measure -> its interval, in the order of arms.toml."""
    found: dict[str, dict[str, dict[str, Interval]]] = {}
    for scale in experiment.scales:
        for arm in experiment.arms:
            measured = {name: list(_measured(results, scale, arm, name).values()) for name in MEASURES}
            shown = {name: interval(values) for name, values in measured.items() if values}
            if shown:
                found.setdefault(scale, {})[arm] = shown
    return found


def core_hours(results: Iterable[dict[str, Any]]) -> float:
    """Processor time of all stages behind the results, each counted once."""
    stages = {folder: stage["cpu_seconds"] for result in results for folder, stage in result["stages"].items()}
    return sum(stages.values()) / 3600


def markdown(experiment: Experiment, results: Sequence[dict[str, Any]]) -> str:
    """The results as docs/ablations.md has them."""
    if not results:
        return NO_RESULTS
    commits = sorted({re.sub(r"(\w{10})\w+", r"\1", str(result["git_commit"])) for result in results})
    words = [f"{len(results)} runs, {core_hours(results):.1f} core hours, commit {', '.join(commits)}."]
    words += ["", "| claim | scale | measure | mean | 95 % interval | seeds | verdict | to know more |",
              "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in claims_table(experiment, results):
        if not row["seeds"]:
            continue
        mean = f"{row['mean']:.3f}" if "mean" in row else "-"
        bounds = f"{mean} | {row['low']:.3f} to {row['high']:.3f}" if "low" in row else f"{mean} | -"
        words.append(
            f"| {row['claim']} | {row['scale']} | {row['measure']} {'from' if row['pooled'] else 'above'} "
            f"{row['above']:g} | {bounds} | {row['seeds']} | {row['verdict']} | {row['more']} |"
        )
    ran = {result["scale"] for result in results}
    if missing := [scale for scale in dict.fromkeys(block.scale for block in experiment.plan) if scale not in ran]:
        words += ["", f"Not run yet: {', '.join(missing)}."]
    for scale, arms in arms_table(experiment, results).items():
        columns = [name for name in SHOWN if any(name in found for found in arms.values())]
        words += ["", f"{scale}, {experiment.scales[scale].target:,} tokens:", ""]
        words += [f"| arm | {' | '.join(columns)} | seeds |", "|---" * (len(columns) + 2) + "|"]
        for arm, found in arms.items():
            name = f"{arm} (apart)" if experiment.arms[arm].apart else arm
            cells = " | ".join(_cell(found.get(column), column) for column in columns)
            words.append(f"| {name} | {cells} | {max(each.seeds for each in found.values())} |")
        words += _leads_over_recipe(experiment, scale, [arm for arm in arms if arm != REFERENCE], results)
    return "\n".join(words)


def _leads_over_recipe(
    experiment: Experiment, scale: str, arms: Sequence[str], results: Sequence[dict[str, Any]]
) -> Iterator[str]:
    """A table of how much better than the recipe each arm is, seed by seed."""
    rows = {
        arm: {
            measure: interval(found) for measure in SHOWN if (found := leads(results, scale, arm, REFERENCE, measure))
        }
        for arm in arms
    }  # fmt: skip
    columns = [name for name in SHOWN if any(name in row for row in rows.values())]
    if not columns:
        return
    yield from ("", f"Better than the recipe by, paired by seed ({scale}; bold: the interval leaves out 0):", "")
    yield from (f"| arm | {' | '.join(columns)} | seeds |", "|---" * (len(columns) + 2) + "|")
    for arm, row in rows.items():
        if row:
            cells = " | ".join(_lead(row.get(column), column) for column in columns)
            name = f"{arm} (apart)" if experiment.arms[arm].apart else arm
            yield f"| {name} | {cells} | {max(each.seeds for each in row.values())} |"


def _lead(found: Interval | None, measure: str) -> str:
    words = _cell(found, measure, sign="+")
    return f"**{words}**" if found and not found.low <= 0 <= found.high else words


def _cell(found: Interval | None, measure: str, sign: str = "") -> str:
    if found is None:
        return "-"
    digits = 3 if lower_is_better(measure) else 1
    return f"{found.mean:{sign}.{digits}f}" + (f" ± {found.half:.{digits}f}" if found.seeds > 1 else "")


def by_seed(
    results: Sequence[Mapping[str, Any]], scale: str, arm: str, against: str
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Results of two arms at one scale, in pairs of one seed."""
    own, other = ({result["seed"]: result for result in of_arm(results, scale, name)} for name in (arm, against))
    return [(own[seed], other[seed]) for seed in sorted(own.keys() & other.keys())]


def _measured(results: Sequence[Mapping[str, Any]], scale: str, arm: str, measure: str) -> dict[int, float]:
    return {
        result["seed"]: result["measures"][measure]
        for result in of_arm(results, scale, arm)
        if measure in result["measures"]
    }


def _seed_hours(results: Sequence[dict[str, Any]], scale: str, arm: str) -> float:
    """Core hours of one more seed of an arm, from those there are."""
    found = [
        sum(stage["cpu_seconds"] for folder, stage in result["stages"].items() if folder.rpartition("-")[0] in _OWN)
        for result in of_arm(results, scale, arm)
    ]
    return statistics.fmean(found) / 3600
