"""Tasks by the names that their benchmarks give them: how samples are made, how predictions are read and scored.

A family is a file or folder in `benchmarks/` with a function `tasks()`, imported when one of its names is asked for;
one with `further_tasks()` also has tasks that are known by name alone, being made of others.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.samples import Form, Sample

if TYPE_CHECKING:
    from megatron_ultralong.data.tokenizer.chat import ChatTokenizer

FAMILIES: dict[str, str] = {
    "ruler": "ruler.ruler_tasks",
    "needles": "needles",
    "recall": "recall",
    "infinitebench": "infinitebench.infinitebench_tasks",
    "lveval": "lveval.lveval_tasks",
    "longbench_v2": "longbench_v2",
    "babilong": "babilong",
    "mrcr": "mrcr",
    "graphwalks": "graphwalks",
}
"""First part of a task's name -> module in `benchmarks/`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MakeOptions:
    """What samples are made from.

    Attributes:
        tokenizer: counts tokens.
        lengths: tokens that prompt and answer's budget may take together, each.
        count: samples a length, where there are no depths.
        seed: of everything drawn.
        form: base or chat.
        haystack: texts to hide needles in: a file, folder, glob or URL of what tokenizing reads; None where not needed.
        data: a benchmark's local files, in their published format.
        official: the user's clone of the benchmark's repository: templates and word lists; None: our own.
        depths: of grids, evenly from 0 to 1.
        trials: of grids, samples a length and depth.
        lead_in: give away how the answer begins, up to the key.
        only: indices to make, of each length; None: all. Tasks that are `split` heed it.
        cache: folder for what is found out about the haystack, so that other processes need not; None: memory.
    """

    tokenizer: ChatTokenizer
    lengths: tuple[int, ...]
    count: int
    seed: int = 42
    form: Form = "base"
    haystack: str | None = None
    data: Path | None = None
    official: Path | None = None
    depths: int = 10
    trials: int = 1
    lead_in: bool = False
    only: range | None = None
    cache: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One task.

    Attributes:
        name: family/task, as the benchmark names it.
        budget: tokens of an answer.
        score: prediction and sample -> 0 to 1.
        make: samples, length after length; None where they cannot be made here. `samples.TooShortError` for a length
            that is too short.
        read: a file of predictions made elsewhere, in the benchmark's own format -> predictions, each with its sample.
        exact: an answer is right if and only if it is `lead_in` and the one reference word for word, so that teacher
            forcing may judge it instead of generation.
        stop: texts that end an answer.
        references: a file of the benchmark's data -> its samples without prompts, for predictions that carry no
            references.
        chance: what a uniform guesser scores, 0 to 1.
        split: each sample depends on its length and index alone, and `make` heeds `MakeOptions.only`: several
            processes may share the work.
        grid: asked at several depths, `trials` times each; where one length alone is named, at `grid_lengths`.
    """

    name: str
    budget: int
    score: Callable[[str, Sample], float]
    make: Callable[[MakeOptions], Iterator[Sample]] | None = None
    read: Callable[[Path], Iterator[tuple[str, Sample]]] | None = None
    exact: bool = False
    stop: tuple[str, ...] = ()
    references: Callable[[Path], Iterator[Sample]] | None = None
    chance: float = 0.0
    split: bool = False
    grid: bool = False

    def samples_a_length(self, options: MakeOptions) -> int:
        """How many, where nothing is left out."""
        return options.depths * options.trials if self.grid else options.count


def grid_lengths(target: int, count: int = 40) -> tuple[int, ...]:
    """`count` lengths evenly spread up to `target`: the paper's grid has 40."""
    return tuple(sorted({target * number // count for number in range(1, count + 1)} - {0}))


def find_tasks(names: Iterable[str]) -> list[Task]:
    """Tasks by name, each once, in order; a family's name alone stands for all its tasks if none is called so.

    Raises:
        UserError: there is none of a name; the nearest is said.
    """
    found: dict[str, Task] = {}
    for name in names:
        tasks = family_tasks(name) if name in FAMILIES else []
        whole = tasks if tasks and all(task.name != name for task in tasks) else [find_task(name)]
        found |= {task.name: task for task in whole}
    return list(found.values())


def find_task(name: str) -> Task:
    """A task by its name.

    Raises:
        UserError: there is none; the nearest name is said.
    """
    family = name.partition("/")[0]
    if family in FAMILIES:
        found = {task.name: task for task in (*family_tasks(family), *_further_tasks(family))}
        if name in found:
            return found[name]
        known = sorted(found)
    else:
        known = task_names()
    near = difflib.get_close_matches(name, known, n=1)
    raise UserError(
        f"{name}: there is no such task; "
        + (f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'}.")
    )


def family_tasks(family: str) -> list[Task]:
    """All tasks of a family."""
    return list(_module(family).tasks())


def _further_tasks(family: str) -> list[Task]:
    """Tasks that are known by name alone."""
    module = _module(family)
    return list(module.further_tasks()) if hasattr(module, "further_tasks") else []


def _module(family: str) -> Any:
    return importlib.import_module(f"megatron_ultralong.evaluation.benchmarks.{FAMILIES[family]}")


def task_names() -> list[str]:
    """All names, families in order."""
    return [task.name for family in FAMILIES for task in family_tasks(family)]
