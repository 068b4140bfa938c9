#!/usr/bin/env bash
# Plans every preset of every config, and writes benchmarks/results/plans/batches/PRESET.txt: the
# programs of every training, how often each runs, and how little is padding. Takes five minutes.
#
#     benchmarks/plans.sh [PRESET ...]
#
# With --compile every program is compiled as well, for benchmarks/results/plans/PRESET-SLICE.txt:
# the whole plan of a 7B model takes 7 to 20 minutes on two cores and 3 GB. --only=TEXT is passed on.
#
#     benchmarks/plans.sh --compile [--only=TEXT] [PRESET ...]
set -euo pipefail
cd "$(dirname "$0")/.."

compile=()
while [[ ${1:-} == --* ]]; do
  compile+=("$1")
  shift
done

# Preset, slice (cpu: of one CPU) and flags. The numbers of questions and passages are those of the
# built-in world or, where named, of Natural Questions (as RAG and DPR train on it) with Wikipedia's
# 21 million passages, of SQuAD (Self-Retrieval), and 300 questions to Wikipedia (PRAG).
plans() {
  wikipedia=--passages=21015324
  echo "srrag.py cpu"
  echo "srrag.py:two-indexes cpu"
  for model in llama2-7b phi3.5-mini qwen2.5-7b; do
    echo "srrag.py:$model v5e:8x8"
  done
  echo "rag.py cpu"
  echo "rag.py:bart-large v5e:4x4 --questions=79168 $wikipedia"
  echo "dpr.py cpu"
  echo "dpr.py:bert-base v5e:4x4 --questions=58880 $wikipedia"
  echo "self_retrieval.py cpu"
  for model in stablelm-3b llama2-7b; do
    echo "self_retrieval.py:$model v5e:8x8 --questions=87599 --passages=20963"
  done
  echo "prag.py cpu"
  for model in llama3.2-1b qwen2.5-1.5b llama3-8b; do
    for data in "" -2wiki -hotpot; do
      echo "prag.py:$model$data v5e:4x4 --questions=300 $wikipedia"
    done
  done
}

results=benchmarks/results/plans
mkdir -p "$results/batches"
while read -r preset slice flags; do
  [[ $# -eq 0 || " $* " == *" $preset "* ]] || continue
  name=${preset/.py/}
  name=${name//:/-}
  read -ra flags <<<"$flags"
  [[ $slice == cpu ]] || flags+=("--topology=$slice")
  echo "$name"
  if [[ ${#compile[@]} -eq 0 ]]; then
    python launch/plan.py --config="configs/$preset" --batches "${flags[@]}" \
      >"$results/batches/$name.txt"
  elif [[ $slice != cpu ]]; then
    file=$results/$name-${slice//:/-}.txt
    only=("${compile[@]/--compile/}")
    # A plan that does not fit ends with an error, which is a result too.
    python launch/plan.py --config="configs/$preset" "${flags[@]}" ${only[@]:+"${only[@]}"} \
      >"$file" 2> >(tee -a "$file" >&2) || true
  fi
done < <(plans)
