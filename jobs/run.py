"""Entry point for KubeRay and ``ray job submit``: ``rarefy run`` on the cluster that runs this job."""

from __future__ import annotations

import sys

from rarefy.job import run_job

if __name__ == "__main__":
    sys.exit(run_job("run", sys.argv[1:]))
