"""Documents to token ids on disk: shards on all cores, restartable, in bounded memory, in the order of the input.

The input is cut into shards (`plan`), worker processes write each as a part (`worker`, `parts`), and the parts are
merged (`merge`). A part is kept until the corpus is whole, so a run that was killed goes on from its finished shards,
and runs on several machines share the work (`shard`). The workers begin with gigatoken while this process loads the
Hugging Face tokenizer and compares the two; no part counts before that is settled, and if they differ the workers
begin anew with the slower one.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from megatron_ultralong.data.corpus import corpus
from megatron_ultralong.data.corpus.indexed_dataset import token_dtype
from megatron_ultralong.data.tokenizer.chat import Learnt
from megatron_ultralong.data.tokenizer.encoders import Encoder
from megatron_ultralong.data.tokenizer.identity import BYTES
from megatron_ultralong.data.tokenizer.tokenizer import Tokenizer
from megatron_ultralong.data.tokenizing import worker
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.existing import existing, how_made, recorded
from megatron_ultralong.data.tokenizing.merge import merge_parts
from megatron_ultralong.data.tokenizing.parts import Part, check_sources, finished, read_part
from megatron_ultralong.data.tokenizing.parts_folder import held
from megatron_ultralong.data.tokenizing.peek import sample_texts
from megatron_ultralong.data.tokenizing.plan import Plan, digest, make_plan
from megatron_ultralong.data.tokenizing.pool import Pool, Task, run_alone
from megatron_ultralong.data.tokenizing.readers import Reading
from megatron_ultralong.data.tokenizing.recheck import DifferenceError
from megatron_ultralong.data.tokenizing.shards import FileRange, Format, for_each
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import refuse_output

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
    mask: Learnt = "all"
    """Of chats: which responses are learnt."""
    chat_date: str = ""
    """Of chats: YYYY-MM-DD for templates that print a date; "": `chat_template.CHAT_DATE`."""
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
            another corpus would be overwritten, another run writes this prefix, the disk is full, or an object store
            does not give what was asked of it.
    """
    options = options or TokenizeOptions()
    refuse_output(prefix, "--output-prefix")
    if options.workers < 1:
        raise UserError(f"--workers {options.workers}: is no number of processes; give 1 or more.")
    skip = options.malformed == "skip"
    plan = make_plan(inputs, prefix, fields, format=options.format, skip=skip, one_source=bool(options.source))
    if plan.is_stream and options.shard:
        raise UserError("--input -: standard input cannot be shared out with --shard; name files.")
    reading = Reading(fields, plan.kind, options.source)
    made_by = how_made(tokenizer, reading, options.append_eod, mask=options.mask, chat_date=options.chat_date)
    if not options.overwrite:
        done = existing(prefix, tokenizer, plan.shards, made_by, skip)
        if done is not None:
            return done
    run = _Run(prefix, tokenizer, reading, plan, made_by, options)
    with held(run.parts, shared=options.shard is not None):
        try:
            run.tokenize()
        except BaseException:
            if kept := run.finished():
                logger.info("%s: %s of %s finished shards are kept.", run.parts, kept, len(run.keys))
            raise
        if not options.shard:
            return run.merge()
        left = len(run.keys) - run.finished()
        what = f"{left} of {len(run.keys)} shards are left" if left else "all shards are done"
        logger.info("%s: %s; the same command without --shard finishes the corpus.", prefix, what)
        return None


class _Run:
    """One call of `tokenize_corpus`."""

    def __init__(
        self,
        prefix: Path,
        tokenizer: Tokenizer,
        reading: Reading,
        plan: Plan,
        made_by: dict[str, Any],
        options: TokenizeOptions,
    ) -> None:
        self.prefix, self.tokenizer, self.reading, self.options = prefix, tokenizer, reading, options
        self.plan, self.made_by = plan, made_by
        self.keys = [shard.key(made_by) for shard in plan.shards]
        self.parts = Path(f"{prefix}.parts")
        self.folders = [self.parts / key for key in self.keys]
        self._sources: set[str] = set()

    def finished(self) -> int:
        """How many parts there are."""
        return sum(read_part(folder) is not None for folder in self.folders)

    def tokenize(self) -> None:
        """Make every part that is missing."""
        self._keep_row_groups()
        done = {folder for shard, folder in zip(self.plan.shards, self.folders, strict=True) if self._is_done(folder)}
        first, step = self.options.shard or (0, 1)
        mine = list(zip(self.plan.shards, self.folders, strict=True))[first::step]
        tasks = [(shard, folder) for shard, folder in mine if folder not in done]
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
                return run_alone(settled, tasks, self._reference(settled), self._look_at)
            with Pool(job, tasks) as pool:
                settled = self._settled(job, tasks)  # while they work
                if settled == job:
                    return pool.collect(self._reference(settled), self._look_at)
            with Pool(settled, tasks) as pool:
                pool.collect(self._reference(settled), self._look_at)
        except DifferenceError:
            for folder in self.folders:
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def _reference(self, job: worker.Job) -> Encoder | None:
        """What a share of the parts is compared with."""
        return self.tokenizer.reference if job.fast else None

    def _keep_row_groups(self) -> None:
        try:
            self.plan.row_groups.keep()
        except OSError as error:
            raise worker.writing_error(error, self.parts) from None

    def _is_done(self, folder: Path) -> bool:
        if self.plan.is_stream:
            shutil.rmtree(folder, ignore_errors=True)
        part = read_part(folder)
        if part is None or (part.skipped and self.options.malformed != "skip"):
            return False
        self._add_sources(part)
        return True

    def _look_at(self, folder: Path) -> None:
        """What is done with a part that was just made."""
        self._add_sources(finished(folder))

    def _add_sources(self, part: Part) -> None:
        """Find too many sources of the whole corpus as soon as they are there."""
        self._sources.update(part.sources)
        check_sources(self._sources)

    def _job(self, processes: int) -> worker.Job:
        is_chat = self.reading.kind == "chat"
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
            mask=self.options.mask,
            chat_date=self.options.chat_date,
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

    def merge(self) -> dict[str, Any]:
        """Join the parts, and remove them."""
        for_each(self.plan.files, FileRange.check_unchanged)
        parts = [finished(folder) for folder in self.folders]
        if not any(part.documents for part in parts):
            shutil.rmtree(self.parts)
            skipped = " or malformed" if any(part.skipped for part in parts) else ""
            raise UserError(f"--input: every document is empty{skipped}; name files with text.")
        about = {
            **recorded(self.tokenizer, self.made_by),
            "shards": len(self.keys),
            "made_from": digest(self.keys),
        }
        dtype = token_dtype(self.tokenizer.vocab_size)
        try:
            manifest = merge_parts(self.folders, self.plan.shards, self.prefix, self.reading.kind, dtype, about)
        except OSError as error:
            raise worker.writing_error(error, self.prefix.parent) from None
        shutil.rmtree(self.parts)
        text = f"{manifest['documents']:,} documents, {manifest['tokens']:,} tokens, {len(manifest['sources'])} sources"
        logger.info("%s: %s.", self.prefix, text)
        if manifest.get("split_chats"):
            logger.info(
                "%s chats became %s samples, one for each response as it would be served: the template renders earlier "
                "turns otherwise later.",
                *(manifest["split_chats"], manifest["split_samples"]),
            )
        if manifest["chat"] and manifest["chat"]["date"]:
            logger.info("The chat template printed the date %s (--chat-date).", manifest["chat"]["date"])
        if manifest["skipped_documents"]:
            where = corpus.skipped_path(self.prefix)
            logger.warning("%s malformed documents were left out; %s lists them.", manifest["skipped_documents"], where)
        return manifest
