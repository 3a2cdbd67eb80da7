#!/bin/bash
# Train one run per task of a Slurm job array: sbatch --array=0-7 examples/slurm.sh configs /shared/outputs
# CONFIGS holds 0.yaml, 1.yaml, …, each with a name of its own. A task that is preempted or reaches its time limit saves
# a checkpoint, is queued again, and goes on from there; a finished one ends at once.
#SBATCH --job-name=hra-diffusion
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=24G
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -u
configs=$1 output=$2/$SLURM_ARRAY_TASK_ID  # a folder per task: machines can't share the index of one

hra-diffusion train --config "$configs/$SLURM_ARRAY_TASK_ID.yaml" --output "$output" --resume &
process=$!
trap 'kill -TERM "$process"' TERM
while kill -0 "$process" 2> /dev/null; do
    wait "$process"  # also returns at a signal
    code=$?
done
if [ "$code" = 130 ]; then  # stopped with a checkpoint
    scontrol requeue "$SLURM_ARRAY_JOB_ID"_"$SLURM_ARRAY_TASK_ID"
fi
exit "$code"
