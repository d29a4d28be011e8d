"""Documents to token ids on disk: shards on all cores, restartable, in bounded memory, in the order of the input.

The input is cut into shards (`inputs`), worker processes write each as a part (`worker`, `parts`), and the parts are
merged (`merge`). A part is kept until the corpus is whole, so a run that was killed goes on from its finished shards,
and runs on several machines share the work (`shard`). The workers begin with gigatoken while this process loads the
Hugging Face tokenizer and compares the two; no part counts before that is settled, and if they differ the workers
begin anew with the slower one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from megatron_ultralong.data.corpus import corpus
from megatron_ultralong.data.corpus.indexed_dataset import token_dtype
from megatron_ultralong.data.tokenizer.encoders import Encoder
from megatron_ultralong.data.tokenizer.identity import BYTES
from megatron_ultralong.data.tokenizer.tokenizer import Tokenizer
from megatron_ultralong.data.tokenizing import worker
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.existing import check_same, existing, how_made, recorded
from megatron_ultralong.data.tokenizing.merge import merge_parts
from megatron_ultralong.data.tokenizing.parts import finished, read_part
from megatron_ultralong.data.tokenizing.peek import kind_of, sample_texts
from megatron_ultralong.data.tokenizing.pool import Pool, Task, run_alone
from megatron_ultralong.data.tokenizing.readers import Reading
from megatron_ultralong.data.tokenizing.recheck import DifferenceError
from megatron_ultralong.data.tokenizing.shards import FileRange, Format, Shard, find_files, plan_shards
from megatron_ultralong.data.tokenizing.streams import STDIN
from megatron_ultralong.errors import UserError

logger = logging.getLogger(__name__)

_ALONE_BYTES = 16 << 20  # less than this is done before worker processes have started


@dataclasses.dataclass(frozen=True)
class TokenizeOptions:
    """How a corpus is tokenized."""

    workers: int = 1
    """Processes, or threads where there is only one shard."""
    format: Format | Literal["auto"] = "auto"
    """What is in the files; "auto": by their endings."""
    source: str = ""
    """The source of every document; "": by field, or by file."""
    malformed: Literal["stop", "skip"] = "stop"
    """Whether a malformed document stops the run, or is left out and listed in PREFIX.skipped.tsv."""
    append_eod: bool = False
    """End each document with the tokenizer's end-of-sequence token."""
    encoder: Literal["auto", "reference"] = "auto"
    """"auto": gigatoken, where it gives the tokenizer's ids; "reference": the tokenizer's own library."""
    shard: tuple[int, int] | None = None
    """(i, n): tokenize only every n-th shard, from the i-th on, and do not merge."""
    overwrite: bool = False
    """Replace another corpus of this prefix."""


def parse_shard(text: str) -> tuple[int, int] | None:
    """(i, n) of "i/n"; None of "".

    Raises:
        UserError: it is something else, or i is not below n.
    """
    if not text:
        return None
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and int(first) < int(count)):
        raise UserError(f"--shard {text}: is not i/n with i from 0 to n - 1; give one such as 0/8.")
    return int(first), int(count)


def tokenize_corpus(
    inputs: Sequence[Path | str],
    prefix: Path,
    tokenizer: Tokenizer,
    fields: Fields,
    options: TokenizeOptions | None = None,
) -> dict[str, Any] | None:
    """Write the tokenized corpus PREFIX.* (see `corpus`) and return its manifest; None for `options.shard`.

    Documents without any token are left out and counted. A corpus of this prefix that was made from the same inputs in
    the same way is left as it is.

    Raises:
        UserError: an input is missing or malformed, texts and chats are mixed, there is no document, an input or
            another corpus would be overwritten, another run writes this prefix, or the disk is full.
    """
    options = options or TokenizeOptions()
    if options.workers < 1:
        raise UserError(f"--workers {options.workers}: is no number of processes; give 1 or more.")
    files = find_files(inputs, options.format)
    if any(file.path == STDIN for file in files) and (options.shard or len(files) > 1):
        raise UserError("--input -: standard input goes neither with other inputs nor with --shard; name files.")
    kind = kind_of(files, fields, options.malformed == "skip")
    shards = plan_shards(files)
    reading = Reading(fields, kind, options.source)
    made_by = how_made(tokenizer, reading, options.append_eod)
    manifest = existing(files, prefix, kind)
    if manifest is not None and not options.overwrite:
        check_same(prefix, manifest, tokenizer, shards, made_by, options.malformed == "skip")
        corpus.open_corpus(prefix)
        logger.info("%s: is already there, made from the same inputs in the same way.", prefix)
        return manifest
    run = _Run(prefix, tokenizer, reading, shards, made_by, options)
    with run.locked():
        run.tokenize()
        if options.shard:
            left = sum(read_part(folder) is None for folder in run.folders)
            what = f"{left} of {len(shards)} shards are left" if left else "all shards are done"
            logger.info("%s: %s; the same command without --shard finishes the corpus.", prefix, what)
            return None
        return run.merge(files)


class _Run:
    """One call of `tokenize_corpus`."""

    def __init__(
        self,
        prefix: Path,
        tokenizer: Tokenizer,
        reading: Reading,
        shards: list[Shard],
        made_by: dict[str, Any],
        options: TokenizeOptions,
    ) -> None:
        self.prefix, self.tokenizer, self.reading, self.options = prefix, tokenizer, reading, options
        self.shards, self.made_by = shards, made_by
        self.keys = [shard.key(made_by) for shard in shards]
        self.parts = Path(f"{prefix}.parts")
        self.folders = [self.parts / key for key in self.keys]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold PREFIX.parts, alone or beside runs of other shards; afterwards keep it only if parts are in it."""
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
            lock = (self.parts / "lock").open("a")
        except OSError as error:
            raise worker.writing_error(error, self.parts) from None
        with lock:
            try:
                fcntl.flock(lock, (fcntl.LOCK_SH if self.options.shard else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.parts}: another run is writing this corpus; wait for its end.") from None
            except OSError:
                logger.warning("%s: this filesystem has no locks; start no second run of the corpus.", self.parts)
            try:
                if not self.options.shard:
                    for left in self.parts.glob("*.tmp"):  # of runs that were killed
                        shutil.rmtree(left, ignore_errors=True)
                yield
            finally:
                self._tidy()

    def _tidy(self) -> None:
        kept = sum(read_part(folder) is not None for folder in self.folders)
        if kept and not self.options.shard:
            logger.info("%s: %s of %s finished shards are kept.", self.parts, kept, len(self.shards))
        elif self.parts.is_dir() and {path.name for path in self.parts.iterdir()} <= {"lock"}:
            shutil.rmtree(self.parts, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.prefix.parent.rmdir()  # which removes it only if it is empty

    def tokenize(self) -> None:
        """Make every part that is missing."""
        first, step = self.options.shard or (0, 1)
        mine = list(zip(self.shards, self.folders, strict=True))[first::step]
        tasks = [(shard, folder) for shard, folder in mine if not self._is_done(shard, folder)]
        if len(tasks) < len(mine):
            logger.info("%s: %s of %s shards are done already.", self.parts, len(mine) - len(tasks), len(mine))
        if not tasks:
            return
        small = sum(shard.bytes for shard, _ in tasks) < _ALONE_BYTES
        processes = 1 if small else min(self.options.workers, len(tasks))
        os.environ["RAYON_NUM_THREADS"] = str(self.options.workers)  # both tokenizers read it at their first batch
        job = self._job(processes)
        try:
            if small:
                settled = self._settled(job, tasks)
                return run_alone(settled, tasks, self._reference(settled))
            with Pool(job, tasks) as pool:
                settled = self._settled(job, tasks)  # while they work
                if settled == job:
                    return pool.collect(self._reference(settled))
            with Pool(settled, tasks) as pool:
                pool.collect(self._reference(settled))
        except DifferenceError:
            for folder in self.folders:
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def _reference(self, job: worker.Job) -> Encoder | None:
        """What a share of the parts is compared with."""
        return self.tokenizer.reference if job.fast else None

    def _is_done(self, shard: Shard, folder: Path) -> bool:
        if shard.ranges[0].path == STDIN:  # whose contents no key tells
            shutil.rmtree(folder, ignore_errors=True)
        part = read_part(folder)
        return part is not None and (self.options.malformed == "skip" or not part.skipped)

    def _job(self, processes: int) -> worker.Job:
        is_chat = self.reading.kind == "chat"
        if is_chat:
            _ = self.tokenizer.chat_template  # or say that there is none
        fast = not is_chat and self.options.encoder == "auto" and str(self.tokenizer.path) != BYTES
        recipe = self.tokenizer.likely_recipe if fast or is_chat else self.tokenizer.recipe
        return worker.Job(
            reading=self.reading,
            skip=self.options.malformed == "skip",
            end=self.tokenizer.end_of_document if self.options.append_eod else None,
            recipe=recipe,
            fast=fast,
            chat_folder=self.tokenizer.path if is_chat else None,
            processes=processes,
            workers=self.options.workers,
        )

    def _settled(self, job: worker.Job, tasks: list[Task]) -> worker.Job:
        """The job with an encoder that is known to be right: the same job, if its own is."""
        if not job.fast:
            return job
        if not self.tokenizer.is_effective(job.recipe):
            job = dataclasses.replace(job, recipe=self.tokenizer.recipe)
        sample = sample_texts([shard for shard, _ in tasks], self.reading)
        if self.tokenizer.check_fast(job.recipe, sample):
            return job
        return dataclasses.replace(job, recipe=self.tokenizer.recipe, fast=False)

    def merge(self, files: Sequence[FileRange]) -> dict[str, Any]:
        """Join the parts, and remove them."""
        for file in files:
            if file.path != STDIN and find_files([file.path], file.format)[0].stamp != file.stamp:
                raise UserError(f"{file.path}: changed while it was read; run again.")
        parts = [finished(folder) for folder in self.folders]
        if not any(part.documents for part in parts):
            shutil.rmtree(self.parts)
            skipped = " or malformed" if any(part.skipped for part in parts) else ""
            raise UserError(f"--input: every document is empty{skipped}; name files with text.")
        fingerprints = {path: value for part in parts for path, value in part.fingerprints.items()}
        about = {
            **recorded(self.tokenizer, self.made_by),
            "inputs": [
                {
                    "path": file.path,
                    "bytes": file.bytes if file.path != STDIN else sum(part.bytes_in for part in parts),
                    "fingerprint": fingerprints.get(file.path),
                }
                for file in files
            ],
            "shards": self.keys,
        }
        dtype = token_dtype(self.tokenizer.vocab_size)
        try:
            manifest = merge_parts(self.folders, self.shards, self.prefix, self.reading.kind, dtype, about)
        except OSError as error:
            raise worker.writing_error(error, self.prefix.parent) from None
        shutil.rmtree(self.parts)
        text = f"{manifest['documents']:,} documents, {manifest['tokens']:,} tokens, {len(manifest['sources'])} sources"
        logger.info("%s: %s.", self.prefix, text)
        if manifest["skipped_documents"]:
            where = corpus.skipped_path(self.prefix)
            logger.warning("%s malformed documents were left out; %s lists them.", manifest["skipped_documents"], where)
        return manifest
