#!/usr/bin/env bash
# Submit a run to a Ray cluster, follow it and return its exit code: jobs/submit.sh --help
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "$0")/submit.py" "$@"
