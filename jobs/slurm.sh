#!/usr/bin/env bash
# A Ray cluster for one run inside a Slurm job. OUT and the model must be on a shared file system or object store.
#   sbatch --nodes 4 --gpus-per-node 4 jobs/slurm.sh run mine/rare.toml --out /shared/rare --gpus-per-actor 1
# Slurm starts the job again after a temporary failure (exit code 75), after preemption and before its time is up;
# each start resumes the run.
#SBATCH --job-name=rarefy
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: sbatch jobs/slurm.sh run|generate MANIFEST --out OUT [flags]" >&2
    exit 2
fi

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts[0]}
port=$((20000 + SLURM_JOB_ID % 10000))
export RAY_ADDRESS="$head:$port"
export RAY_AUTH_MODE=token # other users of these machines must not reach this Ray
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN
ray_flags=(--block --disable-usage-stats --object-store-memory 268435456)

# The driver runs beside the head. A node that comes late or is lost costs its share of the work, not the run.
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --port="$port" --temp-dir="/tmp/ray-$SLURM_JOB_ID" --include-dashboard=false "${ray_flags[@]}" &
servers=($!)
until ray status >/dev/null 2>&1; do
    kill -0 "${servers[0]}" 2>/dev/null || { echo "slurm.sh: Ray did not start on $head" >&2; exit 75; }
    sleep 2
done
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    srun --overlap --nodes="$((SLURM_JOB_NUM_NODES - 1))" --ntasks-per-node=1 --exclude="$head" --kill-on-bad-exit=0 \
        ray start --address="$RAY_ADDRESS" "${ray_flags[@]}" &
    servers+=($!)
fi

again=no stopped=no driver=
stop_driver() {
    stopped=yes
    ${driver:+kill -TERM "$driver"} 2>/dev/null || true
}
trap 'again=yes; stop_driver' USR1 # the job's time is almost up
trap stop_driver TERM              # scancel
python -m rarefy.job "$@" &
driver=$!
[ "$stopped" = no ] || stop_driver # the signal came before the driver's id
# Not wait: a signal at the moment when the driver ends can make bash lose its exit code and wait for ever.
while kill -0 "$driver" 2>/dev/null; do sleep 0.5; done
trap '' USR1 TERM
code=0
wait "$driver" || code=$?
kill -TERM "${servers[@]}" 2>/dev/null || true
if [ "$code" -eq 75 ] || { [ "$again" = yes ] && [ "$code" -ne 0 ]; }; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
