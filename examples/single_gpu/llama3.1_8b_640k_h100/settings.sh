# What this example needs to know of your files and your machine. Each line is a default: set the variable in the
# environment for once, or edit it here for good. ../README.md says what each is for.
# shellcheck shell=bash disable=SC2034

# Files, on a disk that every node sees
: "${MODEL:=models/Llama-3.1-8B-Instruct}" # the model in Hugging Face format
: "${CORPUS:=data/corpus}"                 # documents for continued pretraining
: "${CHATS:=data/chats}"                   # chats for instruction tuning
: "${HELDOUT:=data/heldout.jsonl}"         # documents for evaluation, never trained on
: "${RUN:=runs/single_gpu_llama3.1_8b_640k_h100}" # everything that the steps make

# Data
: "${LENGTH:=655360}"          # tokens a sample in extend
: "${SFT_LENGTH:=8192}"         # tokens a sample in sft
: "${TOTAL_TOKENS:=125829120}" # after resampling: steps x samples x tokens of extend.toml, so one epoch
: "${SHARDS:=8}"                # tasks of the preprocessing array

# Nodes
: "${NODES:=1}"
: "${GPUS_PER_NODE:=1}"
: "${CPUS_PER_TASK:=16}"
: "${GPU_MEMORY:=80}" # GB of one, for the rehearsal of a step before it is submitted
: "${TIME_LIMIT:=72:00:00}" # of one training job; it is queued again until its stage is finished
: "${WARN_SECONDS:=21600}"  # before that limit, SLURM tells the job to save: more than a step and a save take

# Evaluation: each prompt lies over EVALUATE_TENSOR x EVALUATE_CONTEXT GPUs; its keys and values take two nodes
: "${EVALUATE_LENGTHS:=4096 8192 16384 32768 65536 131072 262144 524288 655360}" # tokens of RULER's prompts; needles go to LENGTH
: "${EVALUATE_NODES:=2}"
: "${EVALUATE_TENSOR:=1}"
: "${EVALUATE_CONTEXT:=2}"
