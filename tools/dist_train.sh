#!/usr/bin/env bash
# Train on several GPUs, or in several processes on the CPU.
#   tools/dist_train.sh CONFIG GPUS [arguments of train.py]
# More than one machine: set NNODES, NODE_RANK, MASTER_ADDR and PORT.
set -euo pipefail
: "${2:?usage: $0 CONFIG GPUS [arguments of train.py]}"

# What continues a training that is stopped.
export SIGPLUG_RESUME="$(printf '%q ' "$0" "$@")--resume"
TOOLS=$(cd "$(dirname "$0")" && pwd)

PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}" \
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$2" \
    "$TOOLS/train.py" "$1" --launcher pytorch "${@:3}"
