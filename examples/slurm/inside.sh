#!/usr/bin/env bash
# The environment of every Python here, on the host or in the container that SRUN_OPTIONS names; then becomes COMMAND.
#   bash examples/slurm/inside.sh COMMAND...
# With VENV empty, Python is the one on PATH.
set -euo pipefail
eval "${SETUP:-}"
if [[ -n ${VENV:-} ]]; then
  [[ -x $VENV/bin/python ]] || {
    echo "error: $VENV/bin/python is missing on $(hostname); make the environment (make test does), or set VENV" >&2
    exit 2
  }
  [[ $VENV == /* ]] || VENV=$PWD/$VENV
  export PATH="$VENV/bin:$PATH"
fi
exec "$@"
