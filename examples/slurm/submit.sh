#!/usr/bin/env bash
# Submit one step of an example, or all of them in order, to SLURM.
#
#   examples/slurm/submit.sh EXAMPLE STEP [sbatch option...]
#
#   EXAMPLE   a folder with settings.sh, extend.toml and sft.toml, such as examples/llama3.1_8b_1m
#   STEP      preprocess   tokenize the corpus (array job)           pack      merge, resample by length, pack
#             chats        tokenize and pack the chats               convert   Hugging Face model -> checkpoint
#             extend       continued pretraining at full length      sft       instruction tuning
#             export       checkpoint -> Hugging Face model          prompts   samples for evaluation
#             evaluate     compare with the model it came from       all       every step, each waiting for its own
#
# What it reads and where it runs stands in EXAMPLE/settings.sh; a variable set in the environment wins. Further words
# go to sbatch as they are: --partition=big --account=me. DRY_RUN=1 prints the sbatch commands instead.
# A training step is rehearsed before it is submitted, on this machine and without GPUs: whether it runs in that layout
# and fits GPU_MEMORY. That takes a minute or so of one core (of lean layers, head_groups, two are rehearsed);
# REHEARSE=0 turns it off.
# The job numbers are printed; the logs are in RUN/logs. examples/slurm/README.md explains every line.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if (($# < 2)) || [[ $1 == -h || $1 == --help ]]; then
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "examples/slurm/${BASH_SOURCE[0]##*/}"
  (($# > 0)) && [[ $1 == -h || $1 == --help ]] && exit 0
  exit 2
fi
EXAMPLE=${1%/} STEP=$2
shift 2
export EXAMPLE
source examples/slurm/common.sh
STEPS=(preprocess pack chats convert prompts extend sft export evaluate)
[[ $STEP == all || " ${STEPS[*]} " == *" $STEP "* ]] || stop "'$STEP' is no step; give one of: ${STEPS[*]} all"
[[ -n ${DRY_RUN:-} ]] || type -P sbatch >/dev/null ||
  stop "sbatch is not on this machine; submit from a login node, or look with DRY_RUN=1"
[[ -n ${SLURM_JOB_ID:-} ]] && unset "${!SLURM_@}" # submitted from inside a job: its numbers aren't the new one's

check_step() { # STEP: what the user provides must be there, and a configuration must fit its processes
  case $1 in
  preprocess) need CORPUS && need_file CORPUS "$CORPUS" "file or folder of documents" ;;
  chats) need CHATS && need_file CHATS "$CHATS" "file or folder of chats" ;;
  prompts | evaluate)
    need HELDOUT EVALUATE_TASKS EVALUATE_LENGTHS && need_file HELDOUT "$HELDOUT" "file of held-out documents"
    need_number EVALUATE_NODES EVALUATE_TENSOR EVALUATE_CONTEXT EVALUATE_SAMPLES
    ((EVALUATE_NODES * GPUS_PER_NODE == EVALUATE_TENSOR * EVALUATE_CONTEXT)) ||
      stop "$((EVALUATE_NODES * GPUS_PER_NODE)) processes are not EVALUATE_TENSOR $EVALUATE_TENSOR x EVALUATE_CONTEXT" \
        "$EVALUATE_CONTEXT; mend these, or EVALUATE_NODES, in $EXAMPLE/settings.sh"
    ;;
  esac
  need_file MODEL "$MODEL/config.json" "file of a model in Hugging Face format"
  if [[ $1 == extend || $1 == sft ]]; then
    train_options "$1"
    if [[ -n $SRUN_OPTIONS ]]; then # its Python and its MODEL are in the container, which no login node has
      echo "$1: the job itself checks its settings, in what SRUN_OPTIONS names"
    else
      inside python examples/slurm/check.py --world-size $((NODES * GPUS_PER_NODE)) "${TRAIN_OPTIONS[@]}"
      [[ -n ${DRY_RUN:-} || $REHEARSE == 0 ]] || rehearse "$1"
    fi
  fi
}

rehearse() { # STAGE: take one step as the ranks that differ would, on tensors without memory
  local words=(--world-size $((NODES * GPUS_PER_NODE)) --brief)
  [[ $DEVICE == cpu || -z $GPU_MEMORY ]] || words+=(--memory "$GPU_MEMORY")
  echo "$1: one step is rehearsed here first (REHEARSE=0 leaves that out)"
  inside python tools/rehearse.py "${words[@]}" "${TRAIN_OPTIONS[@]}"
}

resources() { # STEP: what the job asks for, one word a line
  local whole_nodes
  read -ra whole_nodes <<<"$NODE_OPTIONS"
  case $1 in
  preprocess) printf '%s\n' --array="0-$((SHARDS - 1))" --nodes=1 --ntasks=1 --cpus-per-task="${DATA_CPUS:-16}" ;;
  pack | chats | convert | export | prompts) printf '%s\n' --nodes=1 --ntasks=1 --cpus-per-task="${DATA_CPUS:-16}" ;;
  evaluate)
    printf '%s\n' --nodes="$EVALUATE_NODES" --ntasks-per-node="$GPUS_PER_NODE" --cpus-per-task="$CPUS_PER_TASK" \
      --time="${EVALUATE_TIME_LIMIT:-24:00:00}"
    ((${#whole_nodes[@]} == 0)) || printf '%s\n' "${whole_nodes[@]}"
    ;;
  extend | sft)
    printf '%s\n' --nodes="$NODES" --ntasks-per-node="$GPUS_PER_NODE" --cpus-per-task="$CPUS_PER_TASK" \
      --time="${TIME_LIMIT:-04:00:00}" --signal="USR1@${WARN_SECONDS:-600}"
    ((${#whole_nodes[@]} == 0)) || printf '%s\n' "${whole_nodes[@]}"
    ;;
  esac
  [[ $DEVICE == cpu ]] || case $1 in
  extend | sft | evaluate) echo "--gres=gpu:$GPUS_PER_NODE" ;;
  esac
}

script() { # STEP: the file to submit
  case $1 in
  extend | sft) echo examples/slurm/train.sbatch ;;
  *) echo "examples/slurm/$1.sbatch" ;;
  esac
}

declare -A JOBS=()
submit() { # STEP EARLIER...: queue it, to start once the EARLIER steps submitted here have ended well
  local step=$1 words ids=() earlier output='%x_%j.log'
  shift
  for earlier in "$@"; do
    [[ -z ${JOBS[$earlier]:-} ]] || ids+=("${JOBS[$earlier]}")
  done
  [[ $step != preprocess ]] || output='%x_%A_%a.log'
  mapfile -t words < <(resources "$step")
  words+=(--job-name="$step" --output="$RUN/logs/$output")
  ((${#ids[@]} == 0)) || words+=(--dependency="afterok:$(IFS=:; echo "${ids[*]}")" --kill-on-invalid-dep=yes)
  words+=("${OPTIONS[@]}" "$(script "$step")")
  if [[ -n ${DRY_RUN:-} ]]; then
    printf '%s' "STAGE=$step sbatch"
    printf ' %q' "${words[@]}"
    printf '\n'
    JOBS[$step]=$step
  else
    JOBS[$step]=$(STAGE=$step sbatch --parsable --export=ALL "${words[@]}" | cut -d ';' -f 1)
    echo "$step: job ${JOBS[$step]}"
  fi
}

OPTIONS=("$@")
enter
if [[ $STEP == all ]]; then
  for step in "${STEPS[@]}"; do check_step "$step"; done
  [[ -n ${DRY_RUN:-} ]] || mkdir -p "$RUN/logs"
  submit preprocess
  submit pack preprocess
  submit chats
  submit convert
  submit prompts
  submit extend pack convert
  submit sft extend chats
  submit export sft
  submit evaluate export prompts
else
  check_step "$STEP"
  [[ -n ${DRY_RUN:-} ]] || mkdir -p "$RUN/logs"
  submit "$STEP"
fi
echo "logs: $RUN/logs"
