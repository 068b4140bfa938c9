#!/usr/bin/env bash
# Runs a command, and fails unless a file is there afterwards. A run that SIGTERM stopped has saved its
# work and ends with status 0, which a cluster's job would take for the end of the run.
set -euo pipefail

if [[ $# -lt 2 || $1 == -* ]]; then
  echo "usage: launch/cluster/until.sh FILE COMMAND..." >&2
  exit 2
fi
file=$1
shift
"$@" &
child=$!
wait_seconds=${UNTIL_SECONDS-30}  # for a file of another host, which a network's disk shows late
trap 'wait_seconds=0; kill -TERM "$child" 2> /dev/null || true' TERM INT
status=0
wait "$child" || status=$?
while kill -0 "$child" 2> /dev/null; do  # a signal ended the waiting, and not yet the command
  status=0
  wait "$child" || status=$?
done
end=$((SECONDS + wait_seconds))
while [[ $status -eq 0 && ! -e $file && $SECONDS -lt $end ]]; do sleep 1; done
if [[ $status -eq 0 && ! -e $file ]]; then
  echo "$file is not there yet: the same command continues" >&2
  exit 75
fi
exit "$status"
