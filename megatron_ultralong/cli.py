"""Command lines from typed functions; the only file that imports tyro.

A tool is a docstring and `run(function)`: the flags, their types and their help come from the function's
signature and docstring. A `UserError` becomes one sentence on stderr and exit status 2, and so does a file that the
user may not open.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.config import reading, sections
from megatron_ultralong.errors import UserError, report, shown

_PROGRAM = "python -m megatron_ultralong.train"
_FIELDS = (
    "The fields of the configuration, one TOML table a section; a flag here wins over the file. "
    "A list's values follow one another, or stand in one word with commas. "
    "--dry-run takes two steps, says what they need in memory and time, and keeps nothing."
)


def run(function: Callable[..., Any], arguments: Sequence[str] | None = None) -> None:
    """Parse the command line into `function`'s parameters, a dataclass's fields beside them, call it, and exit.

    Exit status: 0, or 2 for a bad flag or a `UserError`, or 130 after Ctrl-C, or 141 where stdout's reader has left.
    """
    import tyro

    gc.freeze()  # what is imported stays, and neither collections nor the exit need to look through it
    gc.enable()
    with exit_status():
        tyro.cli(function, args=arguments, config=(tyro.conf.OmitArgPrefixes,))


def run_commands(commands: dict[str, Callable[..., Any]], arguments: Sequence[str] | None = None) -> None:
    """The same of several commands of one tool: the first word names one."""
    import tyro

    gc.freeze()
    gc.enable()
    with exit_status():
        tyro.extras.subcommand_cli_from_dict(commands, args=arguments, config=(tyro.conf.OmitArgPrefixes,))


@contextlib.contextmanager
def exit_status() -> Iterator[None]:
    """Log to stderr; what the user can mend becomes one message and status 2, Ctrl-C status 130, `| head` 141."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("megatron").setLevel(logging.WARNING)  # megatron-core's own: every bucket, every import
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _leave_without_reader()
        raise
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # one process of a machine speaks for it
            report(error)
        sys.exit(2)
    except PermissionError as error:
        if error.filename is None:  # of no file
            raise
        sys.exit(report(UserError(f"{shown(error.filename)}: {error.strerror}; mend its permissions.")))
    except KeyboardInterrupt as error:
        sys.exit(report(error))


def _leave_without_reader() -> None:
    """Exit as after SIGPIPE where whoever read stdout has seen enough (`| head`); return where another pipe broke."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if any(events & select.POLLERR for _, events in poll.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the interpreter's own flush is quiet
        sys.exit(141)


def parse_command_line(arguments: Sequence[str] | None = None) -> sections.RunConfig:
    """The configuration that `--config run.toml --section.field value ...` states.

    `--help` prints every field with its docstring, type and default (the file's values where one is given)
    and exits.

    Args:
        arguments: the words after the program's name; None: this process's.

    Raises:
        UserError: no --config, or what `reading.load_config` finds.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    path, words = _take_config(words)
    if "--help" in words or "-h" in words:
        words = [word for word in words if word not in ("--help", "-h")]
        _print_help(reading.load_config(path, words) if path is not None else None)
    if path is None:
        raise UserError(f"--config is missing; give a TOML file: {_PROGRAM} --config RUN.toml.")
    return reading.load_config(path, words)


def _take_config(words: list[str]) -> tuple[Path | None, list[str]]:
    """The value of --config (the last one, if there are several), and the other words."""
    path, rest = None, []
    left = iter(words)
    for word in left:
        if word == "--config":
            value = next(left, "")
            if not value or value.startswith("--"):
                raise UserError("--config has no value; give a TOML file.")
            path = Path(value)
        elif word.startswith("--config="):
            path = Path(word.removeprefix("--config="))
        else:
            rest.append(word)
    return path, rest


def _print_help(values: sections.RunConfig | None) -> None:
    """Print every field of the configuration with its docstring, type and default, and exit with 0."""
    import tyro

    required: Any = tyro.MISSING
    if values is None:
        values = sections.RunConfig(
            model=sections.ModelConfig(hf=required),
            data=sections.DataConfig(sources=(sections.DataSource(index=required),), sequence_length=required),
            train=sections.TrainConfig(steps=required, global_batch_size=required),
            validation=sections.ValidationConfig(sources=(sections.DataSource(index=required),)),
        )
    tyro.cli(
        sections.RunConfig,
        args=["--help"],
        default=values,
        prog=f"{_PROGRAM} --config RUN.toml",
        description=_FIELDS,
        config=(tyro.conf.FlagConversionOff,),
        use_underscores=True,
    )
