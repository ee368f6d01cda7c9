#!/usr/bin/env bash
# One run, or each job of a sweep, on all devices of a machine. Processes share the pairs and give the digits of one.
#   PROCESSES=2 scripts/torchrun.sh train backbone=dinov2 finetune.blocks=2 run_dir=runs/two
#   PROCESSES=2 scripts/torchrun.sh train -m finetune=blocks_1,blocks_2 seed=1,2 run_dir=runs/sweep
# Without GPUs: add trainer.accelerator=cpu trainer.precision=32-true. On several machines: NODES, and MASTER (host:port)
# on each of them.
set -euo pipefail
: "${PROCESSES:=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)}"
: "${NODES:=1}"
((PROCESSES > 0)) || PROCESSES=1
verb=${1:?"usage: scripts/torchrun.sh VERB [OVERRIDE]..., VERB being train or evaluate"}
shift
if [[ -n ${MASTER:-} ]]; then
    where=(--nnodes "$NODES" --rdzv-backend c10d --rdzv-endpoint "$MASTER" --rdzv-id "${JOB_NAME:-semcorr}")
else
    where=(--standalone)
fi
exec torchrun "${where[@]}" --nproc-per-node "$PROCESSES" -m "semcorr.$verb" \
    "$@" trainer=ddp "trainer.devices=$PROCESSES" "trainer.num_nodes=$NODES"
