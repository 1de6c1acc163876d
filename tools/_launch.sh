# Shared by the scripts that start distributed jobs; sourced, never run. Callers define usage.
# shellcheck shell=bash

fail() {
    echo "error: $1" >&2
    usage
}

require_number() { # NAME VALUE MINIMUM
    [[ $2 =~ ^[0-9]{1,6}$ && $((10#$2)) -ge $3 ]] || fail "$1 must be a number >= $3, not '$2'"
}

tools_folder() {
    cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd
}

launch_processes() { # NGPUS SCRIPT ARGUMENTS...
    local ngpus=$1 script=$2 nnodes=${NNODES:-1}
    shift 2
    require_number NGPUS "$ngpus" 1
    require_number NNODES "$nnodes" 1
    local rendezvous
    if [[ -n ${PORT:-} || $nnodes -gt 1 ]]; then
        rendezvous=("--master_addr=${MASTER_ADDR:-127.0.0.1}" "--master_port=${PORT:-29500}")
    else
        # A rendezvous at port 0 takes whichever port is free, without a race for it.
        rendezvous=(--rdzv_backend=c10d --rdzv_endpoint=localhost:0)
    fi
    exec "${PYTHON:-python}" -m torch.distributed.run \
        "--nnodes=$nnodes" "--node_rank=${NODE_RANK:-0}" "--nproc_per_node=$ngpus" \
        "${rendezvous[@]}" "$(tools_folder)/$script" "$@" --launcher pytorch
}

launch_slurm() { # PARTITION JOB_NAME SCRIPT ARGUMENTS...
    local partition=$1 job_name=$2 script=$3
    shift 3
    local gpus=${GPUS:-8} cpus=${CPUS_PER_TASK:-5}
    require_number GPUS "$gpus" 1
    require_number CPUS_PER_TASK "$cpus" 1
    local per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    require_number GPUS_PER_NODE "$per_node" 0
    local resources=("--ntasks=$gpus" "--cpus-per-task=$cpus") extra
    if ((per_node > 0)); then
        resources+=("--gres=gpu:$per_node" "--ntasks-per-node=$per_node")
    fi
    read -r -a extra <<<"${SRUN_ARGS:-}"
    exec srun "--partition=$partition" "--job-name=$job_name" "${resources[@]}" \
        --kill-on-bad-exit=1 ${extra[@]+"${extra[@]}"} \
        "${PYTHON:-python}" -u "$(tools_folder)/$script" "$@" --launcher slurm
}
