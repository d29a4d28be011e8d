#!/usr/bin/env bash
# Inputs by URL against S3 as moto's server speaks it, on this machine.
#
#   tests/object_store.sh [bench]     the tests, or what reading costs; needs a package index, once
#
# s3fs holds python-dateutil below 3, and the environment of `make test` has a newer one: what is needed is unpacked into
# build/, and put before what is installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=$PWD/build/object-store
if [[ ! -f $folder/complete ]]; then
  rm -rf "$folder"
  python -m pip install --quiet --target "$folder" s3fs "moto[s3]" flask flask-cors
  touch "$folder/complete"
fi
export PYTHONPATH=$folder:$PWD
if [[ ${1:-} == bench ]]; then
  exec python tests/benchmarks/bench_remote.py
fi
REQUIRE_S3=1 python -m pytest tests/data/tokenizing/test_remote.py
