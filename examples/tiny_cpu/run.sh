#!/usr/bin/env bash
# The whole way on a laptop: a small Llama from 256 to 2,048 tokens of context, every stage the one a cluster runs.
#
#   bash examples/tiny_cpu/run.sh            under 12 minutes on two cores
#   QUICK=1 bash examples/tiny_cpu/run.sh    every stage, few steps: shows that it runs, not that it works
#
# Results: build/quickstart/results.json and build/quickstart/report.html.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

BASE=examples/tiny_cpu/base
OUT=build/quickstart
LENGTH=2048
PROCESSES=2 CONTEXT=2
EXTEND_STEPS=60 SFT_STEPS=100 CHATS=8000 CELL=8 RECALL=400 WINDOWS=24 DEPTHS=11
if [[ -n "${QUICK:-}" ]]; then
  EXTEND_STEPS=5 SFT_STEPS=5 CHATS=200 CELL=1 RECALL=32 WINDOWS=4 DEPTHS=3
fi
export LC_ALL=C PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=true

rm -rf "$OUT"
mkdir -p "$OUT"
: >"$OUT/seconds.tsv"
stage() { # NAME COMMAND...: run one stage and note how long it took
  local name=$1 start=$EPOCHREALTIME
  shift
  printf '\n== %s\n   %s\n' "$name" "$*"
  "$@"
  python -c "print(f'$name\t{$EPOCHREALTIME - $start:.1f}')" >>"$OUT/seconds.tsv"
}
train() { OMP_NUM_THREADS=1 torchrun --nproc-per-node "$PROCESSES" -m megatron_ultralong.train "$@"; }

stage make_data python examples/tiny_cpu/make_data.py extend --output "$OUT/data"
stage make_chats python examples/tiny_cpu/make_data.py chat --output "$OUT/data" --tokenizer "$BASE" --count "$CHATS"

stage preprocess python tools/preprocess_data.py \
  --input "$OUT/data/corpus.jsonl" --output-prefix "$OUT/corpus" --tokenizer-model "$BASE"
stage resample python tools/resample_corpus.py --tokens "$OUT/corpus" --output "$OUT/resampled" \
  --short-below 1024 --long-above 2048
stage pack python tools/pack_corpus.py --tokens "$OUT/corpus" --documents "$OUT/resampled" --output "$OUT/packed" \
  --sequence-length "$LENGTH" --separator "<s>" --tokenizer-model "$BASE"

stage hf_to_megatron python tools/convert_hf_to_megatron.py --hf "$BASE" --output "$OUT/megatron_base"
stage extend train --config examples/tiny_cpu/extend.toml --train.steps "$EXTEND_STEPS" --parallel.context "$CONTEXT"

stage preprocess_sft python tools/preprocess_data.py \
  --input "$OUT/data/sft.jsonl" --output-prefix "$OUT/sft_chats" --tokenizer-model "$BASE"
stage pack_sft python tools/pack_corpus.py --tokens "$OUT/sft_chats" --output "$OUT/packed_sft" \
  --sequence-length 1024 --packing best-fit --tokenizer-model "$BASE"
stage sft train --config examples/tiny_cpu/sft.toml --train.steps "$SFT_STEPS" --parallel.context "$CONTEXT" \
  --checkpoint.load "$OUT/extend/step_$(printf %06d "$EXTEND_STEPS")"

stage megatron_to_hf python tools/convert_megatron_to_hf.py \
  --load "$OUT/sft/step_$(printf %06d "$SFT_STEPS")" --output "$OUT/extended" --verify logits

python - "$OUT" "$PROCESSES" "$CONTEXT" <<'PY'
import json, pathlib, sys
out = pathlib.Path(sys.argv[1])
rows = [line.split("\t") for line in (out / "seconds.tsv").read_text().splitlines()]
(out / "extra.json").write_text(json.dumps({
    "hf_logits_max_abs_diff": json.loads((out / "extended/verification.json").read_text())["hf_logits_max_abs_diff"],
    "world_size": int(sys.argv[2]),
    "context_parallel_size": int(sys.argv[3]),
    "seconds": {name: float(seconds) for name, seconds in rows},
}))
PY
stage evaluate python tools/evaluate.py pair --base "$BASE" --extended "$OUT/extended" \
  --haystack "$OUT/data/heldout.jsonl" --documents "$OUT/data/heldout.jsonl" \
  --depths "$DEPTHS" --samples-per-cell "$CELL" --recall-samples "$RECALL" --recall-facts 1 --perplexity-windows "$WINDOWS" \
  --extra "$OUT/extra.json" --metrics "extend=$OUT/extend/metrics.jsonl" "sft=$OUT/sft/metrics.jsonl" --output "$OUT"

printf '\nResults: %s\nReport:  %s\n' "$OUT/results.json" "$OUT/report.html"
