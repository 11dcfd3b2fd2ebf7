"""``python -m rarefy``."""

from __future__ import annotations

import sys

from rarefy.cli import main

if __name__ == "__main__":
    sys.exit(main())
