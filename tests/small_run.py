"""A run for tests of the audit."""

MANIFEST = """
name = "small"
[model]
preset = "fashion-mnist-28"
[classes]
counts = { 0 = 12, 1 = 8, 4 = 4 }
[output]
shard_size = 9
"""


def quiet(stage: str, done: int, total: int) -> None:
    assert stage
    assert 0 <= done <= total
