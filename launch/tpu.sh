#!/usr/bin/env bash
# Runs one command on every worker of a TPU slice that exists. Creates nothing and deletes nothing.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/tpu.sh [--project=PROJECT] --zone=ZONE NAME COMMAND...

Runs COMMAND, in the folder rag_jax of the home folder if it is there, on every worker of the slice
NAME, through `gcloud compute tpus tpu-vm ssh --worker=all`. The slice, the checkout and a work folder that all
workers see are yours to make and to take away:

  gcloud compute tpus tpu-vm create NAME --zone=ZONE --accelerator-type=v5litepod-64 \
      --version=v2-alpha-tpuv5-lite
  launch/tpu.sh --zone=ZONE NAME git clone REPOSITORY rag_jax
  launch/tpu.sh --zone=ZONE NAME 'pip install -e .[tpu]'
  launch/tpu.sh --zone=ZONE NAME python launch/train.py --config=configs/srrag.py:llama2-7b \
      --coordinator=auto --workdir=/mnt/shared/runs/srrag

Ctrl-C ends the connection, not what runs on the workers.
TEXT
}

flags=()
while [[ $# -gt 0 && $1 == -* ]]; do
  case $1 in
    --zone=?* | --project=?*) flags+=("$1") ;;
    -h | --help) usage && exit 0 ;;
    *) echo "error: $1: not a flag of launch/tpu.sh; see --help" >&2 && exit 2 ;;
  esac
  shift
done
if [[ $# -lt 2 || ${flags[*]-} != *--zone=* ]]; then
  usage >&2
  exit 2
fi
if ! command -v gcloud > /dev/null; then
  echo "error: gcloud is not installed: see https://cloud.google.com/sdk/docs/install" >&2
  exit 1
fi

name=$1
shift
# One argument is a line of shell; several are one command's words, quoted anew for the far side.
if [[ $# -eq 1 ]]; then line=$1; else line=${*@Q}; fi
exec gcloud compute tpus tpu-vm ssh "$name" "${flags[@]}" --worker=all \
  --command="cd ~/rag_jax 2> /dev/null; $line"
