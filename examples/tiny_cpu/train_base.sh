#!/usr/bin/env bash
# Train the base model that this folder ships (base/) from scratch, with the project's own loop: half an
# hour on two cores. Two lessons: retrieval is learnt within 96 tokens first, then carried to 256.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

OUT=build/tiny_base
mkdir -p "$OUT"
python examples/tiny_cpu/make_data.py base --output "$OUT" --count 20000
python tools/preprocess_data.py --input "$OUT/text.jsonl" --output-prefix "$OUT/text" --tokenizer-model "$OUT/model"

lesson() { # LENGTH STEPS GLOBAL_BATCH OVERRIDES...: pack for this length and train
  local length=$1 steps=$2 batch=$3
  shift 3
  python tools/preprocess_data.py --input "$OUT/notes_$length.jsonl" --output-prefix "$OUT/notes_$length" \
    --tokenizer-model "$OUT/model"
  python tools/pack_corpus.py --tokens "$OUT/text" --output "$OUT/packed_text_$length" \
    --sequence-length "$length" --tokenizer-model "$OUT/model"
  python tools/pack_corpus.py --tokens "$OUT/notes_$length" --output "$OUT/packed_notes_$length" \
    --sequence-length "$length" --packing best-fit --tokenizer-model "$OUT/model"
  OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m megatron_ultralong.train --config examples/tiny_cpu/base.toml \
    --data.sequence_length "$length" --data.sources.0.index "$OUT/packed_text_$length" \
    --data.sources.1.index "$OUT/packed_notes_$length" --checkpoint.save "$OUT/lesson_$length" \
    --train.steps "$steps" --train.global_batch_size "$batch" --train.micro_batch_size "$((batch / 2))" "$@"
}
lesson 96 1500 48
lesson 256 1600 16 --model.init checkpoint --checkpoint.load "$OUT/lesson_96/step_001500" \
  --optimizer.decay cosine --optimizer.min_learning_rate 1e-4

python tools/convert_megatron_to_hf.py --load "$OUT/lesson_256/step_001600" --hf "$OUT/model" \
  --output "$OUT/base" --verify logits
printf '\nThe model: %s (shipped as examples/tiny_cpu/base)\n' "$OUT/base"
