import hashlib
import os
import pathlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ultralong.errors import UserError, raise_problems
from megatron_ultralong.files import (
    atomic_directory,
    atomic_file,
    disk_errors_named,
    fingerprint,
    read_json,
    refuse_others,
    replace_directory,
    writable,
    write_json,
)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole(tmp_path):
    with atomic_file(tmp_path / "deep" / "a.txt") as temporary:
        temporary.write_text("new")
        assert names(tmp_path / "deep") == [temporary.name]
    assert names(tmp_path / "deep") == ["a.txt"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_folder_replaces_the_one_before(tmp_path):
    target = tmp_path / "out"
    for text in ("old", "new"):
        with atomic_directory(target) as temporary:
            (temporary / text).write_text(text)
    assert names(tmp_path) == ["out"] and names(target) == ["new"]


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("")
    with pytest.raises(RuntimeError), atomic_directory(target) as temporary:
        (temporary / "half").write_text("")
        raise RuntimeError
    assert names(tmp_path) == ["out"] and names(target) == ["old"]


def test_a_killed_writers_leftovers_do_not_get_in(tmp_path):
    target = tmp_path / "out"
    with atomic_directory(target) as temporary:
        leftover = temporary.name
    (tmp_path / leftover).mkdir()
    (tmp_path / leftover / "half").write_text("")
    with atomic_directory(target) as temporary:
        (temporary / "new").write_text("")
    assert names(target) == ["new"] and names(tmp_path) == ["out"]


KILLED = """
import os, pathlib, signal, sys
from megatron_ultralong import files
target = pathlib.Path(sys.argv[1])
if sys.argv[2] == "between":  # the old folder is aside, the new one not yet in its place
    real, calls = pathlib.Path.rename, []
    def rename(self, to):
        calls.append(to)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, to)
    pathlib.Path.rename = rename
with files.atomic_directory(target) as temporary:
    (temporary / "half").write_text("")
    if sys.argv[2] == "writing":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["writing", "between"])
def test_the_next_writer_removes_what_killed_ones_left(tmp_path, when):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("")
    for _ in range(2 if when == "writing" else 1):
        assert subprocess.run([sys.executable, "-c", KILLED, target, when]).returncode == -signal.SIGKILL
    assert any(name != "out" for name in names(tmp_path))
    if when == "writing":
        assert names(target) == ["old"]
    with atomic_directory(target) as temporary:
        (temporary / "new").write_text("")
    assert names(target) == ["new"] and names(tmp_path) == ["out"]


def test_the_next_writer_of_a_file_removes_what_killed_ones_left(tmp_path):
    code = "import os, sys; from pathlib import Path; from megatron_ultralong import files\n"
    code += "with files.atomic_file(Path(sys.argv[1])) as half:\n    half.write_text('half'); os.kill(os.getpid(), 9)"
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", code, tmp_path / "a.bin"]).returncode == -signal.SIGKILL
    (tmp_path / "mine.tmp").write_text("")
    with atomic_file(tmp_path / "a.bin") as temporary:
        temporary.write_text("whole")
    assert names(tmp_path) == ["a.bin", "mine.tmp"]


class Disk:
    """Records what is synced, and whether a rename finds all that it publishes synced as it is."""

    def __init__(self, monkeypatch) -> None:
        self.synced, self.renamed, fsync = {}, [], os.fsync
        self.replace, self.rename = pathlib.Path.replace, pathlib.Path.rename

        def spy(handle):
            fsync(handle)
            found = os.fstat(handle)
            self.synced[found.st_ino] = found.st_mtime_ns, found.st_size

        monkeypatch.setattr(os, "fsync", spy)
        monkeypatch.setattr(pathlib.Path, "replace", lambda path, to: self.publish(path, to, self.replace))
        monkeypatch.setattr(pathlib.Path, "rename", lambda path, to: self.publish(path, to, self.rename))

    def publish(self, path, to, move):
        for entry in (path, *path.rglob("*")):
            if ".tmp" in path.name and not entry.is_symlink():
                found = entry.stat()
                assert self.synced.get(found.st_ino) == (found.st_mtime_ns, found.st_size), f"{entry} is not synced"
        self.renamed.append(Path(to).name)
        return move(path, to)

    def knows(self, folder):
        """The names in a folder are on the disk."""
        return self.synced.get(folder.stat().st_ino) == (folder.stat().st_mtime_ns, folder.stat().st_size)


def test_all_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    write_json(tmp_path / "a.json", {})
    assert disk.knows(tmp_path)
    with atomic_directory(tmp_path / "out") as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "b").write_text("b")
        (temporary / "c").write_text("c")
        (temporary / "link").symlink_to("nowhere")
    assert disk.knows(tmp_path) and disk.renamed == ["a.json", "out"]


def test_a_disk_that_refuses_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"x\.html: cannot be written \(.*\); free some space or choose another place\."
    ):
        with disk_errors_named(tmp_path / "file" / "x.html"), atomic_file(tmp_path / "file" / "x.html"):
            pass
    with pytest.raises(UserError, match="file: cannot be written \\(9 requested and 2 written: the disk may be full"):
        with disk_errors_named(tmp_path / "file"):
            raise OSError("9 requested and 2 written")
    assert writable(tmp_path) and writable(tmp_path / "new" / "folder")
    assert not writable(tmp_path / "file") and not writable(tmp_path / "file" / "below")


def test_a_living_writers_folder_stays(tmp_path):
    with atomic_directory(tmp_path / "out") as temporary:
        alive = temporary.with_name(temporary.name.replace(str(os.getpid()), str(os.getppid())))
        alive.mkdir()
    with atomic_directory(tmp_path / "out"):
        pass
    assert names(tmp_path) == sorted([alive.name, "out"])


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with atomic_directory(tmp_path / "link") as temporary:
        (temporary / "new").write_text("")
    assert (tmp_path / "link").is_symlink() and names(tmp_path / "real") == ["new"]
    assert names(tmp_path) == ["link", "real"]


def test_only_what_is_ones_own_is_replaced(tmp_path):
    refuse_others(tmp_path / "new", ["a"])
    (tmp_path / "a").write_text("")
    refuse_others(tmp_path, ["a", "b"])
    with pytest.raises(UserError, match=r"holds a, which would be deleted; name another folder\.$"):
        refuse_others(tmp_path, ["b"])
    with pytest.raises(UserError, match=r"a is a file; name a folder\.$"):
        refuse_others(tmp_path / "a", ["a"])
    with pytest.raises(UserError, match=r"--output s3://\.\.\.: only local files are written"):
        refuse_others(Path("s3://bucket/list"), ["a"])


def test_replace_directory_without_a_target(tmp_path):
    (tmp_path / "a").mkdir()
    replace_directory(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path) == ["b"]


def test_json_comes_back(tmp_path):
    write_json(tmp_path / "a.json", {"key": ["\u00e9", 1, None]})
    assert read_json(tmp_path / "a.json", "the list", "write it") == {"key": ["\u00e9", 1, None]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "{path}: the list is missing; write it."),
        (b'{"a": 1,\n "b": }', "{path}, line 2: the list is not JSON (Expecting value); write it."),
        (b"\xff\xff", "{path}: the list cannot be read ("),
    ],
)
def test_bad_json_is_named(tmp_path, content, said):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json(path, "the list", "write it")
    assert str(caught.value).startswith(said.format(path=path))


def test_a_small_files_fingerprint_is_over_size_and_content(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"hello")
    assert fingerprint(path) == hashlib.sha256(b"5hello").hexdigest()


@pytest.mark.parametrize("at", [0, 8 * 2**20 - 1])
def test_a_large_files_fingerprint_sees_both_ends(tmp_path, at):
    content = bytearray(8 * 2**20)
    path = tmp_path / "a"
    path.write_bytes(content)
    before = fingerprint(path)
    content[at] = 1
    path.write_bytes(content)
    assert fingerprint(path) != before


def test_a_large_files_fingerprint_sees_its_length(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(8 * 2**20))
    before = fingerprint(path)
    path.write_bytes(bytes(8 * 2**20 + 1))
    assert fingerprint(path) != before


def test_no_problem_raises_nothing_and_one_stands_alone():
    raise_problems("run.toml", [])
    with pytest.raises(UserError) as caught:
        raise_problems("run.toml", ["a is 1; give 2."])
    assert str(caught.value) == "a is 1; give 2."
    with pytest.raises(UserError) as caught:
        raise_problems("run.toml", ["a is 1; give 2.", "b is 2; give 3."])
    assert str(caught.value) == "run.toml has 2 mistakes:\n  a is 1; give 2.\n  b is 2; give 3."
