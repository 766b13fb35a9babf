#!/usr/bin/env bash
# One EM run on the GPUs of several nodes: sbatch --nodes=4 examples/slurm/many_nodes.sh CONFIG [--option VALUE ...]
#SBATCH --job-name=emfast
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -u
export PATH="$PWD/.venv/bin:$PATH"  # where emfast is installed; a job begins in the folder of its sbatch
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # which srun does not inherit since Slurm 22.05
config=${1:?"usage: sbatch examples/slurm/many_nodes.sh CONFIG [--option VALUE ...]"}
shift
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1

# Where the processes meet: a port of the first node that other jobs there do not use.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))

srun --kill-on-bad-exit=1 torchrun \
    --nnodes="$SLURM_NNODES" --nproc-per-node="$SLURM_GPUS_ON_NODE" \
    --rdzv-backend=c10d --rdzv-endpoint="$first:$port" --rdzv-id="$SLURM_JOB_ID" \
    -m emfast train --config "$config" "$@" &
wait $!
status=$?
[ $status -gt 128 ] && wait
exit $status
