#!/usr/bin/env bash
# The engine, layouts, checkpoints and conversion in short form under the newest megatron-core, and a checkpoint crossing
# between it and the one that is installed, both ways.
#
#   tests/newest.sh [VERSION]     0.19.2 unless another is given; needs a package index, once
#
# Newer releases declare Python 3.12; their sources also run on 3.11 and 3.10, so the same environment serves: the wheel is
# unpacked into build/, with triton, which it imports, and put before the installed one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=${1:-0.19.2}
folder=$PWD/build/megatron-core-$version
if [[ ! -f $folder/complete ]]; then
  rm -rf "$folder"
  python -m pip install --quiet --no-deps --target "$folder" --ignore-requires-python --python-version 3.12 \
    --only-binary :all: "megatron-core==$version"
  python -c "import triton" 2>/dev/null || python -m pip install --quiet --no-deps --target "$folder" triton
  touch "$folder/complete"
fi
OTHER_MEGATRON_CORE=$folder python -m pytest tests/checkpoint/test_crossing.py
export PYTHONPATH=$folder:$PWD
python -W ignore -c "import megatron.core as core; assert core.__version__.startswith('$version'), core.__version__"
python -m pytest -n "${JOBS:-2}" --dist loadfile -m "not slow and not slurm" tests/engine tests/training/test_layouts.py \
  tests/checkpoint tests/training/test_resume.py tests/training/test_saving.py tests/training/test_offloaded_optimizer.py \
  tests/on_device/test_host_adam.py tests/convert/test_round_trip.py tests/convert/test_layouts.py
