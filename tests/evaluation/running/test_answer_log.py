import json
import multiprocessing
from pathlib import Path

import pytest

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.run_folder import SAMPLES, read_lines
from megatron_ultralong.evaluation.running.answer_log import LineFile, RunLog, key_of

ROWS = [{"number": 1, "said": "schön\n"}, {"number": 2}, {"number": 3, "said": "x" * 70_000}]
LINES = [json.dumps(row).encode() + b"\n" for row in ROWS]


def expected(size: int) -> list[dict]:
    """The rows whose lines are whole in the first `size` bytes."""
    ends = [sum(map(len, LINES[: count + 1])) for count in range(3)]
    return [row for row, end in zip(ROWS, ends, strict=True) if end <= size]


@pytest.mark.parametrize("size", [*range(45), 46, 70_000, sum(map(len, LINES)) - 1, sum(map(len, LINES))])
def test_a_file_cut_anywhere_loses_its_torn_line_alone(tmp_path: Path, size: int) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"".join(LINES)[:size])
    assert list(read_lines(path)) == expected(size)
    log = LineFile(path)
    log.append({"number": 4})
    log.close()
    assert list(read_lines(path)) == [*expected(size), {"number": 4}]


def test_a_last_line_of_nonsense_is_cut_off(tmp_path: Path) -> None:
    """As a power cut may leave it."""
    path = tmp_path / "lines.jsonl"
    path.write_bytes(LINES[0] + b"\0\0\0\0\n")
    LineFile(path).close()
    assert path.read_bytes() == LINES[0]


def test_a_broken_line_in_the_middle_is_no_kills_doing(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(LINES[0] + b"{broken\n" + LINES[1])
    with pytest.raises(UserError, match=r"lines\.jsonl, line 2: it is no JSON object; mend it, or begin the run anew"):
        list(read_lines(path))


def test_a_line_of_something_else(tmp_path: Path) -> None:
    (tmp_path / SAMPLES).write_bytes(b'{"task": "needles"}\n')
    with pytest.raises(UserError, match=r"samples\.jsonl, line 1: it is no line of a run"):
        RunLog(tmp_path)


def hold(path: Path, held: object, done: object) -> None:
    log = LineFile(path)
    held.set()  # type: ignore[attr-defined]
    done.wait()  # type: ignore[attr-defined]
    log.close()


def test_one_process_writes_a_run(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(path, held, done))
    process.start()
    held.wait()
    with pytest.raises(UserError, match="another process is writing this run; wait for it, or name another folder"):
        LineFile(path)
    done.set()
    process.join()
    LineFile(path).close()


def test_a_key_is_what_makes_a_sample_the_same() -> None:
    row = {"task": "ruler/vt", "length": 4096, "index": 3, "prompt_hash": "ab", "score": 1.0}
    assert key_of(row) == ("ruler/vt", 4096, 3, "ab")
