"""What K-FAC does with each parameter: its block, factors, memory, cost, or why it has none."""

from __future__ import annotations

from dataclasses import dataclass

from anybatch.kfac.blocks import Coverage, FactorShape, FisherBlock

__all__ = ["ExplainedParameter", "explain_rows", "explain_table"]


@dataclass(frozen=True, slots=True)
class ExplainedParameter:
    """One parameter; sizes and costs of a block stand at its first parameter, the others have 0.

    Attributes:
        parameter: qualified name.
        shape: of the parameter.
        block: name, "" without one.
        kind: of the block, "" without one.
        factors: of the block.
        bytes: of its running statistics and inverses.
        inversion_multiply_adds: of a Cholesky inversion of its factors.
        preconditioning_multiply_adds: of one gradient.
        reason: why it has no block, "" with one.
    """

    parameter: str
    shape: tuple[int, ...]
    block: str
    kind: str
    factors: tuple[FactorShape, ...]
    bytes: int
    inversion_multiply_adds: int
    preconditioning_multiply_adds: int
    reason: str


def explain_rows(coverage: Coverage) -> list[ExplainedParameter]:
    """One row for every parameter of a model: those of blocks, uncovered ones, frozen ones.

    Inversion: n^3 / 2 multiply-adds for the Cholesky factor and the inverse of an n x n matrix.
    Preconditioning of V (m x n): m^2 n + m n^2, m n for each diagonal factor. Norms: side^2 a
    channel.

    Args:
        coverage: of `find_blocks`.

    Example:
        >>> from torch import nn
        >>> from anybatch.kfac.blocks import find_blocks
        >>> from anybatch.recipe_preconditioner import KFACSettings
        >>> rows = explain_rows(find_blocks(nn.Sequential(nn.Linear(3, 2)), KFACSettings()))
        >>> [(row.parameter, row.bytes, row.preconditioning_multiply_adds) for row in rows]
        [('0.weight', 160, 48), ('0.bias', 0, 0)]
    """
    rows = []
    for block in coverage.blocks:
        for index, parameter in enumerate(block.parameters):
            rows.append(
                ExplainedParameter(
                    coverage.names[id(parameter)],
                    tuple(parameter.shape),
                    block.name,
                    block.kind,
                    block.factors,
                    0 if index else _bytes(block),
                    0 if index else sum(_inversion(factor) for factor in block.factors),
                    0 if index else _preconditioning(block),
                    "",
                )
            )
    without = [(name, each, reason) for name, each, reason in coverage.uncovered]
    without += [(name, each, "frozen") for name, each in coverage.frozen]
    rows += [
        ExplainedParameter(name, tuple(each.shape), "", "", (), 0, 0, 0, reason)
        for name, each, reason in without
    ]
    return rows


def explain_table(coverage: Coverage) -> str:
    """`explain_rows` as text, with the sum of memory and costs as the last line.

    Each number has the unit of its own size: KiB, MiB or GiB, and k, M or G multiply-adds (MAC).

    Args:
        coverage: of `find_blocks`.
    """
    rows = explain_rows(coverage)
    cells = [("parameter", "shape", "kind", "factors", "memory", "invert MAC", "apply MAC", "")]
    cells += [_cells(row) for row in rows]
    total = (
        sum(row.bytes for row in rows),
        sum(row.inversion_multiply_adds for row in rows),
        sum(row.preconditioning_multiply_adds for row in rows),
    )
    cells.append(("all", "", "", "", *_costs(*total), ""))
    widths = [max(len(row[column]) for row in cells) for column in range(8)]
    lines = []
    for row in cells:
        left = [cell.ljust(width) for cell, width in zip(row[:4], widths[:4], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[4:7], widths[4:7], strict=True)]
        lines.append("  ".join([*left, *right, row[7]]).rstrip())
    return "\n".join(lines)


def _cells(row: ExplainedParameter) -> tuple[str, str, str, str, str, str, str, str]:
    factors = ", ".join(_factor_text(factor) for factor in row.factors)
    shape = "x".join(map(str, row.shape))
    if not row.inversion_multiply_adds:
        return row.parameter, shape, row.kind, factors, "", "", "", row.reason
    costs = (row.bytes, row.inversion_multiply_adds, row.preconditioning_multiply_adds)
    return row.parameter, shape, row.kind, factors, *_costs(*costs), ""


def _costs(size: int, inversion: int, preconditioning: int) -> tuple[str, str, str]:
    units = ("k", "M", "G")
    return (
        _in_units(size, 1024, ("KiB", "MiB", "GiB")),
        _in_units(inversion, 1000, units),
        _in_units(preconditioning, 1000, units),
    )


def _in_units(value: int, step: int, units: tuple[str, ...]) -> str:
    """With the largest unit that it comes up to, else the smallest one."""
    power = max((n for n in range(1, len(units) + 1) if value >= step**n), default=1)
    return f"{value / step**power:.2f} {units[power - 1]}"


def _factor_text(factor: FactorShape) -> str:
    many = f"{factor.groups} of " if factor.groups > 1 else ""
    what = f"diagonal {factor.side}" if factor.diagonal else f"{factor.side}^2"
    return f"{factor.role} {many}{what}"


def _elements(factor: FactorShape) -> int:
    return factor.groups * factor.side * (1 if factor.diagonal else factor.side)


def _bytes(block: FisherBlock) -> int:
    double = any(parameter.dtype.itemsize == 8 for parameter in block.parameters)
    return 2 * sum(_elements(factor) for factor in block.factors) * (8 if double else 4)


def _inversion(factor: FactorShape) -> int:
    side = factor.side
    return factor.groups * (side if factor.diagonal else max(1, side**3 // 2))


def _preconditioning(block: FisherBlock) -> int:
    first, last = block.factors[0], block.factors[-1]
    if block.kind == "norm":
        return _elements(first)
    entries = first.groups * first.side * last.side
    return entries * sum(1 if each.diagonal else each.side for each in (first, last))
