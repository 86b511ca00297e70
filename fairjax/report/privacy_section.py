"""The section "Privacy": the guarantee, the epsilon spent and the attacks."""

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
"""Figures that always have a column, even if they are equal in all rows."""
_SUCCESS = {"membership": "auc", "inversion": "psnr", "audit": "epsilon_low"}
"""The figure of an attack that grows with its success."""
_NAMES = {
    "auc": "AUC",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "tpr_at_1": "found at 1% false positives",
    "tpr_at_0.1": "found at 0.1%",
    "blind_auc": "AUC without the model",
    "baseline_auc": "AUC of guessing",
    "nonmembers": "non-members",
    "epsilon_low": "lower bound on ε",
    "epsilon": "accounted ε",
    "ceiling": "most that could be shown",
}


def section(run: Run) -> str:
    """The guarantee, the epsilon spent and the attacks; "" where nothing is known."""
    guarantee = run.summary.get("privacy") or {}
    blocks = (_guarantee(guarantee), _spending(guarantee), _attacks(run.attacks))
    return "".join(block for block in blocks if block)


def _guarantee(guarantee: Row) -> str:
    """The guarantee in words, followed by its numbers."""
    mechanism = guarantee.get("mechanism")
    if mechanism is None:
        return ""
    sums = _SUMS.get(guarantee.get("secure_sum", ""), "")
    if mechanism not in _MECHANISMS:
        notice = "No mechanism protects records or hospitals: nothing is promised."
        return markup.paragraph(f"{notice} {sums}".strip())
    epsilon, delta = guarantee.get("epsilon"), formats.plain(guarantee.get("delta"))
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
        "ε is of": guarantee.get("of") or guarantee.get("unit"),
        "rounds": guarantee.get("rounds"),
        "sampling": guarantee.get("sampling"),
        "neighbours": guarantee.get("neighbours"),
        "accountant": guarantee.get("accountant"),
        "noise multiplier": guarantee.get("noise_multiplier"),
        "clip": guarantee.get("clip"),
    }
    sentences = [*statement(guarantee), sums]
    return (
        markup.paragraph(words)
        + markup.pairs(numbers)
        + "".join(markup.paragraph(text) for text in sentences if text)
    )


def statement(guarantee: Row) -> list[str]:
    """Sentences that accompany an epsilon wherever it is shown.

    Args:
        guarantee: "privacy" of summary.json.
    """
    public_inputs = "; ".join(guarantee.get("public") or ())
    sentences = [f"Taken as public: {public_inputs}."] if public_inputs else []
    if guarantee.get("covers") is None:  # a run of an earlier version
        return sentences
    exclusions = "; ".join(guarantee.get("does_not_cover") or ())
    return [
        f"ε is of {guarantee.get('of')}. It covers {guarantee['covers']}.",
        f"It does not cover: {exclusions}.",
        *sentences,
        str(guarantee.get("floats")),
        *(guarantee.get("notes") or ()),
    ]


def _spending(guarantee: Row) -> str:
    """The epsilon of every hospital or tier, and its share of the budget."""
    parties = "hospitals" if guarantee.get("mechanism") == "record_dp" else "tiers"
    epsilons = guarantee.get(parties)
    if not isinstance(epsilons, Mapping):
        return ""
    budget = guarantee.get("budget")

    def share(value: float | None) -> str:
        return formats.percent(value / budget if budget and value is not None else None)

    rows = [
        [name, _epsilon(value), _epsilon(budget), share(value)]
        for name, value in sorted(epsilons.items(), key=_sort_key)
    ]
    unit = guarantee.get("unit")
    suffix = ": a larger hospital hides a record better." if unit == "record" else "."
    rounds = formats.count(guarantee.get("rounds"))
    caption = f"ε of one {unit} after {rounds} rounds, most first{suffix}"
    caption += " What it covers, and what it does not, is said above."
    return markup.table(
        caption, [parties.removesuffix("s"), "spent ε", "budget", "of the budget"], rows
    )


def _sort_key(item: tuple[str, Any]) -> tuple[float, str]:
    """Orders parties by epsilon, the largest or unbounded first, then by name."""
    name, value = item
    return -(float("inf") if value is None else value), name


def _epsilon(value: float | None) -> str:
    return formats.MISSING if value is None else f"{value:.3g}"


# ------------------------------------------------------------------------------ attacks


def _attacks(attacks: Sequence[Row]) -> str:
    blocks = []
    for name in dict.fromkeys(row["attack"] for row in attacks):
        rows = [row for row in attacks if row["attack"] == name]
        blocks += [_worst_tiers(name, rows), _attack_table(name, rows)]
    return "".join(blocks)


def _kind(row: Row) -> str:
    """The properties that distinguish attacks of one name, except for the tier."""
    names = ("variant", "canary", "observable", "level")
    return ", ".join(str(row[name]) for name in names if row.get(name) is not None)


def _worst_tiers(name: str, rows: Sequence[Row]) -> str:
    """Privacy fairness: the least and the best protected tier per kind of attack."""
    figure = _SUCCESS.get(name)
    if figure is None:
        return ""
    by_kind: dict[str, list[Row]] = {}
    for row in rows:
        if row.get(figure) is not None and row.get("tier") is not None:
            by_kind.setdefault(_kind(row), []).append(row)
    cells = []
    for kind, tier_rows in by_kind.items():
        ranked_rows = sorted(tier_rows, key=lambda row: row[figure])
        best_tier, worst_tier = ranked_rows[0], ranked_rows[-1]
        if len(ranked_rows) > 1:
            difference = worst_tier[figure] - best_tier[figure]
            cells.append(
                [
                    kind,
                    formats.plain(worst_tier["tier"]),
                    _value(worst_tier, figure),
                    formats.plain(best_tier["tier"]),
                    _value(best_tier, figure),
                    formats.decimal(difference),
                ]
            )
    if not cells:
        return ""
    title = _NAMES.get(figure, figure)
    caption = (
        f"Privacy fairness, {name}: the tier that is worst protected, by {title}. "
        "Where intervals overlap, the tiers may not differ."
    )
    heads = ["attack", "worst tier", title, "best tier", title, "difference"]
    return markup.table(caption, heads, cells)


def _attack_table(name: str, rows: Sequence[Row]) -> str:
    """All rows of an attack, in a collapsed table where there are many."""
    hidden_keys = {"attack", "variant", "canary", "observable", "level", "tier"}
    hidden_keys |= {"reason", "roc"}
    # The remarks say why a figure is null in all rows.
    names = dict.fromkeys(key for row in rows for key in row)
    hidden_keys |= {key for key in names if all(row.get(key) is None for row in rows)}
    keys = [
        key
        for key in names
        if key not in hidden_keys
        and (key in _FIGURES or not key.endswith(("_low", "_high")))
        # The caption states a value that is equal in all rows.
        and (key in _FIGURES or len({str(row.get(key)) for row in rows}) > 1)
    ]
    constants = {
        _title(key): rows[0][key]
        for key in names
        if key not in (*hidden_keys, *keys) and not key.endswith(("_low", "_high"))
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
    constants_text = ", ".join(
        f"{key} {_plain(value)}" for key, value in constants.items()
    )
    caption = f"{name.capitalize()}: {_CAPTIONS.get(name, 'rows of attack.json.')}"
    caption += f" In all rows: {constants_text}." if constants_text else ""
    content = _alarm(rows) + markup.table(caption, heads, cells, text="remark")
    if len(rows) <= MAX_ROWS:
        return content
    return markup.collapsible(f"{name.capitalize()}: all {len(rows)} rows", content)


def _alarm(rows: Sequence[Row]) -> str:
    """A notice where an audit's lower bound exceeds the accounted epsilon."""
    if not any(row.get("exceeds") for row in rows):
        return ""
    return (
        '<p class="notice"><strong>An audit shows more ε than is accounted for.'
        "</strong> The mechanism does not hold its guarantee.</p>\n"
    )


MAX_ROWS = 12
"""The most rows of an attack that are shown without a click."""
_CAPTIONS = {
    "membership": (
        "was a record trained on? Training records against test records of the same "
        "hospitals; an AUC of 0.5 is guessing. Intervals are of 95%. The interval of "
        "members found holds for any distribution of scores and includes the error of "
        "the estimated threshold."
    ),
    "audit": (
        "a lower bound on ε from runs with and without a canary, which must not exceed "
        "the accounted ε. Whom ε protects and what it covers is said under Privacy. A "
        "loud canary has large inputs and a wrong label, and nobody else holds "
        "records; a spike has one huge input; an overflow makes training end in "
        "infinity; a class has a label that no other record has."
    ),
    "inversion": "images reconstructed from a hospital's update.",
}


def _title(key: str) -> str:
    return _NAMES.get(key, formats.metric(key))


def _value(row: Row, key: str) -> str:
    """A figure, with its interval where the row has one."""
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
