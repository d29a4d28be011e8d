#!/usr/bin/env bash
# Started by srun once for each process: gives it the variables that torchrun would, then becomes COMMAND.
#   srun bash examples/slurm/rank.sh COMMAND...
# It becomes the command (exec), so that SLURM's signals reach Python itself.
set -euo pipefail
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
exec bash examples/slurm/inside.sh "$@"
