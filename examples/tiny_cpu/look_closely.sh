#!/usr/bin/env bash
# The quickstart's two models on the paper's grid of needles, 10 depths x 40 lengths, and on RULER's tasks that fit
# their 2,048 tokens and need no files: the pictures of docs/evaluation.md. After examples/tiny_cpu/run.sh.
#
#   bash examples/tiny_cpu/look_closely.sh
#
# Results: build/quickstart/closely/report.html, heatmap.png and ruler.png.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

BASE=examples/tiny_cpu/base
EXTENDED=build/quickstart/extended
HELDOUT=build/quickstart/data/heldout.jsonl
OUT=build/quickstart/closely
LENGTH=2048
TRIALS=${TRIALS:-4} SAMPLES=${SAMPLES:-10}
RULER=(ruler/niah_single_1 ruler/niah_single_2 ruler/niah_single_3 ruler/niah_multikey_1 ruler/niah_multikey_2
  ruler/niah_multikey_3 ruler/niah_multivalue ruler/niah_multiquery ruler/vt ruler/cwe ruler/fwe)

if [[ ! -e $EXTENDED/config.json ]]; then
  echo "error: $EXTENDED is missing; run examples/tiny_cpu/run.sh (make quickstart) first" >&2
  exit 2
fi
make() {
  python tools/evaluate.py make --tokenizer "$BASE" --form chat --haystack "$HELDOUT" --output "$OUT/prompts" "$@"
}
make --task needles --lengths "$LENGTH" --grid 40 --depths 10 --trials "$TRIALS" --lead-in
make --task "${RULER[@]}" --lengths 1536 "$LENGTH" --samples "$SAMPLES"
for model in "$BASE" "$EXTENDED"; do
  python tools/evaluate.py run --model "$model" --form chat --past-context --task needles ruler \
    --samples-file "$OUT"/prompts/*/*.jsonl "$OUT"/prompts/*/*/*.jsonl --output "$OUT/runs/${model##*/}"
done
python tools/evaluate.py compare "$OUT/runs/base" "$OUT/runs/extended" --output "$OUT"
