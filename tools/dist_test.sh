#!/usr/bin/env bash
# Test on several GPUs, or in several processes on the CPU.
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]
# More than one machine: set NNODES, NODE_RANK, MASTER_ADDR and PORT.
set -euo pipefail
: "${3:?usage: $0 CONFIG CHECKPOINT GPUS [arguments of test.py]}"

TOOLS=$(cd "$(dirname "$0")" && pwd)

PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}" \
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$3" \
    "$TOOLS/test.py" "$1" "$2" --launcher pytorch "${@:4}"
