#!/bin/bash
# NOT RUN: checked against documentation, on no cluster yet.
#
#   sbatch --export=ALL,DATA=/shared/imagenet examples/imagenet/launch/slurm.sh
#
# One process for each GPU, as JAX expects under Slurm: it gives a task the GPU of its
# SLURM_LOCALID. Every task must therefore see all GPUs of its node: ask for them with
# --gpus-per-node, never with --gpus-per-task.
#SBATCH --job-name=imagenet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --time=12:00:00
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
# Without "B:" the signal goes to the tasks, and not to this shell.
#SBATCH --signal=TERM@120

set -u
: "${DATA:?a folder that all nodes see}"
: "${SLURM_JOB_END_TIME:?needs a Slurm that tells it}"
OUT=${OUT:-runs/$SLURM_JOB_ID} # kept by a requeue; seen by all nodes
RESTARTS=3                     # after failures, of which a time limit is none
FAILURES=$OUT/failures         # a file with their number since the last time limit

# srun takes no --cpus-per-task from sbatch since Slurm 22.05.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
  .venv/bin/python -m examples.imagenet \
  --recipe mlperf-v1.0-resnet50-lars-8192 --dtype bfloat16 \
  --data "$DATA" --workers "$SLURM_CPUS_PER_TASK" \
  --out "$OUT" --existing resume --checkpoint-every 500
status=$?

# srun returns the highest status of its tasks. Told to stop, all save and exit with
# 143; but --kill-on-bad-exit gives 143 to the others of one that failed, too. So the
# clock tells the time limit, whose signal comes up to 60 s early, from a failure.
left=$((SLURM_JOB_END_TIME - $(date +%s)))
if ((status == 0 || status == 2 || status == 3)); then # finished, refused, diverged
  rm -f "$FAILURES"
  exit $status
elif ((status == 143 && left <= 180)); then
  echo "time limit: going on from the last checkpoint"
  rm -f "$FAILURES"
# SLURM_RESTART_COUNT would count the time limits too. A job that cannot count its
# failures, for example because the disk is full, is not requeued.
elif failed=$(cat "$FAILURES" 2>/dev/null || echo 0) && ((failed < RESTARTS)) &&
  mkdir -p "$OUT" && echo $((failed + 1)) >"$FAILURES"; then
  # After another process has died, the trainer exits with 75, or JAX aborts with 134.
  echo "status $status: a restart, in case a node was lost before Slurm knew"
else
  rm -f "$FAILURES"
  exit $status
fi
scontrol requeue "$SLURM_JOB_ID"
