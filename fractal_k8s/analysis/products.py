"""The table of a map's products: one row per column and per row of the map, for a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any, Final

from fractal_k8s.analysis.critical import SAFE, risk_factor

Row = dict[str, Any]

# analyses that the table is made of
SOURCES: Final = ("critical", "optimal")
COLUMNS: Final = (
    # the knob that varies along the line, the one that is held on it, and its value
    "along",
    "held",
    "value",
    # False: the same experiments as an earlier line
    "distinct",
    "coverage",
    # where the trainable range begins and ends; censored: the true end may lie outside the map
    "lower",
    "lower_censored",
    "critical",
    "critical_censored",
    "diverges",
    "diverges_censored",
    # half the critical value, and where training fails in 1 % and 5 % of the cases
    "safe",
    "risk_1_percent",
    "risk_5_percent",
    # the value with the lowest loss, and that loss
    "optimum",
    "optimum_censored",
    "optimum_loss",
)


def product_table(analyses: dict[str, Any]) -> str:
    """The products as CSV text with a header; cells without a value are empty.

    Args:
        analyses: results by name, as `summary["analyses"]` holds them.
    """
    sink = io.StringIO()
    writer = csv.DictWriter(sink, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(product_rows(analyses))
    return sink.getvalue()


def product_rows(analyses: dict[str, Any]) -> list[Row]:
    """One row per line of the map along a rate, and per rate along tokens."""
    rows: list[Row] = []
    optimal = analyses.get("optimal")
    for knob, rate in analyses.get("critical", {}).get("rates", {}).items():
        own = list(_rate_rows(knob, rate))
        if optimal is not None:
            # optima are listed for distinct lines only
            optima = _rows_of(optimal["optima"])
            for row, optimum in zip((row for row in own if row["distinct"]), optima, strict=True):
                row["optimum"] = optimum["rate"]
                row["optimum_censored"] = optimum["censored"]
                row["optimum_loss"] = optimum["loss"]
        rows += own
    if optimal is not None:
        rows += _token_rows(optimal)
    return rows


def _rate_rows(knob: str, rate: dict[str, Any]) -> Iterator[Row]:
    width = rate["width_decades"]
    for line in _rows_of(rate["table"]):
        critical = line["upper"]
        row = {
            "along": knob,
            "held": rate["across"],
            "value": line["at"],
            "distinct": line["distinct"],
            "coverage": line["coverage"],
            "lower": line["lower"],
            "lower_censored": line["lower_censored"],
            "critical": critical,
            "critical_censored": line["upper_censored"],
            "diverges": line["diverging"],
            "diverges_censored": line["diverging_censored"],
        }
        if critical is not None:
            row["safe"] = SAFE * critical
            if width is not None:
                row["risk_1_percent"] = critical * risk_factor(width, 0.01)
                row["risk_5_percent"] = critical * risk_factor(width, 0.05)
        yield row


def _token_rows(optimal: dict[str, Any]) -> Iterator[Row]:
    minimum = optimal["minimum_tokens"]
    for line in _rows_of({key: minimum[key] for key in ("rate", "tokens", "censored")}):
        yield {
            "along": "tokens",
            "held": optimal["rate"],
            "value": line["rate"],
            "distinct": True,
            "lower": line["tokens"],
            "lower_censored": line["censored"],
        }


def _rows_of(table: dict[str, list[Any]]) -> list[Row]:
    """A table of columns as a list of rows."""
    return [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
