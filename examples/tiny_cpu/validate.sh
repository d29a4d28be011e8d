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
HELD_OUT=0.1 # of the documents
export LC_ALL=C PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=true

rm -rf "$OUT"
python examples/tiny_cpu/make_data.py extend --output "$OUT/data"
python tools/preprocess_data.py --input "$OUT/data/corpus.jsonl" --output-prefix "$OUT/corpus" --tokenizer-model "$BASE"
python tools/resample_corpus.py --tokens "$OUT/corpus" --output "$OUT/resampled" --short-below 1024 --long-above 2048
python tools/resample_corpus.py --tokens "$OUT/corpus" --output "$OUT/resampled_short" --longest 512 --keep-short 1

pack() { # NAME DOCUMENTS OPTIONS...
  python tools/pack_corpus.py --tokens "$OUT/corpus" --documents "$OUT/$2" --output "$OUT/$1" --sequence-length 2048 \
    --separator "<s>" --tokenizer-model "$BASE" --held-out "$HELD_OUT" "${@:3}"
}
pack long resampled
pack long_held_out resampled --part held-out
pack short resampled_short
pack short_held_out resampled_short --part held-out

python tools/convert_hf_to_megatron.py --hf "$BASE" --output "$OUT/megatron_base"
OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m megatron_ultralong.train --config examples/tiny_cpu/mixed.toml "$@"
python tools/plot_training.py "mixed=$OUT/extend/metrics.jsonl" --output "$OUT/curves.png"
