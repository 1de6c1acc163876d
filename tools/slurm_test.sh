#!/usr/bin/env bash
# Test as a Slurm job.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/_launch.sh"

usage() {
    cat >&2 <<'USAGE'
usage: slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]

Environment: GPUS (8, in all), GPUS_PER_NODE (8, or GPUS if fewer; 0 asks Slurm for no GPU and runs
GPUS CPU processes), CPUS_PER_TASK (5), SRUN_ARGS (more options of srun), PYTHON (python).
USAGE
    exit 2
}

[[ $# -ge 4 ]] || usage
launch_slurm "$1" "$2" test.py "$3" "$4" "${@:5}"
