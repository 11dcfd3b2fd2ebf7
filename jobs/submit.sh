#!/usr/bin/env bash
# Submit a run to a Ray cluster whose machines have rarefy installed (pip install rarefy, or an image with it).
#   RAY_ADDRESS=http://HEAD:8265 jobs/submit.sh manifests/imagenet64-rare.toml s3://BUCKET/imagenet64-rare --gpus-per-actor 1
# Every machine must see OUT and the checkpoints. Submit again to resume the run: committed shards are kept.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: jobs/submit.sh MANIFEST OUT [flags of rarefy generate]" >&2
    exit 2
fi
manifest=$1
out=$2
shift 2
cd "$(dirname "$0")/.."
exec ray job submit --working-dir . -- python jobs/generate.py "$manifest" --out "$out" "$@"
