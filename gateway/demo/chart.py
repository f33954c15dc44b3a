"""A small chart in text: bars two rows high, marks under them, and the years."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

__all__ = ("axis", "bars", "mark_row")

_STEPS = " ▁▂▃▄▅▆▇█"
_FULL = len(_STEPS) - 1

Item = TypeVar("Item")


def bars(rates: Sequence[float | None], columns: int, *, highest: float) -> tuple[str, str]:
    """Rates as an upper and a lower row of blocks; a column shows the mean of the rates that fall in it.

    Parameters
    ----------
    rates : sequence of float or None
        None where nothing is known: left empty.
    highest : float
        The rate of a full bar.

    >>> bars([None, 0.0, 0.2, 0.4, 0.8], 5, highest=0.8)
    ('    █', ' ▁▄██')
    """
    upper, lower = "", ""
    for column in range(columns):
        known = [rate for rate in _slice(rates, column, columns) if rate is not None]
        if not known:
            upper, lower = upper + " ", lower + " "
            continue
        steps = round(min(sum(known) / len(known) / highest, 1.0) * 2 * _FULL)
        lower += _STEPS[max(1, min(steps, _FULL))]
        upper += _STEPS[max(0, steps - _FULL)]
    return upper, lower


def mark_row(weeks: Sequence[str], columns: int, marks: Mapping[str, str]) -> str:
    """A row with the marks of some weeks, one letter each; the last mark of a column is shown.

    >>> mark_row(["2012-01-02", "2012-01-09", "2012-01-16"], 3, {"2012-01-09": "▲"})
    ' ▲ '
    """
    row = ""
    for column in range(columns):
        found = [marks[week] for week in _slice(weeks, column, columns) if week in marks]
        row += found[-1] if found else " "
    return row


def axis(weeks: Sequence[str], columns: int) -> str:
    """A row with each year where it begins.

    >>> axis(["2011-12-19", "2011-12-26", "2012-01-02", "2012-01-09", "2012-01-16", "2012-01-23"], 6)
    '  2012'
    """
    row = [" "] * columns
    year = weeks[0][:4] if weeks else ""
    for column in range(columns):
        for week in _slice(weeks, column, columns):
            if week[:4] != year:
                year = week[:4]
                row[column : column + 4] = list(year)[: columns - column]
    return "".join(row)


def _slice(items: Sequence[Item], column: int, columns: int) -> Sequence[Item]:
    """The items that fall in one column."""
    return items[column * len(items) // columns : (column + 1) * len(items) // columns]
