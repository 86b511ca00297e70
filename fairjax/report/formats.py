"""Numbers as people read them; None is "–"."""

import json
from collections.abc import Mapping
from typing import Any

MISSING = "\N{EN DASH}"
"""Stands for an unknown value."""
SMALL_MARK = "\N{DAGGER}"
"""Marks a number of test records that is too small for a headline."""
_NAMES = {"auroc": "AUROC", "auprc": "AUPRC", "ece": "ECE", "brier": "Brier"}
_PREFIXES = ("", "k", "M", "G", "T", "P")

Number = int | float | None
"""A JSON number, or null for an unknown value."""


def percent(share: Number) -> str:
    """0.8421 -> "84.2%"."""
    return MISSING if share is None else f"{share:.1%}"


def points(difference: Number) -> str:
    """-0.021 -> "−2.1 pp", percentage points."""
    if difference is None:
        return MISSING
    value = round(100 * difference, 1) + 0.0  # no "−0.0"
    return f"{value:+.1f} pp".replace("-", "\N{MINUS SIGN}")


def decimal(value: Number) -> str:
    """0.91834 -> "0.918"; from ten thousand on 1.3e24 -> "1.3e+24"."""
    if value is None:
        return MISSING
    return f"{value:.3f}" if abs(value) < 1e4 else f"{value:.3g}"


def figure(value: Number) -> str:
    """A number of unknown kind: 0.91834 -> "0.918", 12345.6 -> "12,346"."""
    if value is None or not 100 <= abs(value) < 1e15:
        return decimal(value)
    return count(value)


def estimate(value: Any) -> str:
    """{"value": 0.884, "low": 0.861, "high": 0.905} -> "0.884 (0.861–0.905)".

    A bare number, or an estimate whose `low` is unknown, is shown without an interval.
    """
    if not isinstance(value, Mapping):
        return decimal(value)
    text = decimal(value.get("value"))
    if value.get("value") is None or value.get("low") is None:
        return text
    return f"{text} ({decimal(value['low'])}{MISSING}{decimal(value['high'])})"


def metric(key: str) -> str:
    """A key in words: "balanced_accuracy" -> "balanced accuracy"."""
    return " ".join(_NAMES.get(word, word) for word in key.split("_"))


def count(value: Number) -> str:
    """12345 -> "12,345"."""
    return MISSING if value is None else f"{value:,.0f}"


def si(value: Number, unit: str = "") -> str:
    """1234567 -> "1.23 M", in steps of 1000."""
    if value is None:
        return MISSING
    power = 0
    while abs(value) >= 999.5 and power < len(_PREFIXES) - 1:
        value /= 1000
        power += 1
    digits = f"{value:.3g}" if power else f"{value:.0f}"
    return f"{digits} {_PREFIXES[power]}{unit}".strip()


def plain(value: Any) -> str:
    """A value of unknown type, written as on a command line."""
    if value is None or value == "":
        return MISSING
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value, ensure_ascii=False)


def shorten(name: str, length: int) -> str:
    """The name in at most `length` characters, with an ellipsis in its middle.

    The middle is cut because names often differ in their beginnings or ends.
    """
    if len(name) <= length:
        return name
    tail = (length - 1) // 2
    return f"{name[: length - 1 - tail]}…{name[-tail:]}"
