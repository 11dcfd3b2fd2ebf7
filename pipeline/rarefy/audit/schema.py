"""Names that the audit and its pages share: the format of metrics.json and the files in OUT/audit."""

from __future__ import annotations

FORMAT = "rarefy-audit-v2"
METRICS_PATH = "audit/metrics.json"
RAREST_PATH = "audit/rarest.parquet"
COPIES_PATH = "audit/copies.parquet"
BOOTSTRAP_PATH = "audit/bootstrap.parquet"
