"""What a run promised of privacy, what it spent, and what attacks made of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fairjax.report import formats, markup
from fairjax.report.run import Row, Run

_MECHANISMS = {
    "client_dp": (
        "A trusted server clips what every hospital sends and adds Gaussian noise to "
        "the sum. Whoever sees the models of all rounds learns almost the same, "
        "whether or not a given hospital took part"
    ),
    "record_dp": (
        "Every hospital clips the gradient of each of its records and adds Gaussian "
        "noise before anything leaves it. Whoever sees all uploads, the server too, "
        "learns almost the same, whether or not a given record was trained on"
    ),
    "local_dp": (
        "Every hospital clips its upload and adds Gaussian noise itself. Whoever sees "
        "all uploads, the server too, learns almost the same, whatever records a given "
        "hospital holds"
    ),
}
_SUMS = {
    "quantized": "Sums are those of a secure sum, computed without its masks.",
    "masked": "Sums are those of a simulated secure sum, under masks that cancel.",
}
_FIGURES = (
    "auc",
    "tpr_at_1",
    "tpr_at_0.1",
    "psnr",
    "ssim",
    "epsilon_low",
    "epsilon",
    "ceiling",
)
"""Columns of their own, even if alike in all rows."""
_SUCCESS = {"membership": "auc", "inversion": "psnr", "audit": "epsilon_low"}
"""Attack -> the figure that is larger the more it finds."""
_NAMES = {
    "auc": "AUC",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "tpr_at_1": "found at 1% false positives",
    "tpr_at_0.1": "found at 0.1%",
    "blind_auc": "AUC without the model",
    "baseline_auc": "AUC of guessing",
    "nonmembers": "non-members",
    "epsilon_low": "shown ε at least",
    "epsilon": "accounted ε",
    "ceiling": "most that could be shown",
}


def section(run: Run) -> str:
    """Guarantee, spending and attacks, each where there is something to say."""
    told = run.summary.get("privacy") or {}
    parts = (_promise(told), _spending(told), _attacks(run.attacks))
    return "".join(part for part in parts if part)


def _promise(told: Row) -> str:
    """The guarantee in words, and its numbers."""
    mechanism = told.get("mechanism")
    if mechanism is None:
        return ""
    sums = _SUMS.get(told.get("secure_sum", ""), "")
    if mechanism not in _MECHANISMS:
        nothing = "No mechanism protects records or hospitals: nothing is promised."
        return markup.paragraph(f"{nothing} {sums}".strip())
    epsilon, delta = told.get("epsilon"), formats.plain(told.get("delta"))
    if epsilon is None:
        bound = "but with too little noise, so that no ε bounds what is learned"
    else:
        bound = (
            f"no event becomes more than e^ε = e^{epsilon:.3g} times as likely, but "
            f"for a probability of δ = {delta}"
        )
    words = f"{_MECHANISMS[mechanism]}: {bound}."
    numbers = {
        "mechanism": mechanism,
        "ε is of": told.get("of") or told.get("unit"),
        "rounds": told.get("rounds"),
        "sampling": told.get("sampling"),
        "neighbours": told.get("neighbours"),
        "accountant": told.get("accountant"),
        "noise multiplier": told.get("noise_multiplier"),
        "clip": told.get("clip"),
    }
    said = [*statement(told), sums]
    return (
        markup.paragraph(words)
        + markup.pairs(numbers)
        + "".join(markup.paragraph(text) for text in said if text)
    )


def statement(told: Row) -> list[str]:
    """What goes with an epsilon wherever it is shown, in sentences.

    Args:
        told: "privacy" of summary.json.
    """
    public = "; ".join(told.get("public") or ())
    said = [f"Taken as public: {public}."] if public else []
    if told.get("covers") is None:  # of an earlier version
        return said
    excluded = "; ".join(told.get("does_not_cover") or ())
    return [
        f"ε is of {told.get('of')}. It covers {told['covers']}.",
        f"It does not cover: {excluded}.",
        *said,
        str(told.get("floats")),
        *(told.get("notes") or ()),
    ]


def _spending(told: Row) -> str:
    """Epsilon of every party, and what is left of the budget."""
    whose = "hospitals" if told.get("mechanism") == "record_dp" else "tiers"
    spent = told.get(whose)
    if not isinstance(spent, Mapping):
        return ""
    budget = told.get("budget")

    def share(value: float | None) -> str:
        return formats.percent(value / budget if budget and value is not None else None)

    rows = [
        [name, _epsilon(value), _epsilon(budget), share(value)]
        for name, value in sorted(spent.items(), key=_most)
    ]
    unit = told.get("unit")
    larger = ": a larger hospital hides a record better." if unit == "record" else "."
    rounds = formats.count(told.get("rounds"))
    caption = f"ε of one {unit} after {rounds} rounds, most first{larger}"
    caption += " What it covers, and what it does not, is said above."
    return markup.table(
        caption, [whose.removesuffix("s"), "spent ε", "budget", "of the budget"], rows
    )


def _most(item: tuple[str, Any]) -> tuple[float, str]:
    name, value = item
    return -(float("inf") if value is None else value), name


def _epsilon(value: float | None) -> str:
    return formats.MISSING if value is None else f"{value:.3g}"


# ------------------------------------------------------------------------------ attacks


def _attacks(attacks: Sequence[Row]) -> str:
    parts = []
    for name in dict.fromkeys(row["attack"] for row in attacks):
        rows = [row for row in attacks if row["attack"] == name]
        parts += [_worst(name, rows), _all(name, rows)]
    return "".join(parts)


def _kind(row: Row) -> str:
    """What tells an attack from others of its name, but for the tier."""
    names = ("variant", "canary", "observable", "level")
    return ", ".join(str(row[name]) for name in names if row.get(name) is not None)


def _worst(name: str, rows: Sequence[Row]) -> str:
    """Privacy fairness: the tier that an attack succeeds with most."""
    figure = _SUCCESS.get(name)
    if figure is None:
        return ""
    by_kind: dict[str, list[Row]] = {}
    for row in rows:
        if row.get(figure) is not None and row.get("tier") is not None:
            by_kind.setdefault(_kind(row), []).append(row)
    cells = []
    for kind, of_tiers in by_kind.items():
        ranked = sorted(of_tiers, key=lambda row: row[figure])
        least, most = ranked[0], ranked[-1]
        if len(ranked) > 1:
            apart = most[figure] - least[figure]
            cells.append(
                [
                    kind,
                    formats.plain(most["tier"]),
                    _value(most, figure),
                    formats.plain(least["tier"]),
                    _value(least, figure),
                    formats.decimal(apart),
                ]
            )
    if not cells:
        return ""
    title = _NAMES.get(figure, figure)
    caption = (
        f"Privacy fairness, {name}: the tier that is worst protected, by {title}. "
        "Where intervals overlap the tiers may be alike."
    )
    heads = ["attack", "worst tier", title, "best tier", title, "difference"]
    return markup.table(caption, heads, cells)


def _all(name: str, rows: Sequence[Row]) -> str:
    """Every row of an attack, folded away where there are many."""
    hidden = {"attack", "variant", "canary", "observable", "level", "tier"}
    hidden |= {"reason", "roc"}
    # What is null in all rows is told by their remarks.
    names = dict.fromkeys(key for row in rows for key in row)
    hidden |= {key for key in names if all(row.get(key) is None for row in rows)}
    keys = [
        key
        for key in names
        if key not in hidden
        and (key in _FIGURES or not key.endswith(("_low", "_high")))
        # What is alike in all rows is said once.
        and (key in _FIGURES or len({str(row.get(key)) for row in rows}) > 1)
    ]
    alike = {
        _title(key): rows[0][key]
        for key in names
        if key not in (*hidden, *keys) and not key.endswith(("_low", "_high"))
    }
    reasons = any(row.get("reason") for row in rows)
    heads = ["attack", "tier", *map(_title, keys), *(["remark"] if reasons else [])]
    cells = [
        [
            _kind(row) or name,
            "all" if row.get("tier") is None else formats.plain(row["tier"]),
            *(_value(row, key) for key in keys),
            *([str(row.get("reason") or "")] if reasons else []),
        ]
        for row in rows
    ]
    said = ", ".join(f"{key} {_plain(value)}" for key, value in alike.items())
    caption = f"{name.capitalize()}: {_CAPTIONS.get(name, 'rows of attack.json.')}"
    caption += f" In all rows: {said}." if said else ""
    content = _alarm(rows) + markup.table(caption, heads, cells, text="remark")
    if len(rows) <= FOLDED:
        return content
    return markup.folded(f"{name.capitalize()}: all {len(rows)} rows", content)


def _alarm(rows: Sequence[Row]) -> str:
    """A notice where an audit shows more than is accounted for."""
    if not any(row.get("exceeds") for row in rows):
        return ""
    return (
        '<p class="notice"><strong>An audit shows more ε than is accounted for.'
        "</strong> The mechanism does not keep what it promises.</p>\n"
    )


FOLDED = 12
"""Rows of an attack above which they are folded away."""
_CAPTIONS = {
    "membership": (
        "was a record trained on? Training records against test records of the same "
        "hospitals; an AUC of 0.5 is guessing. Intervals of 95%; that of members found "
        "holds for any scores, and covers that the threshold is estimated too."
    ),
    "audit": (
        "what runs with and without a canary show of ε, which must not be above what "
        "is accounted for. Of whom it is and what it covers is said under Privacy. A "
        "canary is loud, alone and mislabelled; a spike, one huge input; an overflow, "
        "on which training ends in infinity; or a class of its own."
    ),
    "inversion": "images rebuilt from what a hospital sends.",
}


def _title(key: str) -> str:
    return _NAMES.get(key, formats.metric(key))


def _value(row: Row, key: str) -> str:
    """A figure with its interval, where the row has one."""
    value = row.get(key)
    if f"{key}_high" in row:
        ends = {"low": row[f"{key}_low"], "high": row[f"{key}_high"]}
        return formats.estimate({"value": value} | ends)
    return _plain(value)


def _plain(value: Any) -> str:
    show: Callable[[Any], str] = formats.plain
    if isinstance(value, float):
        show = formats.figure if abs(value) >= 1e-3 else formats.plain
    return show(value)
