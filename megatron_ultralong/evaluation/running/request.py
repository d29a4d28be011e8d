"""What a run asks, as the command line says it and as run.json keeps it.

A run that goes on must ask the same with the same: what run.json keeps under `settings`, the tokenizer, and of the
backend what decides its answers. The layout over ranks, the versions and the machine may change.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation import registry
from megatron_ultralong.evaluation.benchmarks.official_clone import commit
from megatron_ultralong.evaluation.benchmarks.perplexity_windows import PERPLEXITY_TASKS
from megatron_ultralong.evaluation.commands.make_parts import MADE, Recipe, data_fingerprint
from megatron_ultralong.evaluation.corpus_texts import text_files, texts_fingerprint
from megatron_ultralong.evaluation.samples import Form
from megatron_ultralong.files import fingerprint, read_json

_IDENTITY = ("name", "model", "weights", "kind", "step", "dtype", "url", "endpoint", "prompts")
"""Entries of a backend's description that decide its answers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked. Samples are made as tools/evaluate.py make makes them."""

    task: tuple[str, ...] = ()
    """Names such as ruler/vt, needles, recall; ruler alone stands for all of its tasks. Perplexity is
    perplexity/by_position, perplexity/last_window and perplexity/sliding_window."""
    lengths: tuple[int, ...] = ()
    """Tokens that prompt and answer's budget may take together; empty: 4096, doubled up to the model's context."""
    samples_file: tuple[Path, ...] = ()
    """Samples that tools/evaluate.py make, or RULER's own scripts, have written. --task and --lengths then choose among
    them, or name the task of files that name none."""
    samples: int = 100
    """Of each task and length; RULER's own number is 500. Needles have --trials a depth instead."""
    depths: int = 10
    """Depths of needles, evenly from 0 to 100 %."""
    trials: int = 1
    """Samples of each length and depth of needles."""
    grid: int = 40
    """Lengths of needles up to the one in --lengths, where it has one; 1: that one alone."""
    lead_in: bool = False
    """Give away how the answer to a needle begins, up to the key."""
    seed: int = 42
    """Of everything drawn."""
    form: Form = "base"
    """Prompts as a text to be continued, or as a chat's turn in the model's template."""
    judge: bool = True
    """Answers that are exact are judged in one forward pass (teacher forcing) instead of generated."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, beside those of the task."""
    haystack: str | None = None
    """Text that needles are hidden in: a file, folder, glob or URL of any format that is tokenized."""
    data: Path | None = None
    """File or folder of a benchmark's data as published; docs/evaluation_benchmarks.md lists them."""
    official: Path | None = None
    """Your clone of the benchmark's repository, for its own wording."""
    documents: str | None = None
    """Held-out documents for perplexity: a file, folder, glob or URL."""
    windows: int = 32
    """Windows of a length (by_position), or documents (last_window, sliding_window), at most."""
    stride: int = 256
    """Tokens that last_window counts, and that sliding_window moves by."""
    workers: int | None = None
    """Processes that make samples; as many as cores by default."""

    def check(self) -> None:
        """Refuse what asks nothing, or of something that is not there.

        Raises:
            UserError: the first mistake.
        """
        for name in ("samples", "depths", "trials", "grid", "windows", "stride"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; give at least 1.")
        for length in self.lengths:
            if length < 2:
                raise UserError(f"--lengths has {length}; give lengths of at least 2 tokens.")
        for path in self.samples_file:
            if not path.is_file():
                raise UserError(f"--samples-file {path}: there is no such file; make it with tools/evaluate.py make.")
        if not self.task and not self.samples_file:
            raise UserError("nothing is asked; give --task, or --samples-file.")
        self.tasks()
        if self.perplexity() and self.documents is None:
            raise UserError("perplexity needs held-out documents; give --documents.")
        if self.perplexity() and self.documents is not None:
            text_files(self.documents)

    def tasks(self) -> list[registry.Task]:
        """Those with samples, each once.

        Raises:
            UserError: a name that is none, or of a task that cannot be asked as it is.
        """
        found = registry.find_tasks(name for name in self.task if name.partition("/")[0] != "perplexity")
        for task in found:
            if task.make is None and not self.samples_file:
                raise UserError(
                    f"--task {task.name}: its samples are not made here; give a file of them by --samples-file."
                )
        return found

    def perplexity(self) -> list[str]:
        """Those of perplexity, each once.

        Raises:
            UserError: a name that is none.
        """
        found: list[str] = []
        for name in self.task:
            if name == "perplexity":
                found += PERPLEXITY_TASKS
            elif name.startswith("perplexity/"):
                if name not in PERPLEXITY_TASKS:
                    raise UserError(f"--task {name}: there is no such task; there are {', '.join(PERPLEXITY_TASKS)}.")
                found.append(name)
        return list(dict.fromkeys(found))

    def recipe(self, tokenizer: Path) -> Recipe:
        """What samples are made from."""
        shared = {field.name for field in dataclasses.fields(Recipe)} & {each.name for each in dataclasses.fields(self)}
        return Recipe(tokenizer=tokenizer, **{name: getattr(self, name) for name in shared})

    def processes(self) -> int:
        """That make samples."""
        return self.workers or os.cpu_count() or 1

    def wording(self) -> str:
        """Whose prompts: "own", "official COMMIT", of files what `make` noted beside them, else "not known"."""
        if not self.samples_file:
            return "own" if self.official is None else f"official {commit(self.official)}"
        return ", ".join(sorted({_wording_of(path) for path in self.samples_file}))

    def settings(self, past_context: bool) -> dict[str, Any]:
        """What run.json keeps; files with their fingerprints."""
        plain = ("samples", "depths", "trials", "grid", "lead_in", "seed", "form", "judge", "windows", "stride")
        official = self.official and {"path": str(self.official), "commit": commit(self.official)}
        return {
            "tasks": [*(task.name for task in self.tasks()), *self.perplexity()],
            "lengths": list(self.lengths),
            "samples_files": [{"path": str(path), "fingerprint": fingerprint(path)} for path in self.samples_file],
            **{name: getattr(self, name) for name in plain},
            "stop": list(self.stop),
            "past_context": past_context,
            "haystack": _texts(self.haystack),
            "data": self.data and {"path": str(self.data), "fingerprint": data_fingerprint(self.data)},
            "official": official,
            "documents": _texts(self.documents),
        }


def _wording_of(path: Path) -> str:
    """Of a file that `make` has written to OUTPUT/TASK/LENGTH.jsonl."""
    for folder in list(path.absolute().parents)[:3]:
        if (folder / MADE).exists():
            found = read_json(folder / MADE, "the list of samples", "make the samples anew")
            made_from = found.get("made_from") if isinstance(found, dict) else None
            if isinstance(made_from, dict) and "official" in made_from:
                return "own" if made_from["official"] is None else f"official {str(made_from['official']).split()[0]}"
    return "not known"


def _texts(path: str | None) -> dict[str, str] | None:
    """An input of texts with its fingerprint."""
    return None if path is None else {"path": str(path), "fingerprint": texts_fingerprint(path)}


def tokenizer_identity(tokenizer: ChatTokenizer) -> dict[str, Any]:
    """Path, fingerprint, and how many ids there are."""
    inner = tokenizer.tokenizer
    return {"path": str(inner.path), "fingerprint": inner.fingerprint, "vocab_size": tokenizer.vocab_size}


def check_same(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse to go on with a run that asked something else, or something else of it.

    Raises:
        UserError: the first difference.
    """
    for where, was, now in _compared(old, new):
        if was != now:
            raise UserError(
                f"{folder}: the run there was begun with {where} = {was!r} and is now asked with {now!r}; "
                "give the same, or name another folder."
            )


def _compared(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    pairs = []
    for part in ("settings", "backend"):
        before, after = old.get(part) or {}, new.get(part) or {}
        names = [*after, *(name for name in before if name not in after)]
        for name in names:
            moved = name == "model" and before.get("weights") == after.get("weights") is not None
            if part == "backend" and (moved or name not in _IDENTITY):
                continue
            pairs.append((name, _without_path(before.get(name)), _without_path(after.get(name))))
    key = "fingerprint"
    pairs.append(("the tokenizer's fingerprint", (old.get("tokenizer") or {}).get(key), new["tokenizer"][key]))
    return pairs


def _without_path(value: Any) -> Any:
    """A file that was moved is the same file."""
    if isinstance(value, list):
        return [_without_path(each) for each in value]
    if isinstance(value, dict):
        return {name: each for name, each in value.items() if name != "path"}
    return value
