#!/usr/bin/env bash
# One EM run on a cluster that may take the node back at any time:
#   sbatch examples/slurm/one_gpu.sh examples/cifar10_inpainting.yaml
# The job ends a preemption (SIGTERM) in an orderly way, and asks to be queued again shortly before its time is up. The
# same command then goes on from the last finished shard or checkpoint.
#SBATCH --job-name=emfast
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -u
export PATH="$PWD/.venv/bin:$PATH"  # where emfast is installed; a job begins in the folder of its sbatch
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # which srun does not inherit since Slurm 22.05
config=${1:?"usage: sbatch examples/slurm/one_gpu.sh CONFIG [--option VALUE ...]"}
shift

requeue() {
    echo "time is nearly up: queued again"
    scontrol requeue "$SLURM_JOB_ID"
}
trap requeue USR1

# In the background, so that the shell can answer the signal.
srun emfast train --config "$config" "$@" &
wait $!
status=$?
# A wait that a signal ended leaves the step to Slurm, which stops it when it requeues the job.
[ $status -gt 128 ] && wait
exit $status
