"""Entry point for ``ray job submit`` and KubeRay: ``rarefy run`` on the cluster that runs this job."""

from __future__ import annotations

import sys

from rarefy.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", "--ray-address", "auto", *sys.argv[1:]]))
