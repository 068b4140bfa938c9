#!/usr/bin/env bash
# Runs one command on a Ray cluster of several machines, which lasts as long as the command.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/cluster/ray.sh --rank=I --head=ADDRESS [--port=6379] [--head-flags=FLAGS] COMMAND...

The same line on each machine, but for I: 0 on the machine with ADDRESS, which runs COMMAND, and any
other number on machines that join and wait. These may be started later and stopped at any time. All
need the same code in the same folder, the same files, and one token: in ~/.ray/auth_token, made by
`ray get-auth-token --generate`, or in RAY_AUTH_TOKEN.

FLAGS of `ray start` keep a place for COMMAND itself, such as --num-gpus=0 where it has the only GPU.

  launch/cluster/ray.sh --rank=0 --head=10.0.0.1 --head-flags=--num-gpus=0 \
      python launch/train.py --config=configs/prag.py --workdir=/mnt/shared/runs/prag \
      --executor=ray --ray_address=10.0.0.1:6379 --workers=8 --worker_resources='{"GPU": 1}'
TEXT
}

rank= head= port=6379 flags=
while [[ $# -gt 0 && $1 == -* ]]; do
  case $1 in
    --rank=?*) rank=${1#*=} ;;
    --head=?*) head=${1#*=} ;;
    --port=?*) port=${1#*=} ;;
    --head-flags=*) flags=${1#*=} ;;
    -h | --help) usage && exit 0 ;;
    *) echo "error: $1: not a flag of launch/cluster/ray.sh; see --help" >&2 && exit 2 ;;
  esac
  shift
done
if [[ -z $rank || -z $head || $# -eq 0 ]]; then
  usage >&2
  exit 2
fi

export RAY_AUTH_MODE=token
answers() { (: < "/dev/tcp/$head/$port") 2> /dev/null; }

if [[ $rank != 0 ]]; then
  until answers; do sleep 1; done
  ray start --address="$head:$port" --block || true  # ends with the head
  exit 0
fi
# Neither Ray nor the watcher holds this script's output open after the command has ended.
# shellcheck disable=SC2086
ray start --head --port="$port" $flags --block > /dev/null 2>&1 &
ray=$!
(while kill -0 $$; do sleep 1; done; kill "$ray") > /dev/null 2>&1 &
until answers; do
  if ! kill -0 "$ray" 2> /dev/null; then
    echo "error: \`ray start --head --port=$port $flags\` has failed; run it by itself to see why" >&2
    exit 1
  fi
  sleep 1
done
exec "$@"
