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
run=${1:?"usage: sbatch --array=1-N examples/slurm/workers.sh RUN [--option VALUE ...]"}
shift

srun .venv/bin/emfast work "$run" --wait 30 "$@"
