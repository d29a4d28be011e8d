#!/usr/bin/env bash
# The small Llama from 256 to 2,048 tokens on long samples and short documents, validated as it goes on both.
#
#   bash examples/tiny_cpu/validate.sh
#
# Results: build/validated/curves.png, build/validated/extend/metrics.jsonl, and the best checkpoint under extend/best.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

BASE=examples/tiny_cpu/base
OUT=build/validated
export LC_ALL=C PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=true

rm -rf "$OUT"
python examples/tiny_cpu/make_data.py extend --output "$OUT/data"
samples() { # CORPUS SUFFIX: long and short samples of a file of documents
  python tools/preprocess_data.py --input "$OUT/data/$1.jsonl" --output-prefix "$OUT/$1" --tokenizer-model "$BASE"
  python tools/resample_corpus.py --tokens "$OUT/$1" --output "$OUT/resampled$2" --short-below 1024 --long-above 2048
  python tools/resample_corpus.py --tokens "$OUT/$1" --output "$OUT/resampled_short$2" --longest 1024 --keep-short 1
  for kind in "" _short; do
    python tools/pack_corpus.py --tokens "$OUT/$1" --documents "$OUT/resampled$kind$2" --output "$OUT/packed$kind$2" \
      --sequence-length 2048 --separator "<s>" --tokenizer-model "$BASE"
  done
}
samples corpus ""
samples heldout _held_out # which the base has not seen either; else pack_corpus.py --held-out keeps some of a corpus

python tools/convert_hf_to_megatron.py --hf "$BASE" --output "$OUT/megatron_base"
OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m megatron_ultralong.train --config examples/tiny_cpu/mixed.toml "$@"
python tools/plot_training.py "mixed=$OUT/extend/metrics.jsonl" --output "$OUT/curves.png"
