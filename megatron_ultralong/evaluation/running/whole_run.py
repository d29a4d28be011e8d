"""A run from beginning to end, or from where one that was stopped left off: samples, answers, perplexity, tables."""

from __future__ import annotations

import dataclasses
import datetime
import logging
from pathlib import Path
from typing import Any

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.interface import Backend
from megatron_ultralong.evaluation.benchmarks.perplexity_windows import tokenize
from megatron_ultralong.evaluation.corpus_texts import iterate_texts
from megatron_ultralong.evaluation.run_folder import FORMAT, RESULTS, RUN
from megatron_ultralong.evaluation.running.answer_log import Key, RunLog
from megatron_ultralong.evaluation.running.ask_samples import Asker, counted
from megatron_ultralong.evaluation.running.reading_windows import plan_windows, progress_of, read_windows
from megatron_ultralong.evaluation.running.request import Request, check_same, tokenizer_identity
from megatron_ultralong.evaluation.running.result_tables import chances, tables
from megatron_ultralong.evaluation.running.sample_files import Skip, Source, find_sources, on_writer
from megatron_ultralong.files import disk_errors_named, read_json, write_json
from megatron_ultralong.provenance import git_commit, versions

logger = logging.getLogger(__name__)

FIRST_LENGTH = 4096
"""Where lengths begin that are not given."""


@dataclasses.dataclass
class WholeRun:
    """One run; every process of a job holds one and does alike.

    Args:
        request: what is asked.
        backend: who answers.
        tokenizer: the model's.
        folder: the run's.
        name: of the model, for reports.
        model: as the command line named it.
        past_context: lengths beyond the model's context are asked too.
    """

    request: Request
    backend: Backend
    tokenizer: ChatTokenizer
    folder: Path
    name: str
    model: str
    past_context: bool = False

    def __post_init__(self) -> None:
        self._log: RunLog | None = None
        self._skipped: list[Skip] = []
        self._samples: list[Key] = []
        self._windows: list[Key] = []

    def run(self) -> dict[str, Any]:
        """Ask what is not answered yet.

        Returns:
            What results.json holds; on the writer.

        Raises:
            UserError: the folder holds another run, or something that is asked cannot be.
        """
        on_writer(self.backend, self._open_folder)
        try:
            lengths = self._lengths()
            sources, skipped = find_sources(
                self.request, lengths, self.backend, self.tokenizer.tokenizer.path, self.folder
            )
            self._skipped += skipped
            self._ask(sources)
            self._read(lengths)
            return self._write(complete=True)
        finally:
            if self._log is not None:
                self._log.close()

    def header(self) -> dict[str, Any]:
        """What run.json holds."""
        return {
            "format": FORMAT,
            "name": self.name,
            "model": self.model,
            "context_length": self.backend.context_length,
            "backend": self.backend.describe(),
            "tokenizer": tokenizer_identity(self.tokenizer),
            "wording": self.request.wording(),
            "settings": self.request.settings(self.past_context),
            "versions": versions(),
            "git_commit": git_commit(),
            "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }

    def _open_folder(self) -> None:
        """Begin run.json, or check that it is this run's; lock the lines."""
        path = self.folder / RUN
        header = self.header()
        with disk_errors_named(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                old = read_json(path, "the run's settings", "name another folder")
                if not isinstance(old, dict) or old.get("format") != FORMAT:
                    raise UserError(f"{path}: it is no run.json that this version reads; name another folder.")
                self._log = RunLog(self.folder)
                if self._log.answered or self._log.read:
                    check_same(self.folder, old, header)
                else:
                    write_json(path, header)  # nothing was answered: it may be asked otherwise
                return
            if others := sorted(each.name for each in self.folder.iterdir()):
                raise UserError(f"--output: {self.folder} holds {others[0]} and no run; name another folder.")
            self._log = RunLog(self.folder)
            write_json(path, header)

    def _lengths(self) -> tuple[int, ...]:
        """Those that the model can read; the others are skipped, each task with its reason."""
        context = self.backend.context_length
        asked = tuple(dict.fromkeys(self.request.lengths)) or default_lengths(context)
        if context is None or self.past_context:
            return asked
        reason = f"the model's context holds {context:,} tokens (--past-context asks all the same)"
        if not self.request.samples_file:
            tasks = [*(task.name for task in self.request.tasks()), *self.request.perplexity()]
            self._skipped += [Skip(task, n, None, reason) for task in tasks for n in asked if n > context]
        return tuple(length for length in asked if length <= context)

    def _ask(self, sources: list[Source]) -> None:
        before = self.backend.share(set(self._log.answered) if self._log is not None else set())
        asker = Asker(self.request, self.backend, self.tokenizer, self._log, before, self.past_context)
        told = sources if self.backend.is_writer else []  # who shows progress
        total = sum(counted(sample) for source in told for sample in source.samples())
        with progress_of(self.backend, self.name, total) as progress:
            for source in sources:
                asker.ask(source.samples(), progress)
                self._samples = asker.keys
                self._write(complete=False)
        self._skipped += _counted(asker.refused)

    def _read(self, lengths: tuple[int, ...]) -> None:
        tasks = self.request.perplexity()
        if not tasks or not lengths or self.request.documents is None:
            return
        with progress_of(self.backend, "tokenizing held-out documents", None, "documents") as progress:
            documents = tokenize(iterate_texts(self.request.documents), self.tokenizer, progress)
        found, skipped = plan_windows(self.request, tasks, lengths, documents)
        self._skipped += skipped
        done = self.backend.share(set(self._log.read) if self._log is not None else set())
        self._windows = read_windows(self.backend, found, done, self._log)

    def _write(self, *, complete: bool) -> dict[str, Any]:
        if self._log is None:
            return {}
        answered = {key: self._log.answered[key] for key in self._samples}
        windows = {key: self._log.read[key] for key in self._windows}
        found = tables(answered, windows, self._skipped, chances({key[0] for key in answered}), complete)
        with disk_errors_named(self.folder):
            write_json(self.folder / RESULTS, found)
        return found


def default_lengths(context: int | None) -> tuple[int, ...]:
    """4,096 doubled up to the context, which is the last of them.

    Raises:
        UserError: the context is not known.
    """
    if context is None:
        raise UserError("the model's context is not known; give --lengths.")
    lengths = [FIRST_LENGTH]
    while 2 * lengths[-1] <= context:
        lengths.append(2 * lengths[-1])
    return tuple(dict.fromkeys([*(length for length in lengths if length < context), context]))


def _counted(refused: list[Skip]) -> list[Skip]:
    """Samples refused one by one, as a row for each task and length; the first one's reason stands for all."""
    groups: dict[tuple[str, int], list[Skip]] = {}
    for skip in refused:
        groups.setdefault((skip.task, skip.length), []).append(skip)
    return [dataclasses.replace(group[0], samples=len(group)) for group in groups.values()]
