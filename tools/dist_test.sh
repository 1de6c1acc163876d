#!/usr/bin/env bash
# Test with several processes on this machine, or as one node of several.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/_launch.sh"

usage() {
    cat >&2 <<'USAGE'
usage: dist_test.sh CONFIG CHECKPOINT NGPUS [options of test.py]

NGPUS is the number of processes on this node: one a GPU, or CPU processes where there is no GPU.
Environment: NNODES (1), NODE_RANK (0), MASTER_ADDR (127.0.0.1), PORT (a free one on a single node,
29500 on several), PYTHON (python).
USAGE
    exit 2
}

[[ $# -ge 3 ]] || usage
launch_processes "$3" test.py "$1" "$2" "${@:4}"
