#!/usr/bin/env bash
#SBATCH --job-name=semcorr
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# A run or a sweep as one SLURM job, which puts itself back into the queue two minutes before its time is over and goes
# on where it was: a sweep by itself, since its directory says what is missing.
#   sbatch scripts/slurm.sh train -m experiment=sweep_blocks run_dir=runs/sweep_blocks
#   sbatch --gpus-per-node=4 scripts/slurm.sh evaluate -m backbone=dinov2,dinov3 run_dir=runs/two
# A job of SLURM per job of a sweep: python -m semcorr.train -m ... hydra/launcher=submitit_slurm
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$PWD}"
if [[ -z ${MASTER:-} && ${SLURM_JOB_NUM_NODES:-1} -gt 1 ]]; then
    echo "Error: one node a job. For several, start scripts/torchrun.sh on each with srun, MASTER and NODES" >&2
    exit 2
fi
again() {
    echo "Time is nearly over: back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
}
trap again USR1
PROCESSES=${SLURM_GPUS_ON_NODE:-1} bash "${SEMCORR_SCRIPTS:-scripts}/torchrun.sh" "$@" &
wait $!
