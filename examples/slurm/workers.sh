#!/usr/bin/env bash
# An array that makes the E-steps of a run beside the job that trains it:
#   train=$(sbatch --parsable examples/slurm/one_gpu.sh my.yaml --output runs/mine)
#   sbatch --dependency=after:"$train" --array=1-64 examples/slurm/workers.sh runs/mine
#SBATCH --job-name=emfast-work
#SBATCH --ntasks=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=02:00:00
set -u
export PATH="$PWD/.venv/bin:$PATH"  # where emfast is installed; a job begins in the folder of its sbatch
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # which srun does not inherit since Slurm 22.05
run=${1:?"usage: sbatch --array=1-N examples/slurm/workers.sh RUN [--option VALUE ...]"}
shift

srun emfast work "$run" --wait 30 "$@"
