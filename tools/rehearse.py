"""Take a training step of any rank of any cluster on this machine, without its GPUs, and say what it takes.

    python tools/rehearse.py --config run.toml --world-size 256 [--rank R] [--section.field value ...]

The run's own code, on tensors that have shapes and no memory, with collectives that go nowhere: peak memory by part and
where it is, messages, operators, FLOPs. Data and checkpoints are not needed. Fields of the run (--section.field value)
win over the file, as in training. Exit status 2 where the step breaks or does not fit --memory. docs/rehearsal.md.
"""

from __future__ import annotations

import argparse
import logging
import os
import traceback
from pathlib import Path

from megatron_ultralong.cli import exit_status, parse_command_line
from megatron_ultralong.config.checks import check_config
from megatron_ultralong.errors import UserError
from megatron_ultralong.families.decoder import decoder_at
from megatron_ultralong.files import atomic_file, disk_errors_named, writable, write_json

os.environ.setdefault("OMP_NUM_THREADS", "1")  # nothing is computed


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, metavar="RUN.toml", help="the run")
    parser.add_argument("--world-size", type=int, required=True, metavar="N", help="processes (GPUs) of the job")
    parser.add_argument("--rank", type=int, action="append", default=[], metavar="R", help=_RANK)
    parser.add_argument("--model", type=Path, metavar="config.json", help="in place of that in model.hf")
    parser.add_argument("--memory", default="", metavar="GB", help=_MEMORY)
    parser.add_argument("--document", type=int, default=0, metavar="TOKENS", help=_DOCUMENT)
    parser.add_argument(
        "--capability", default="9.0", metavar="8.0", help="compute capability of the GPU (9.0: Hopper)"
    )
    parser.add_argument("--layers", type=int, default=0, metavar="N", help=_LAYERS)
    parser.add_argument("--every-microbatch", action="store_true", help="rehearse all, where one stands for many alike")
    parser.add_argument("--brief", action="store_true", help="print what is needed alone, without tables")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with memory over the step drawn")
    parser.add_argument("--traceback", action="store_true", help="of a step that breaks")
    return parser.parse_known_args()


_OF_A_RUN = ("--dry-run", "--dry_run")
"""Words that training takes and that mean nothing here."""
_RANK = "which rank, may be repeated; without it: all that differ"
_MODEL = "give --model the model's config.json (examples/models has those of the examples)"
_MEMORY = "of one GPU, in GB, or a hardware profile's name or path: exit status 2 where the worst rank does not fit"
_DOCUMENT = (
    "length of each document of a source with document_mask; 0: a sample is one. Of a run with sources of both kinds, "
    "the step is of one with document_mask if this is given, else of one without"
)
_LAYERS = (
    "rehearse so many layers of each pipeline stage; what the others hold is then by planning/memory.py. Without it 2 "
    "with parallel.head_groups or mlp_chunk, whose layers take a great many operators, else all"
)


def main() -> None:
    """Rehearse, print, write, and judge."""
    own, words = _arguments()
    with exit_status():
        try:
            _rehearse(own, words)
        except UserError as error:
            if own.traceback and error.__cause__ is not None:
                traceback.print_exception(error.__cause__)
            raise


def _rehearse(own: argparse.Namespace, words: list[str]) -> None:
    config = parse_command_line(["--config", own.config, *(word for word in words if word not in _OF_A_RUN)])
    hf_config = decoder_at(_model(own.model or config.model.hf), _MODEL)
    if own.world_size < 1 or own.document < 0 or own.layers < 0:
        given = f"--world-size {own.world_size}, --document {own.document}, --layers {own.layers}"
        raise UserError(f"{given}: give at least 1, 0 and 0.")
    for name, path in (("--json", own.json), ("--html", own.html)):
        if path is not None and (path.is_dir() or not writable(path.parent)):
            raise UserError(f"{name} is {path}; give a file in a folder that can be written.")
    try:
        major, minor = (int(part) for part in own.capability.split("."))
    except ValueError:
        raise UserError(f"--capability is {own.capability}; give a GPU's compute capability, such as 9.0.") from None
    check_config(config, hf_config=hf_config, world_size=own.world_size, inputs=False)
    from megatron_ultralong.rehearsal import rehearsal_page, rehearsal_table  # torch takes seconds
    from megatron_ultralong.rehearsal.differing import rehearse_job
    from megatron_ultralong.rehearsal.limits import check_fits, device_memory
    from megatron_ultralong.rehearsal.record import as_json

    memory = device_memory(own.memory) if own.memory else 0
    logging.getLogger("megatron_ultralong.context_parallel").setLevel(logging.WARNING)
    job = rehearse_job(
        config,
        hf_config,
        own.world_size,
        own.rank,
        capability=None if config.parallel.device == "cpu" else (major, minor),
        document=own.document,
        every_microbatch=own.every_microbatch,
        layers=own.layers,
    )
    rehearsal_table.show(job, own.brief)
    if own.json is not None:
        with disk_errors_named(own.json):
            write_json(own.json, as_json(job))
    if own.html is not None:
        with disk_errors_named(own.html), atomic_file(own.html) as path:
            path.write_text(rehearsal_page.page(job, own.config, memory), encoding="utf-8")
    if memory:
        check_fits(job, memory)


def _model(path: Path) -> Path:
    """The file that is meant, where its folder may be named."""
    return path / "config.json" if path.is_dir() or path.suffix != ".json" else path


if __name__ == "__main__":
    main()
