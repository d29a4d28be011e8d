import subprocess
import sys

import pytest

from megatron_ultralong import cli
from megatron_ultralong.config.reading import field_names, load_config
from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.errors import UserError

RUN = '[model]\nhf = "m"\n[data]\nsequence_length = 64\nsources = [{index = "a"}]\n[train]\nsteps = 3\n'


@pytest.fixture
def toml(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(RUN + "global_batch_size = 4\n")
    return path


def greet(*, name: str, times: int = 1) -> None:
    """Greet somebody.

    Args:
        name: whom to greet.
        times: how often.
    """
    if times < 0:
        raise UserError(f"--times is {times}; give 0 or more.")
    if times == 0:
        raise KeyboardInterrupt
    print(f"hello {name} " * times)


def test_a_tool_gets_its_flags_from_the_signature(capsys):
    cli.run(greet, ["--name", "you", "--times", "2"])
    assert capsys.readouterr().out == "hello you hello you \n"


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        (["--name", "you", "--times", "-1"], 2, "error: --times is -1; give 0 or more.\n"),
        (["--name", "you", "--times", "0"], 130, "stopped by Ctrl-C\n"),
    ],
)
def test_a_tools_exit_status(capsys, flags, status, said):
    with pytest.raises(SystemExit) as stopped:
        cli.run(greet, flags)
    assert stopped.value.code == status
    assert capsys.readouterr().err == said


def test_a_reader_that_has_seen_enough_is_no_trouble():
    code = "from megatron_ultralong import cli\ndef count():\n  for i in range(10**6): print(i)\ncli.run(count, [])"
    for unbuffered in ([], ["-u"]):
        running = subprocess.Popen(
            [sys.executable, *unbuffered, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert running.stdout and running.stderr
        assert running.stdout.readline() == "0\n"
        running.stdout.close()
        assert running.stderr.read() == ""
        assert running.wait() == 141


@pytest.mark.parametrize("flags", [["--nmae", "you"], [], ["--name", "you", "--times", "often"]])
def test_a_bad_flag_exits_with_2(capsys, flags):
    with pytest.raises(SystemExit) as stopped:
        cli.run(greet, flags)
    assert stopped.value.code == 2


def test_a_bug_keeps_its_traceback():
    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run(broken, [])


def test_a_file_that_may_not_be_opened_is_one_sentence(capsys):
    def read() -> None:
        raise PermissionError(13, "Permission denied", "a.bin")

    with pytest.raises(SystemExit) as stopped:
        cli.run(read, [])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: a.bin: Permission denied; mend its permissions.\n"


@pytest.mark.parametrize("spelling", [["--config", "{}"], ["--config={}"]])
def test_the_configuration_comes_from_the_file_and_the_flags(toml, spelling):
    words = [word.format(toml) for word in spelling]
    assert cli.parse_command_line([*words, "--train.seed", "5"]) == load_config(toml, ["--train.seed", "5"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--config is missing; give a TOML file: python -m megatron_ultralong.train --config RUN.toml."),
        (["--config"], "--config has no value; give a TOML file."),
        (["--config", "--train.seed", "5"], "--config has no value; give a TOML file."),
    ],
)
def test_a_run_needs_a_file(words, said):
    with pytest.raises(UserError) as caught:
        cli.parse_command_line(words)
    assert str(caught.value) == said


def help_text(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.parse_command_line([*words, "--help"])
    assert stopped.value.code == 0
    return " ".join(capsys.readouterr().out.replace("\u2502", " ").split())  # the box's rules and line breaks


def test_help_lists_every_field_with_its_docstring_type_and_default(capsys):
    text = help_text(capsys)
    for name in field_names(RunConfig):
        assert f"--{name} " in text
    assert "--train.steps INT Optimizer steps in all, those before a resume included. (required)" in text
    assert "--rope.kind {keep,ultralong,linear,ntk,llama3,yarn}" in text
    assert "What a run is judged by while it goes on" in text and "noqa" not in text
    assert "--optimizer.learning_rate FLOAT Peak learning rate. (default: 3e-05)" in text


def test_help_shows_the_files_values_as_defaults(capsys, toml):
    text = help_text(capsys, "--config", str(toml), "--train.seed", "77")
    assert "(default: 77)" in text and "--train.steps INT" in text and "(required)" not in text


def test_only_a_command_line_imports_tyro():
    code = "import sys; import megatron_ultralong.cli; sys.exit('tyro' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("rank", "local_rank", "said"),
    [("0", "0", "error: --times"), ("1", "1", ""), ("8", "0", "error, rank 8: --times")],
)
def test_one_process_of_a_machine_says_what_is_wrong(capsys, monkeypatch, rank, local_rank, said):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    with pytest.raises(SystemExit) as stopped:
        cli.run(greet, ["--name", "you", "--times", "-1"])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(said) if said else err == ""
