"""Say what a run.toml would do with this many processes, or what is wrong with it, before it waits in a queue.

    python examples/slurm/check.py --config examples/llama3.1_8b_1m/extend.toml --world-size 256 [--section.field value]

Data and checkpoints are left out: the steps that make them may still be in the queue, and training looks at
them itself. Costs no torch and no GPU. Exit status 2 with one sentence a mistake.
"""

from __future__ import annotations

import argparse

from megatron_ultralong.cli import exit_status, parse_command_line
from megatron_ultralong.config.checks import check_config
from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.files import read_json
from megatron_ultralong.rope import config_json
from megatron_ultralong.rope.recipes import scaled


def summary(config: RunConfig, world_size: int) -> str:
    """One line: processes, layout, tokens a step, tokens in all."""
    parallel, train = config.parallel, config.train
    data_parallel = world_size // (parallel.tensor * parallel.context * parallel.pipeline)
    tokens = train.global_batch_size * config.data.sequence_length
    return (
        f"{world_size} processes = TP {parallel.tensor} x CP {parallel.context} x PP {parallel.pipeline} x DP "
        f"{data_parallel}; {train.global_batch_size} samples of {config.data.sequence_length:,} tokens a step, "
        f"{train.steps} steps, {tokens * train.steps / 1e9:.2f}B tokens"
    )


def main() -> None:
    """Check the configuration that the command line states."""
    parser = argparse.ArgumentParser(usage=__doc__, add_help=False, allow_abbrev=False)
    parser.add_argument("--world-size", type=int, required=True)
    own, words = parser.parse_known_args()
    with exit_status():
        config = parse_command_line([word for word in words if word not in ("--dry-run", "--dry_run")])
        hf_config = read_json(config.model.hf / "config.json", "the model's configuration", "set MODEL")
        check_config(config, hf_config=hf_config, world_size=own.world_size, inputs=False)
        if config.rope.kind != "keep":
            scaled(config_json.read(hf_config), config.rope, config.data.sequence_length)
        print(summary(config, own.world_size))


if __name__ == "__main__":
    main()
