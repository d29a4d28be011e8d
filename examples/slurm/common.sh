# Sourced by submit.sh and, first thing, by every sbatch script here; not a job by itself.
#
# It reads the settings of the example named by EXAMPLE, refuses what cannot work in one sentence (exit status 2),
# and holds the few functions that several scripts need. README.md in this folder says what each part is for.
# shellcheck shell=bash
set -euo pipefail

stop() { # SENTENCE: end here, for a reason that the user can mend
  echo "error: $*" >&2
  exit 2
}

need() { # NAME...: variables that must have a value
  local name
  for name in "$@"; do
    [[ -n ${!name:-} ]] || stop "the variable $name has no value; give it one in ${EXAMPLE:-EXAMPLE}/settings.sh"
  done
}

need_number() { # NAME...: variables that must be a whole number above 0
  local name
  need "$@"
  for name in "$@"; do
    [[ ${!name} =~ ^[1-9][0-9]*$ ]] ||
      stop "$name is '${!name}'; give a whole number above 0, in $EXAMPLE/settings.sh or the environment"
  done
}

need_file() { # VARIABLE PATH WHAT: something that an earlier step, or the user, must have put there
  [[ -n $SRUN_OPTIONS ]] && return # a path of the container's; the tool there says what is missing
  [[ -e $2 ]] || stop "$2: no such $3; set $1, or make it first (examples/slurm/README.md has the order)"
}

[[ -n ${EXAMPLE:-} ]] || stop "EXAMPLE is not set; submit with examples/slurm/submit.sh FOLDER STEP, which sets it"
[[ -f $EXAMPLE/settings.sh ]] || stop "$EXAMPLE/settings.sh is missing; give a folder such as examples/llama3.1_8b_1m"
# shellcheck source=examples/llama3.1_8b_1m/settings.sh
source "$EXAMPLE/settings.sh"
# Defaults that are no matter of one example.
: "${VENV=.venv}"              # the Python environment, on a disk that every node sees; empty: python on PATH
: "${DEVICE:=gpu}"             # cpu: no GPUs are asked for, and the processes talk over gloo
: "${SRUN_OPTIONS:=}"          # for every srun, such as --container-image=...: then all Python runs by srun
: "${SETUP:=}"                 # a line of shell that each job runs first, such as: module load cuda/12.8
: "${NODE_OPTIONS=--exclusive --mem=0}" # of training jobs: whole nodes with all their memory
: "${GPU_MEMORY:=}"              # GB of one GPU, or a profile's name: a step that does not fit is not submitted
: "${REHEARSE:=1}"               # 0: submit training without rehearsing a step
: "${CRASHES_ALLOWED:=3}"      # times that a training job which broke, or lost a node, is queued again
need MODEL RUN LENGTH
need_number LENGTH NODES GPUS_PER_NODE CPUS_PER_TASK SHARDS TOTAL_TOKENS SFT_LENGTH
export VENV SETUP OMP_NUM_THREADS=$CPUS_PER_TASK PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

# The command of the preprocessing array (with --shard) and of joining what its tasks made (without).
read -ra PREPROCESS <<<"${PREPROCESS_OPTIONS:-}"
PREPROCESS=(python tools/preprocess_data.py --input "${CORPUS:-}" --output-prefix "$RUN/corpus"
  --tokenizer-model "$MODEL" --workers "${SLURM_CPUS_PER_TASK:-1}" "${PREPROCESS[@]}")

REQUEUE_CODE=85 # with which a rank exits that has saved and left before its last step

train_options() { # STAGE: set TRAIN_OPTIONS to the words that put these settings in place of EXAMPLE/STAGE.toml's
  local words=() index=$RUN/packed checkpoint=$RUN/megatron length=$LENGTH extra=${EXTEND_OPTIONS:-}
  if [[ $1 == sft ]]; then
    index=$RUN/packed_chats checkpoint=$RUN/extend length=$SFT_LENGTH extra=${SFT_OPTIONS:-}
  fi
  read -ra words <<<"$extra"
  # shellcheck disable=SC2034 # the scripts that source this use it
  TRAIN_OPTIONS=(--config "$EXAMPLE/$1.toml" --model.hf "$MODEL" --data.sequence_length "$length"
    --data.sources.0.index "$index" --checkpoint.load "$checkpoint" --checkpoint.save "$RUN/$1"
    --parallel.device "$DEVICE" --train.requeue_code "$REQUEUE_CODE" "${words[@]}")
}

enter() { # a line for the log, before a job's own work
  [[ -z ${SLURM_JOB_ID:-} ]] || echo "== ${SLURM_JOB_NAME:-job} $SLURM_JOB_ID," \
    "start $((${SLURM_RESTART_COUNT:-0} + 1)), on ${SLURM_JOB_NODELIST:-?}, $(date '+%F %T')"
}

inside() { # COMMAND...: one process of the project's Python: in the container that SRUN_OPTIONS names, else right here
  local options
  if [[ -z $SRUN_OPTIONS || -z ${SLURM_JOB_ID:-} ]]; then
    bash examples/slurm/inside.sh "$@"
  else
    read -ra options <<<"$SRUN_OPTIONS"
    srun --nodes=1 --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --overlap "${options[@]}" \
      bash examples/slurm/inside.sh "$@"
  fi
}

run() { # COMMAND...: show it, then run it inside
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  inside "$@"
}

finished() { # FOLDER: print the checkpoint of a run's last step, or say why there is none yet
  inside python examples/slurm/finished.py "$1"
}

time_left() { # what SLURM still gives this job, as D-HH:MM:SS; nothing where it sets no limit
  local left place parts=()
  left=$(squeue --noheader --job="$SLURM_JOB_ID" --format=%L 2>/dev/null) || return 0
  [[ ${left// /} =~ ^(([0-9]+)-)?(([0-9]+):)?([0-9]+):([0-9]+)$ ]] || return 0 # UNLIMITED
  for place in 2 4 5 6; do parts+=("$((10#${BASH_REMATCH[place]:-0}))"); done
  printf '%d-%02d:%02d:%02d\n' "${parts[@]}"
}
