"""Loads a run's newest checkpoint as resuming does, and writes what was loaded into another folder.

python -m tests.checkpoint.resave --config run.toml [--section.field value ...] --checkpoint.save FOLDER
writes FOLDER/again.
"""

from megatron_ultralong import cli
from megatron_ultralong.engine import groups
from megatron_ultralong.engine.checkpoint_writer import CheckpointWriter
from megatron_ultralong.training import checkpoints, setup

if __name__ == "__main__":
    config = cli.parse_command_line()
    run = setup.prepare(config)
    assert config.checkpoint.save is not None
    folder = config.checkpoint.save / "again"
    folder.mkdir()
    writer = CheckpointWriter()
    state = checkpoints.run_state(run.weights, run.optimizer, run.scheduler, run.step)
    request, failure = writer.plan(state, str(folder))
    assert failure is None
    writer.write(request)
    groups.finalize()
