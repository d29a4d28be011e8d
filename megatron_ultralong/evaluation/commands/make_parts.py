"""The work of `make` in parts: which are missing, made by one process or several, put together when all are there."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, as_completed
from pathlib import Path
from typing import Any

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.benchmarks.counting import counter_of, know
from megatron_ultralong.evaluation.benchmarks.official_clone import commit
from megatron_ultralong.evaluation.corpus_texts import texts_fingerprint
from megatron_ultralong.evaluation.plain_tokenizer import tokenizer_of
from megatron_ultralong.evaluation.registry import MakeOptions, find_task
from megatron_ultralong.evaluation.samples import Form, TooShortError, sample_path, write_samples
from megatron_ultralong.files import atomic_file, fingerprint, read_json, write_json
from megatron_ultralong.processes import killed_worker_named, start_pool
from megatron_ultralong.progress import Progress

FORMAT = 1
"""Raised when the same options give other samples."""

MADE = "made.json"
"""In a folder of samples: what they were made from."""

_PART_TOKENS = 1 << 22
_UNDERWAY = ".underway"
_CACHE = ".cache"
_KILLED = (
    "a worker process died, most likely killed because memory ran out; run again with fewer --workers, finished parts "
    "are kept."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a command's samples are made from, fit to be sent to a process; see `registry.MakeOptions`."""

    tokenizer: Path
    """The model's folder, or a sentencepiece or tiktoken file."""
    samples: int = 100
    """Of each task and length; RULER's own number is 500. Needles have --trials a depth instead."""
    form: Form = "base"
    """base: a text to be continued; chat: a user's turn, counted with the tokenizer's chat template."""
    haystack: str | None = None
    """Real text to hide needles in: a file, folder, glob or URL of any format that is tokenized."""
    data: Path | None = None
    """File or folder of a benchmark's data as published: SQuAD and HotpotQA for ruler/qa_1 and qa_2; those of the other
    benchmarks are listed in docs/evaluation_benchmarks.md."""
    official: Path | None = None
    """Your clone of the benchmark's repository, whose wording is used instead of ours."""
    depths: int = 10
    """Depths of needles, evenly from 0 to 100 %."""
    trials: int = 1
    """Samples of each length and depth of needles."""
    lead_in: bool = False
    """Give away how the answer to a needle begins, up to the key."""
    seed: int = 42
    """Of everything drawn."""

    def options(self, tokenizer: ChatTokenizer, length: int, only: range | None, cache: Path) -> MakeOptions:
        """For one length."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        given |= {"tokenizer": tokenizer, "count": given.pop("samples")}
        return MakeOptions(**given, lengths=(length,), only=only, cache=cache)


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A task's samples of one length, which are one file.

    Attributes:
        task: its name.
        length: asked for.
        optional: no mistake where it is too short.
    """

    task: str
    length: int
    optional: bool = False


@dataclasses.dataclass(frozen=True)
class Part:
    """Some samples of a sheet."""

    sheet: Sheet
    only: range | None
    path: Path


Skipped = list[tuple[Sheet, str]]
"""What was too short, and why."""


def make_sheets(sheets: list[Sheet], recipe: Recipe, output: Path, workers: int) -> tuple[int, Skipped]:
    """Make what is missing.

    Returns:
        Files that are there, and what is not, being too short.

    Raises:
        UserError: what samples are made from is missing or broken.
    """
    tokenizer = tokenizer_of(recipe.tokenizer, recipe.form)
    identity = _identity(recipe, tokenizer)
    made = _made(output)
    keys = {sheet: _key(identity, sheet) for sheet in sheets}
    missing = [sheet for sheet in sheets if made.get(_name(sheet)) != keys[sheet] or not _path(output, sheet).exists()]
    parts = {sheet: _parts(sheet, recipe, output, keys[sheet], tokenizer) for sheet in missing}
    skipped: Skipped = []
    with Progress("making samples", _tokens(parts, recipe), "tokens") as progress:
        for sheet, why in _work(parts, recipe, tokenizer, output, workers, progress):
            if why:
                skipped.append((sheet, why))
                continue
            _join(_path(output, sheet), parts[sheet])
            made[_name(sheet)] = keys[sheet]
            write_json(output / MADE, {"format": FORMAT, "made_from": identity, "files": made})
    shutil.rmtree(output / _UNDERWAY, ignore_errors=True)
    return len(sheets) - len(skipped), skipped


def _identity(recipe: Recipe, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """What decides every sample."""
    fields = dataclasses.asdict(recipe)
    return {
        **{name: fields[name] for name in ("samples", "seed", "form", "depths", "trials", "lead_in")},
        "tokenizer": tokenizer.tokenizer.fingerprint,
        "haystack": texts_fingerprint(recipe.haystack) if recipe.haystack else None,
        "data": data_fingerprint(recipe.data) if recipe.data else None,
        "official": f"{commit(recipe.official)} {recipe.official.resolve()}" if recipe.official else None,
    }


def data_fingerprint(path: Path) -> str:
    """SHA-256 (hex) of a benchmark's file or folder, by its files' names and fingerprints."""
    if not path.exists():
        raise UserError(f"--data {path}: it is missing; name the file or folder of the published data.")
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    return hashlib.sha256("".join(f"{each.name} {fingerprint(each)}\n" for each in files).encode()).hexdigest()


def _key(identity: dict[str, Any], sheet: Sheet) -> str:
    """What a file is made from, hashed; of the two numbers only the one that its task heeds."""
    heeded = dict(identity)
    for name in ("samples",) if find_task(sheet.task).grid else ("depths", "trials", "lead_in"):
        del heeded[name]
    text = json.dumps([FORMAT, sheet.task, sheet.length, heeded], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _made(output: Path) -> dict[str, str]:
    if not (output / MADE).exists():
        return {}
    found = read_json(output / MADE, "the list of samples", "remove it, and all samples are made anew")
    files = found.get("files") if isinstance(found, dict) else None
    return dict(files) if isinstance(files, dict) else {}


def _name(sheet: Sheet) -> str:
    return f"{sheet.task}/{sheet.length}"


def _path(output: Path, sheet: Sheet) -> Path:
    return sample_path(output, sheet.task, sheet.length)


def _parts(sheet: Sheet, recipe: Recipe, output: Path, key: str, tokenizer: ChatTokenizer) -> list[Part]:
    task, folder = find_task(sheet.task), output / _UNDERWAY / key
    if not task.split:
        return [Part(sheet, None, folder / "all.jsonl")]
    count = task.samples_a_length(recipe.options(tokenizer, sheet.length, None, output))
    size = max(_PART_TOKENS // sheet.length, 1)
    return [
        Part(sheet, range(first, min(first + size, count)), folder / f"{first}.jsonl")
        for first in range(0, count, size)
    ]


def _weight(part: Part, recipe: Recipe) -> int:
    return part.sheet.length * (len(part.only) if part.only is not None else recipe.samples)


def _tokens(parts: dict[Sheet, list[Part]], recipe: Recipe) -> int:
    return sum(_weight(part, recipe) for some in parts.values() for part in some)


def _work(
    parts: dict[Sheet, list[Part]],
    recipe: Recipe,
    tokenizer: ChatTokenizer,
    output: Path,
    workers: int,
    progress: Progress,
) -> Iterator[tuple[Sheet, str]]:
    """Make the parts; yield each sheet when its parts are there, and why where it was left out."""
    left = {sheet: len(some) for sheet, some in parts.items()}
    whole, refused = _tokens(parts, recipe), dict[Sheet, str]()
    todo = [part for some in parts.values() for part in some]
    processes = min(workers, len(todo)) if whole > 2 * _PART_TOKENS else 1
    with _executor(processes, recipe, tokenizer, output, todo) as results:
        for part, why in results:
            progress.advance(_weight(part, recipe))
            if why:
                refused[part.sheet] = why
            left[part.sheet] -= 1
            if not left[part.sheet]:
                yield part.sheet, refused.get(part.sheet, "")


@contextlib.contextmanager
def _executor(
    processes: int, recipe: Recipe, tokenizer: ChatTokenizer, output: Path, todo: list[Part]
) -> Iterator[Iterator[tuple[Part, str]]]:
    """Parts as they are made, each with why it was too short, in this process or in several."""
    cache = output / _CACHE
    if processes == 1:
        yield ((part, _make_part(part, recipe, tokenizer, cache)) for part in todo)
        return
    fast = counter_of(tokenizer).is_fast
    pool = start_pool(processes, _begin, recipe, fast, cache)
    try:
        futures: dict[Future[str], Part] = {pool.submit(_in_worker, part): part for part in todo}

        def results() -> Iterator[tuple[Part, str]]:
            for future in as_completed(futures):
                with killed_worker_named(_KILLED):
                    yield futures[future], future.result()

        yield results()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _make_part(part: Part, recipe: Recipe, tokenizer: ChatTokenizer, cache: Path) -> str:
    """Write a part's file unless it is there; why the length is too short, or nothing."""
    if part.path.exists():
        return ""
    make = find_task(part.sheet.task).make
    assert make is not None
    try:
        write_samples(part.path, make(recipe.options(tokenizer, part.sheet.length, part.only, cache)))
    except TooShortError as error:
        return str(error)
    return ""


_WORKER: dict[str, Any] = {}


def _begin(recipe: Recipe, fast: bool, cache: Path) -> None:
    """What a process needs once."""
    tokenizer = tokenizer_of(recipe.tokenizer, recipe.form)
    know(tokenizer.tokenizer.fingerprint, fast)
    _WORKER.update(recipe=recipe, tokenizer=tokenizer, cache=cache)


def _in_worker(part: Part) -> str:
    return _make_part(part, _WORKER["recipe"], _WORKER["tokenizer"], _WORKER["cache"])


def _join(path: Path, parts: list[Part]) -> None:
    """One file of all parts, in order."""
    with atomic_file(path) as temporary, temporary.open("wb") as whole:
        for part in parts:
            with part.path.open("rb") as stream:
                shutil.copyfileobj(stream, whole, 1 << 20)
    for part in parts:
        part.path.unlink()
