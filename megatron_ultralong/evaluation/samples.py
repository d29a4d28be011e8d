"""One question as data: what `make` writes, what backends are asked, what scorers judge; JSON Lines on disk.

A line has RULER's own fields (index, input, outputs, length, answer_prefix), so that its scripts, NeMo-Skills and a
batch of vLLM read it, and further ones that they pass over. No torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import orjson

from megatron_ultralong.errors import UserError
from megatron_ultralong.files import atomic_file


class TooShortError(UserError):
    """A length too short for what has to be in a sample: a run skips it and says so, and goes on."""


Form = Literal["base", "chat"]
"""How a prompt is written: as a text that a base model continues, or as a turn of a chat."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One question.

    Attributes:
        task: its name in the registry: "ruler/niah_single_1".
        index: number within task and length, from 0.
        input: the prompt without its answer prefix; in chat form what the user says.
        outputs: the references.
        turns: earlier turns of the chat, `role` and `content` each; in base form `input` has all of it.
        length: tokens that the rendered prompt and the answer's budget may take together, as asked for.
        answer_prefix: how the answer begins; given to the model after the prompt.
        max_new_tokens: the answer's budget, within `length`.
        prompt_tokens: what the rendered prompt takes, counted with the tokenizer that made it.
        form: what `prompt_tokens` was counted in.
        depth: where the needle lies, 0 to 1, where there is one.
        lead_in: what a right answer says before its reference ("The red key is "), after `answer_prefix`. It is not
            given away when the answer is generated; teacher forcing judges the reference after it.
        place: half-open range of characters of `input` that holds the needle or the evidence, for reports.
        group: samples of one group begin with the same text, so that a backend may prefill it once; "" for none.
        extra: what else scoring needs (options, keywords) or a report may show, by the task's own names.
    """

    task: str
    index: int
    input: str
    outputs: tuple[str, ...]
    length: int
    turns: tuple[dict[str, str], ...] = ()
    answer_prefix: str = ""
    max_new_tokens: int
    prompt_tokens: int
    form: Form = "base"
    depth: float | None = None
    lead_in: str = ""
    place: tuple[int, int] | None = None
    group: str = ""
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


def sample_path(folder: Path, task: str, length: int) -> Path:
    """The file of a task's samples of one length below a folder: ruler/vt/131072.jsonl."""
    return Path(folder) / task / f"{length}.jsonl"


def write_samples(path: Path, samples: Iterable[Sample]) -> int:
    """Write JSON Lines, whole or not at all.

    Returns:
        How many samples.
    """
    count = 0
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        for sample in samples:
            stream.write(orjson.dumps(dataclasses.asdict(sample), option=orjson.OPT_APPEND_NEWLINE))
            count += 1
    return count


def read_samples(path: Path) -> Iterator[Sample]:
    """Read what `write_samples` wrote, or RULER's own files: fields that are not there take what can be told.

    Raises:
        UserError: the file is missing, or a line is no JSON object or lacks `input` or `outputs`.
    """
    try:
        stream = Path(path).open("rb")
    except OSError as error:
        raise UserError(
            f"{path}: the samples cannot be read ({error.strerror}); make them with tools/evaluate.py make."
        ) from None
    with stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield _sample(line, f"{path}, line {number}", number - 1)


_MEND = "make the samples anew with tools/evaluate.py make"


def _sample(line: bytes, where: str, index: int) -> Sample:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise UserError(f"{where}: it is not JSON ({error}); {_MEND}.") from None
    if not isinstance(row, dict) or not isinstance(row.get("input"), str):
        raise UserError(f"{where}: 'input' (text) is missing; {_MEND}.")
    return sample_of(row, where, index)


def sample_of(row: dict[str, Any], where: str, index: int) -> Sample:
    """A sample from a line's fields, of which only `outputs` has to be there.

    Raises:
        UserError: it is not, or another field holds what it cannot; the message begins with `where`.
    """
    if not isinstance(row.get("outputs"), list):
        raise UserError(f"{where}: 'outputs' (a list of texts) is missing; {_MEND}.")
    known = {field.name for field in dataclasses.fields(Sample)}
    given: dict[str, Any] = {
        "task": "", "index": index, "input": "", "length": 0, "max_new_tokens": 128, "prompt_tokens": 0
    } | {name: value for name, value in row.items() if name in known}  # fmt: skip
    given["outputs"] = tuple(map(str, given["outputs"]))
    given["turns"] = tuple(given.get("turns") or ())
    if given.get("place") is not None:
        given["place"] = tuple(given["place"])
    return Sample(**given)
