#!/usr/bin/env bash
# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
# The first thing to run on a machine with a GPU, from the root of a checkout: all that only a GPU can show, in less than 580 s.
#   OUT=folder PYTHON=python bash bench/first_gpu.sh
# Without PYTHON it takes the Python of the virtual environment that is active, else of .venv, else python3.
# Each step has a limit of its own, and what it finds is kept as it comes: $OUT/log.txt, $OUT/*.json.
set -u
cd "$(dirname "$0")/.." || exit 1
OUT=${OUT:-$PWD/out/first_gpu}
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -n "${VIRTUAL_ENV:-}" ] || [ ! -x .venv/bin/python ] || PYTHON=$PWD/.venv/bin/python
fi
if ! "$PYTHON" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("torch"))'; then
  echo "$PYTHON has no torch: install it (docs/gpu.md), or name the Python that has it: PYTHON=... bash bench/first_gpu.sh"
  exit 1
fi
# What a step has printed is in the log also if it is killed. SIGABRT, at its limit, lets Python say where it was.
ulimit -c 0
export OUT PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
  PYTHONFAULTHANDLER=1
mkdir -p "$OUT"
failed=0
step() { # limit in seconds, then the command
  local limit=$1
  shift
  printf '== %s (%s)\n' "$*" "$(date +%T)" | tee -a "$OUT/log.txt"
  timeout -s ABRT -k 2 "$limit" "$@" >>"$OUT/log.txt" 2>&1
  rc=$?
  [ $rc = 0 ] || failed=$((failed + 1))
  printf '   rc %s (%s)\n' $rc "$(date +%T)" | tee -a "$OUT/log.txt"
}
step 15 sh -c 'nvidia-smi; command -v gcc g++; df -h /dev/shm'
# The first import of torch may read gigabytes from a cold disk.
step 35 "$PYTHON" bench/first_gpu.py versions
if [ "$rc" = 3 ]; then # torch can't use a GPU, so that every other step would fail
  tail -n 2 "$OUT/log.txt" | head -n 1
  exit 1
fi
step 100 "$PYTHON" bench/first_gpu.py tests test/test_kernels.py test/test_fusing.py
step 60 "$PYTHON" bench/first_gpu.py tests test/test_networks.py test/test_segmenter.py -k 'not compiled'
step 55 "$PYTHON" bench/first_gpu.py faults
for network in laanet affnet lrnnet elanet fbsnet; do
  step 40 "$PYTHON" -m lightseg_ros.cli bench "$network" --device cuda --resolutions 1024x512 --rounds 3 \
    --contenders torch:float16 torch:float32 --out "$OUT/$network.json"
done
# All the time that is left.
step $((575 - SECONDS)) "$PYTHON" bench/first_gpu.py convolutions $((565 - SECONDS))
tail -c 9000 "$OUT/log.txt"
echo "$failed steps failed; the log is $OUT/log.txt"
[ $failed = 0 ]
