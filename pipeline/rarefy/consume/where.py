"""Conditions on the rows of a data set, such as ``confidence < 0.6 and class_name == "coat"``.

pandas evaluates them. What it would also run, such as calls and variables of the caller, is refused before.
"""

from __future__ import annotations

import ast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rarefy.errors import DataError, bad, hint

ALLOWED = 'a condition on columns, such as confidence < 0.6 and class_name == "coat"'
NODES = (
    ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.Invert, ast.USub, ast.UAdd,
    ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Mod, ast.BitAnd, ast.BitOr,
    ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn,
    ast.List, ast.Tuple, ast.Name, ast.Load, ast.Constant,
)  # fmt: skip
CONSTANTS = (bool, int, float, str)


def matching(rows: pd.DataFrame, where: str, absent: dict[str, str]) -> NDArray[np.bool_]:
    """For each row, whether it satisfies the condition. Comparisons with a missing value are unknown, as in SQL.

    absent: columns that other data sets have, each with the reason why this one does not. Raises DataError, in one
    line, for anything but such a condition and for unknown columns, with the nearest name.
    """
    names = _check(where, rows, absent)
    nullable = rows[names].convert_dtypes(convert_integer=False)  # NaN != 1 would be true
    try:
        found = nullable.eval(where.strip(), engine="python")
    except (TypeError, ValueError, SyntaxError, RuntimeError, AttributeError, ArithmeticError) as error:
        raise _refusal(where, str(error)) from None
    if not isinstance(found, pd.Series) or not pd.api.types.is_bool_dtype(found):
        raise _refusal(where, "it is not true or false for each image")
    return found.fillna(False).to_numpy(dtype=np.bool_)


def _check(where: str, rows: pd.DataFrame, absent: dict[str, str]) -> list[str]:
    """The columns that the condition names."""
    if not isinstance(where, str):
        raise DataError(bad("where", where, ALLOWED))
    try:
        tree = ast.parse(where.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise _refusal(where, error.msg if isinstance(error, SyntaxError) else str(error)) from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in rows:
            raise DataError(f"where: {_no_column(node.id, list(rows.columns), absent)}")
        if not isinstance(node, NODES) or (isinstance(node, ast.Constant) and not isinstance(node.value, CONSTANTS)):
            raise _refusal(where, f"{_shown(where, node)} cannot be used in it")
        if isinstance(node, ast.BinOp) and (_is_text(node.left, rows) or _is_text(node.right, rows)):
            raise _refusal(where, f"{_shown(where, node)} is not arithmetic on numbers")
    return sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)})


def _is_text(node: ast.AST, rows: pd.DataFrame) -> bool:
    """Whether an operand is a text or a list, which a number would repeat so often that memory ends."""
    if isinstance(node, ast.Name):
        return node.id in rows and not pd.api.types.is_numeric_dtype(rows[node.id])
    return isinstance(node, ast.List | ast.Tuple) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _shown(where: str, node: ast.AST) -> str:
    """The part of the condition that a node stands for."""
    return repr(ast.get_source_segment(where.strip(), node) or type(node).__name__)


def _no_column(name: str, columns: list[str], absent: dict[str, str]) -> str:
    if name in absent:
        return f"{name!r} is not known: {absent[name]}"
    return f"{name!r} is not a column ({hint(name, [*columns, *absent])})"


def _refusal(where: str, cause: str) -> DataError:
    return DataError(f"{bad('where', where, ALLOWED)} ({' '.join(cause.split())})")
