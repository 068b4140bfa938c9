#!/usr/bin/env bash
# Plans every preset for the named slices, or for four common ones, and writes each table to
# benchmarks/results/plans/PRESET-SLICE.txt. --only=TEXT is passed on: the whole plan of a 7B model
# takes an hour on two cores.
#
#     benchmarks/plans.sh [--only=TEXT] [v5e:8x8 ...]
set -euo pipefail
cd "$(dirname "$0")/.."

only=()
if [[ ${1:-} == --only=* ]]; then
  only=("$1")
  shift
fi
slices=("$@")
[[ ${#slices[@]} -gt 0 ]] || slices=(v5e:4x4 v5e:8x8 v5p:2x2x2 v6e:4x4)
mkdir -p benchmarks/results/plans
for preset in srrag.py:llama2-7b srrag.py:phi3.5-mini srrag.py:qwen2.5-7b rag.py:bart-large; do
  for slice in "${slices[@]}"; do
    name=${preset#*:}-${slice//:/-}
    file=benchmarks/results/plans/$name.txt
    echo "$name"
    # A plan that does not fit ends with an error, which is a result too.
    python launch/plan.py --config="configs/$preset" --topology="$slice" "${only[@]}" \
      >"$file" 2> >(tee -a "$file" >&2) || true
  done
done
