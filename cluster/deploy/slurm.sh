#!/bin/bash
# One command of stillhouse on a SLURM allocation: Ray's head on its first node, a raylet on every node, one driver.
#
#   sbatch --nodes=2 --gpus-per-node=4 cluster/deploy/slurm.sh train kd \
#       output_dir=$SCRATCH/runs data.root=$SCRATCH/images scaling.num_workers=8 \
#       teacher.checkpoint=$SCRATCH/runs/teacher/student.safetensors
#
# Submitted again, it continues from its last checkpoint; so it does by itself when SLURM requeues it. Run from the root
# of the tree, which every node sees, with its environment in .venv (or one that is active). The tree's folder is given
# by STILLHOUSE_TREE where SLURM copies the script elsewhere and SLURM_SUBMIT_DIR is not the tree.
#SBATCH --job-name=stillhouse
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail

cd "${STILLHOUSE_TREE:-${SLURM_SUBMIT_DIR:-$PWD}}"
if [ -d .venv ]; then PATH="$PWD/.venv/bin:$PATH"; fi

nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | tr ' ' '\n' | grep -v ':' | grep -v '^127\.' | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))
cpus=${SLURM_CPUS_PER_TASK:-$(nproc)}
gpus=${SLURM_GPUS_ON_NODE:-0}
export SRUN_CPUS_PER_TASK=$cpus # which srun does not take over from sbatch, since SLURM 22.05

# The cluster's token, only for this job and only for its user.
folder=$(mktemp -d "${SCRATCH:-$HOME}/stillhouse-ray-$SLURM_JOB_ID-XXXXXX")
(umask 077 && head -c 32 /dev/urandom | od -A n -t x1 | tr -d ' \n' > "$folder/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token

pids=()
finish() {
    trap - EXIT TERM INT
    kill "${pids[@]}" 2> /dev/null || true
    wait "${pids[@]}" 2> /dev/null || true
    rm -rf "$folder"
}
trap finish EXIT

# Temporary files of Ray on each node's own disk, under a short name: its sockets lie below.
common="--disable-usage-stats --temp-dir=/tmp/ray-$SLURM_JOB_ID --num-cpus=$cpus --num-gpus=$gpus --block"
srun --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --node-ip-address="$address" --port=$port $common &
pids+=($!)
for node in "${nodes[@]:1}"; do
    # Ray tries for minutes to reach a head that is not up yet.
    srun --nodes=1 --ntasks=1 --nodelist="$node" ray start --address="$address:$port" $common &
    pids+=($!)
done

# The driver waits for the head, then runs on this node, the first of the allocation. SLURM's SIGTERM, 120 s before the
# end of the time, goes to the driver: it writes a checkpoint and ends with 143.
export RAY_ADDRESS=$address:$port
for attempt in $(seq 90); do
    ray health-check --address "$RAY_ADDRESS" > /dev/null 2>&1 && break
    sleep 2
done
python -m ops "$@" &
driver=$!
trap 'kill -TERM $driver 2> /dev/null || true' TERM INT
status=0
wait $driver || status=$?
while kill -0 $driver 2> /dev/null; do wait $driver && status=0 || status=$?; done
trap - TERM INT
exit $status
