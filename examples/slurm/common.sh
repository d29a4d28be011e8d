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
: "${SHORT_TOTAL_TOKENS:=}"      # of a second source of extend, of short documents; empty: there is none
: "${GPU_MEMORY:=}"              # GB of one GPU, or a profile's name: a step that does not fit is not submitted
: "${REHEARSE:=1}"               # 0: submit training without rehearsing a step
: "${EVALUATE_FORM:=chat}"     # of prompts: chat, in the model's template; base, a text to be continued
: "${EVALUATE_SAMPLES:=25}"    # of each of EVALUATE_TASKS and lengths; RULER's own number is 500
# RULER's tasks that need no files. Its two of questions: add ruler/qa_1 ruler/qa_2, and --data to PROMPT_OPTIONS.
: "${EVALUATE_TASKS:=ruler/niah_single_1 ruler/niah_single_2 ruler/niah_single_3 ruler/niah_multikey_1 \
ruler/niah_multikey_2 ruler/niah_multikey_3 ruler/niah_multivalue ruler/niah_multiquery ruler/vt ruler/cwe ruler/fwe}"
: "${CRASHES_ALLOWED:=3}"      # times that a training job which broke, or lost a node, is queued again
need MODEL RUN LENGTH
need_number LENGTH NODES GPUS_PER_NODE CPUS_PER_TASK SHARDS TOTAL_TOKENS SFT_LENGTH
: "${HELD_OUT:=}"                # share of the documents that extend is validated on; empty: it trains on all
[[ -z $SHORT_TOTAL_TOKENS ]] || need_number SHORT_TOTAL_TOKENS SHORT_LENGTH
export VENV SETUP OMP_NUM_THREADS=$CPUS_PER_TASK PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

# The command of the preprocessing array (with --shard) and of joining what its tasks made (without).
read -ra PREPROCESS <<<"${PREPROCESS_OPTIONS:-}"
PREPROCESS=(python tools/preprocess_data.py --input "${CORPUS:-}" --output-prefix "$RUN/corpus"
  --tokenizer-model "$MODEL" --workers "${SLURM_CPUS_PER_TASK:-1}" "${PREPROCESS[@]}")

REQUEUE_CODE=85 # with which a rank exits that has saved and left before its last step

train_options() { # STAGE: set TRAIN_OPTIONS to the words that put these settings in place of EXAMPLE/STAGE.toml's
  local words=() second=() index=$RUN/packed checkpoint=$RUN/megatron length=$LENGTH extra=${EXTEND_OPTIONS:-}
  if [[ $1 == sft ]]; then
    index=$RUN/packed_chats checkpoint=$RUN/extend length=$SFT_LENGTH extra=${SFT_OPTIONS:-}
  elif [[ -n $SHORT_TOTAL_TOKENS ]]; then
    second=(--data.sources.1.index "$RUN/packed_short")
  fi
  [[ $1 == sft || -z $HELD_OUT ]] || second+=(--validation.sources.0.index "$RUN/packed_held_out")
  [[ $1 == sft || -z $HELD_OUT || -z $SHORT_TOTAL_TOKENS ]] ||
    second+=(--validation.sources.1.index "$RUN/packed_short_held_out")
  read -ra words <<<"$extra"
  # shellcheck disable=SC2034 # the scripts that source this use it
  TRAIN_OPTIONS=(--config "$EXAMPLE/$1.toml" --model.hf "$MODEL" --data.sequence_length "$length"
    --data.sources.0.index "$index" "${second[@]}" --checkpoint.load "$checkpoint" --checkpoint.save "$RUN/$1"
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

# Jobs of one process a GPU: train.sbatch and evaluate.sbatch.
meet() { # rendezvous and communication. Rank 0 listens on the job's first node, at a port that follows from its number
  : "${MASTER_ADDR:=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}"
  export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
  # How an error in communication ends a process is PyTorch's default (TORCH_NCCL_ASYNC_ERROR_HANDLING=3): without a
  # clean-up of NCCL's, which can hang. The flight recorder keeps the last collectives of every rank, and writes them to
  # RUN/logs when one of them times out.
  export NCCL_DEBUG="${NCCL_DEBUG:-WARN}" CUDA_DEVICE_MAX_CONNECTIONS=1
  export TORCH_NCCL_DUMP_ON_TIMEOUT=1 TORCH_FR_BUFFER_SIZE="${TORCH_FR_BUFFER_SIZE:-2000}"
  export TORCH_FR_DUMP_TEMP_FILE="${TORCH_FR_DUMP_TEMP_FILE:-$RUN/logs/collectives_${SLURM_JOB_ID}_rank_}"
  export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
  if [[ -n ${INTERFACE:-} ]]; then
    export NCCL_SOCKET_IFNAME=$INTERFACE GLOO_SOCKET_IFNAME=$INTERFACE
  fi
}

ranks() { # COMMAND...: on every node one process a GPU, with torchrun's variables. A minute after the first ends, all do
  local options status
  read -ra options <<<"$SRUN_OPTIONS"
  srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node="$GPUS_PER_NODE" --cpus-per-task="$CPUS_PER_TASK" \
    --kill-on-bad-exit=0 --wait=60 "${options[@]}" bash examples/slurm/rank.sh "$@" &
  SRUN=$!
  until wait "$SRUN"; do # which a signal ends too, before srun has ended
    status=$?
    kill -0 "$SRUN" 2>/dev/null || return "$status"
  done
}

time_left() { # what SLURM still gives this job, as D-HH:MM:SS; nothing where it sets no limit
  local left place parts=()
  left=$(squeue --noheader --job="$SLURM_JOB_ID" --format=%L 2>/dev/null) || return 0
  [[ ${left// /} =~ ^(([0-9]+)-)?(([0-9]+):)?([0-9]+):([0-9]+)$ ]] || return 0 # UNLIMITED
  for place in 2 4 5 6; do parts+=("$((10#${BASH_REMATCH[place]:-0}))"); done
  printf '%d-%02d:%02d:%02d\n' "${parts[@]}"
}
