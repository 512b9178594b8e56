"""Tables of plain text, for the commands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[object]], right: str = "") -> str:
    """Columns aligned to their widest cell; `right` holds an r for each column that is aligned to the right."""
    cells = [list(header), *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = right.ljust(len(widths))
    return "\n".join(
        "  ".join(
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, sides, strict=True)
        ).rstrip()
        for row in cells
    )


def printable(text: str) -> str:
    """Replace control characters, which names in a file may hold, by spaces."""
    return "".join(c if c.isprintable() else " " for c in text)
