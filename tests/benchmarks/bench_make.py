"""CPU seconds to make a sample of each RULER task and of needles, and RULER's own script where its clone is on disk.

    OFFICIAL_RULER=DIR python tests/benchmarks/bench_make.py --tokenizer MODEL --haystack books.jsonl

Both sides in this process, one core, tokenizers loaded; RULER's time is that of the function that its script calls, its
search for the haystack's size included, for --samples samples. Its packages (wonderwords, nltk, scipy, tqdm, tenacity)
must be installed; a task whose script cannot run says why. Essays are the haystack's first texts; where the clone's
english_words.json is a pointer to LFS, made-up words stand in for it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import runpy
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_ultralong.cli import run
from megatron_ultralong.evaluation.benchmarks.counting import counter_of
from megatron_ultralong.evaluation.benchmarks.ruler.ruler_clone import wording_of
from megatron_ultralong.evaluation.benchmarks.words import MadeUp
from megatron_ultralong.evaluation.corpus_texts import iterate_texts
from megatron_ultralong.evaluation.plain_tokenizer import tokenizer_of
from megatron_ultralong.evaluation.registry import MakeOptions, find_tasks
from megatron_ultralong.files import write_json

SCRIPTS = {
    "niah": ("niah.py", "generate_samples"),
    "vt": ("variable_tracking.py", "sys_vartrack_w_noise_random"),
    "cwe": ("common_words_extraction.py", "sys_word_pair_random"),
    "fwe": ("freq_words_extraction.py", "sys_kwext"),
}
ARGUMENTS = {
    "niah_single_1": "--type_haystack noise --type_needle_k words --type_needle_v numbers",
    "niah_single_2": "--type_haystack essay --type_needle_k words --type_needle_v numbers",
    "niah_multikey_2": "--type_haystack needle --type_needle_k words --type_needle_v numbers",
    "niah_multikey_3": "--type_haystack needle --type_needle_k uuids --type_needle_v uuids",
    "vt": "--num_chains 1 --num_hops 4",
    "cwe": "--freq_cw 30 --freq_ucw 3 --num_cw 10",
    "fwe": "--alpha 2.0",
}
BUDGETS = {"vt": 30, "cwe": 120, "fwe": 50}


def official(folder: Path, name: str, tokenizer: Path, length: int, samples: int) -> float:
    """Seconds of RULER's own function for so many samples."""
    file, function = SCRIPTS.get(name, SCRIPTS["niah"])
    script = folder / "scripts/data/synthetic" / file
    wording = wording_of(folder)
    template = {"vt": wording.vt, "cwe": wording.cwe, "fwe": wording.fwe}.get(name, wording.niah)
    words = f"--save_dir {folder} --save_name {name} --tokenizer_path {tokenizer} --tokenizer_type hf --num_samples 1"
    words += f" --max_seq_length {length} --tokens_to_generate {BUDGETS.get(name, 128)} {ARGUMENTS[name]}"
    before = sys.argv, list(sys.path)
    sys.argv = [str(script), *words.split(), "--template", template.text + template.prefix]
    sys.path[:0] = [str(script.parent), str(script.parents[1])]
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            module = runpy.run_path(str(script), run_name="ruler")
            call: Callable[..., Any] = module[function]
            given: dict[str, Any] = {"num_samples": samples, "max_seq_length": length}
            if name == "vt":
                example = call(num_samples=1, max_seq_length=500, incremental=5)[0]
                given |= {"icl_example": example, "final_output": True}
            elif name != "fwe":
                given["save_dir"] = folder
            start = time.process_time()
            made = call(**given)
            seconds = time.process_time() - start
        assert len(made) == samples
        return seconds
    finally:
        sys.argv, sys.path[:] = before[0], before[1]
        for module_name in ("constants", "tokenizer", "manifest_utils"):
            sys.modules.pop(module_name, None)


def main(
    *, tokenizer: Path, haystack: Path, length: int = 131_072, longest: int = 1 << 20, samples: int = 2,
    data: Path | None = None,
) -> None:  # fmt: skip
    """Print a line a task.

    Args:
        tokenizer: a folder in Hugging Face format.
        haystack: texts.
        length: compared with RULER's scripts.
        longest: one sample of it a task is timed, the haystack counted.
        samples: of each task for the comparison.
        data: folder of SQuAD's and HotpotQA's files; without it qa_1 and qa_2 are left out.
    """
    loaded = tokenizer_of(tokenizer, "base")
    start = time.process_time()
    counter_of(loaded)
    print(f"finding out whether gigatoken counts alike: {time.process_time() - start:.2f} s, once a command")
    clone = os.environ.get("OFFICIAL_RULER")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "RULER"
        if clone:
            shutil.copytree(clone, folder)
            text = " ".join(text for text, _ in zip(iterate_texts(haystack), range(2000), strict=False))
            lists = folder / "scripts/data/synthetic/json"
            write_json(lists / "PaulGrahamEssays.json", {"text": text})
            if not (lists / "english_words.json").read_text(encoding="utf-8").startswith("{"):
                write_json(lists / "english_words.json", {str(i): word for i, word in enumerate(MadeUp()[:300_000])})
        logging.disable(logging.INFO)
        for task in find_tasks(["ruler", "needles", "recall"]):
            name = task.name.partition("/")[2]
            if name.startswith("qa") and data is None:
                continue

            def made(length: int, count: int, first: int, make: Any = task.make) -> float:
                options = MakeOptions(
                    tokenizer=loaded, lengths=(length,), count=count, only=range(first, first + count),
                    haystack=haystack, data=data,
                )  # fmt: skip
                start = time.process_time()
                list(make(options))
                return time.process_time() - start

            first, later = made(longest, 1, 0), made(longest, 1, 1)
            line = f"{task.name:24} {longest:,} tokens: first {first:6.2f} s, later {later:6.3f} s"
            if clone and name in ARGUMENTS:
                ours = made(length, samples, 0)
                try:
                    theirs = official(folder, name, tokenizer, length, samples)
                    line += (
                        f"; {samples} of {length:,}: {ours:6.3f} s, RULER's own {theirs:7.2f} s, {theirs / ours:5.0f} x"
                    )
                except (ImportError, LookupError, OSError, ValueError) as error:
                    line += f"; RULER's own script does not run: {type(error).__name__}"
            print(line, flush=True)


if __name__ == "__main__":
    run(main)
