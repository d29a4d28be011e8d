"""Train: continued pretraining to a longer context, then instruction tuning, with the same loop.

    torchrun --nproc-per-node 2 -m megatron_ultralong.train --config run.toml [--section.field value ...]

--dry-run builds everything, takes two steps at full length, says what they need in memory and time, and keeps
nothing. A run that finds a checkpoint in its `checkpoint.save` resumes from the newest. SIGTERM, SIGUSR1 and
`train.time_limit` end it with a checkpoint and exit status `train.requeue_code`; the same command goes on from it.
"""

from __future__ import annotations

import logging
import os
import sys


def main() -> None:
    """Parse the command line and train; exit status 2 for what the user can mend."""
    rank = int(os.environ.get("RANK", "0"))
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.ERROR, format="%(message)s", stream=sys.stderr)
    from megatron_ultralong.cli import exit_status, parse_command_line

    with exit_status():
        words = [word for word in sys.argv[1:] if word not in ("--dry-run", "--dry_run")]
        config = parse_command_line(words)
        if len(words) < len(sys.argv) - 1:
            from megatron_ultralong.training.dry_run import dry_run

            dry_run(config)
            return
        from megatron_ultralong.training.loop import train

        if train(config).stopped_by:
            sys.exit(config.train.requeue_code)


if __name__ == "__main__":  # megatron-core's checkpoint writer spawns processes that import this module
    main()
