"""Conditions on the rows of a data set, such as ``confidence < 0.6 and class_name == "coat"``.

pandas evaluates them. What it would also run, such as calls and variables of the caller, is refused before.
"""

from __future__ import annotations

import ast
from difflib import get_close_matches

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rarefy.errors import DataError, bad

ALLOWED = 'a condition on columns, such as confidence < 0.6 and class_name == "coat"'
NODES = (
    ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.Invert, ast.USub, ast.UAdd,
    ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Mod, ast.BitAnd, ast.BitOr,
    ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn,
    ast.List, ast.Tuple, ast.Name, ast.Load, ast.Constant,
)  # fmt: skip


def matching(rows: pd.DataFrame, where: str, absent: dict[str, str]) -> NDArray[np.bool_]:
    """For each row, whether it satisfies the condition. A comparison with a missing value is false.

    absent: columns that other data sets have, each with the reason why this one does not. Raises DataError, in one
    line, for anything but such a condition and for unknown columns, with the nearest name.
    """
    _check(where, list(rows.columns), absent)
    try:
        found = rows.eval(where.strip(), engine="python")
    except (TypeError, ValueError, SyntaxError, NotImplementedError, AttributeError, ArithmeticError) as error:
        raise _refusal(where, str(error)) from None
    if not isinstance(found, pd.Series) or not pd.api.types.is_bool_dtype(found):
        raise _refusal(where, "it is not true or false for each image")
    return found.fillna(False).to_numpy(dtype=np.bool_)


def _check(where: str, columns: list[str], absent: dict[str, str]) -> None:
    try:
        tree = ast.parse(where.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise _refusal(where, error.msg if isinstance(error, SyntaxError) else str(error)) from None
    for node in ast.walk(tree):
        if not isinstance(node, NODES) or (isinstance(node, ast.Constant) and node.value in (None, ...)):
            raise _refusal(where, f"{_shown(where, node)} cannot be used in it")
        if isinstance(node, ast.Name) and node.id not in columns:
            raise DataError(f"where: {_no_column(node.id, columns, absent)}")


def _shown(where: str, node: ast.AST) -> str:
    """The part of the condition that a node stands for."""
    return repr(ast.get_source_segment(where.strip(), node) or type(node).__name__)


def _no_column(name: str, columns: list[str], absent: dict[str, str]) -> str:
    if name in absent:
        return f"{name!r} is not known: {absent[name]}"
    near = get_close_matches(name, [*columns, *absent], 1, 0.0)
    return f"{name!r} is not a column; did you mean {near[0]!r}? The columns are {', '.join(columns)}"


def _refusal(where: str, cause: str) -> DataError:
    return DataError(f"{bad('where', where, ALLOWED)} ({' '.join(cause.split())})")
