#!/usr/bin/env bash
# Train through Slurm.
#   tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of
#   train.py]
# From the environment: GPUS, GPUS_PER_NODE, CPUS_PER_TASK, SRUN_ARGS.
set -euo pipefail
: "${4:?usage: $0 PARTITION JOB_NAME CONFIG WORK_DIR [arguments of train.py]}"

# What continues a training that is stopped.
export SIGPLUG_RESUME="$(printf '%q ' "$0" "$@")--resume"
TOOLS=$(cd "$(dirname "$0")" && pwd)
GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-8}

# SRUN_ARGS is a list of arguments and must be split.
# shellcheck disable=SC2086
PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}" \
exec srun -p "$1" \
    --job-name="$2" \
    --gres="gpu:$GPUS_PER_NODE" \
    --ntasks="$GPUS" \
    --ntasks-per-node="$GPUS_PER_NODE" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$TOOLS/train.py" "$3" --work-dir "$4" \
    --launcher slurm "${@:5}"
