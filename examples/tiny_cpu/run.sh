#!/usr/bin/env bash
# The whole way on a laptop: a small Llama from 256 to 8,192 tokens of context, 32x, every stage the one a cluster runs.
#
#   bash examples/tiny_cpu/run.sh            under 12 minutes on two cores with AVX-512; with AVX2 more
#   QUICK=1 bash examples/tiny_cpu/run.sh    every stage, few and short steps: shows that it runs, not that it works
#
# Results: build/quickstart/results.json and build/quickstart/report.html.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

BASE=examples/ablations/base
OUT=build/quickstart
HELDOUT=$OUT/data/heldout.jsonl
LENGTH=12288 # of a sample of the extension, half past the target
PROCESSES=2 CONTEXT=2
LENGTHS=(256 1024 2048 4096 8192)
RULER=(ruler/niah_single_1 ruler/niah_multikey_1 ruler/vt) RULER_LENGTHS=(1024 8192)
EXTEND_STEPS=60 SFT_STEPS=40 CHATS=4000 REPLAY=1440 CELL=3 RECALL=400 WINDOWS=8 DEPTHS=11 RULER_SAMPLES=5
if [[ -n "${QUICK:-}" ]]; then
  LENGTH=3072 LENGTHS=(256 1024 2048)
  EXTEND_STEPS=5 SFT_STEPS=5 CHATS=200 REPLAY=200 CELL=1 RECALL=32 WINDOWS=1 DEPTHS=3 RULER_SAMPLES=1 RULER_LENGTHS=(1024)
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
# Chats of the kind that the base learnt first, within its own 256 tokens: a quarter of the extension's samples.
stage make_replay python examples/tiny_cpu/make_data.py base --output "$OUT/replay" --count "$REPLAY"
stage make_chats python examples/tiny_cpu/make_data.py chat --output "$OUT/data" --tokenizer "$BASE" --count "$CHATS"

stage preprocess python tools/preprocess_data.py \
  --input "$OUT/data/corpus.jsonl" --output-prefix "$OUT/corpus" --tokenizer-model "$BASE"
stage resample python tools/resample_corpus.py --tokens "$OUT/corpus" --output "$OUT/resampled" \
  --short-below 1024 --long-above 2048
stage pack python tools/pack_corpus.py --tokens "$OUT/corpus" --documents "$OUT/resampled" --output "$OUT/packed" \
  --sequence-length "$LENGTH" --separator "<s>" --tokenizer-model "$BASE"

stage preprocess_replay python tools/preprocess_data.py \
  --input "$OUT/replay/notes_256.jsonl" --output-prefix "$OUT/replay_chats" --tokenizer-model "$BASE"
stage pack_replay python tools/pack_corpus.py --tokens "$OUT/replay_chats" --output "$OUT/packed_replay" \
  --sequence-length "$LENGTH" --packing best-fit --tokenizer-model "$BASE"

stage hf_to_megatron python tools/convert_hf_to_megatron.py --hf "$BASE" --output "$OUT/megatron_base"
stage extend train --config examples/tiny_cpu/extend_8k.toml --data.sequence_length "$LENGTH" \
  --train.steps "$EXTEND_STEPS" --parallel.context "$CONTEXT"

stage preprocess_sft python tools/preprocess_data.py \
  --input "$OUT/data/sft.jsonl" --output-prefix "$OUT/sft_chats" --tokenizer-model "$BASE"
stage pack_sft python tools/pack_corpus.py --tokens "$OUT/sft_chats" --output "$OUT/packed_sft" \
  --sequence-length 1024 --packing best-fit --tokenizer-model "$BASE"
stage sft train --config examples/tiny_cpu/sft.toml --train.steps "$SFT_STEPS" \
  --optimizer.learning_rate 5e-5 --model.hf "$BASE" --parallel.context "$CONTEXT" \
  --checkpoint.load "$OUT/extend/step_$(printf %06d "$EXTEND_STEPS")"

stage megatron_to_hf python tools/convert_megatron_to_hf.py \
  --load "$OUT/sft/step_$(printf %06d "$SFT_STEPS")" --output "$OUT/extended" --verify logits

# The same prompts for both models: needles by length and depth, one key recalled in a short text, three of RULER's
# tasks. Needles and recall give away how an answer begins ("The red key is"); --past-context asks the base beyond its
# own 256 tokens too, for comparison.
prompts() { python tools/evaluate.py make --tokenizer "$BASE" --form chat --haystack "$HELDOUT" --output "$OUT/prompts" "$@"; }
answers() { # NAME MODEL
  python tools/evaluate.py run --model "$2" --name "$1" --form chat --past-context --lengths "${LENGTHS[@]}" \
    --task needles recall "${RULER[@]}" perplexity/by_position --samples-file "$OUT"/prompts/*/*.jsonl \
    "$OUT"/prompts/*/*/*.jsonl --documents "$HELDOUT" --windows "$WINDOWS" --output "$OUT/runs/$1"
}
stage make_needles prompts --task needles --lengths "${LENGTHS[@]}" --depths "$DEPTHS" --trials "$CELL" --lead-in
stage make_recall prompts --task recall --lengths 256 --samples "$RECALL" --lead-in
stage make_ruler prompts --task "${RULER[@]}" --lengths "${RULER_LENGTHS[@]}" --samples "$RULER_SAMPLES"
stage evaluate_base answers base "$BASE"
stage evaluate_extended answers extended "$OUT/extended"

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
stage compare python tools/evaluate.py compare "$OUT/runs/base" "$OUT/runs/extended" --extra "$OUT/extra.json" \
  --metrics "extend=$OUT/extend/metrics.jsonl" "sft=$OUT/sft/metrics.jsonl" --output "$OUT"
python examples/tiny_cpu/results.py "$OUT"

printf '\nResults: %s\nReport:  %s\n' "$OUT/results.json" "$OUT/report.html"
