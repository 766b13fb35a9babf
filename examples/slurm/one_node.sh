#!/usr/bin/env bash
# One EM run on all GPUs of a node: sbatch examples/slurm/one_node.sh CONFIG [--option VALUE ...]
#SBATCH --job-name=emfast
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -u
export PATH="$PWD/.venv/bin:$PATH"  # where emfast is installed; a job begins in the folder of its sbatch
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # which srun does not inherit since Slurm 22.05
config=${1:?"usage: sbatch examples/slurm/one_node.sh CONFIG [--option VALUE ...]"}
shift
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1

# torchrun starts a process for each GPU, and ends all of them as soon as one ends by an error.
srun torchrun --standalone --nproc-per-node="$SLURM_GPUS_ON_NODE" \
    -m emfast train --config "$config" "$@" &
wait $!
status=$?
[ $status -gt 128 ] && wait
exit $status
