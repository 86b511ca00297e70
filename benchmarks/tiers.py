"""The same round masked and sliced, with five HeteroFL tiers of two clients each.

    python scripts/bench.py --name=tiers

The benchmark takes two minutes on 2 CPU cores.
"""

from benchmarks.peers import run
from benchmarks.rows import Row, seconds

BUDGETS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
FORMS = ("masked", "sliced")
CASES = {"dense": "MLP, 671 thousand parameters", "cnn": "CNN, 1.63 million parameters"}
TURNS = 3


def fields(form: str) -> list[str]:
    """The config fields of the tiers."""
    overrides = {
        "submodel.name": "heterofl",
        "tiers.budget": BUDGETS,
        "tiers.proportions": (1.0,) * len(BUDGETS),
        "execution.slots": "stratified",
        "execution.form": form,
    }
    return [f"{field}={value!r}" for field, value in overrides.items()]


def measure() -> list[Row]:
    """A row for every case and form, which are measured in turns."""
    turns_by_key: dict[tuple[str, str], list[Row]] = {}
    for case in CASES:
        for _ in range(TURNS):
            for form in FORMS:
                row = run.run_once(None, "benchmarks.peers.ours", (case, *fields(form)))
                turns_by_key.setdefault((case, form), []).append(row)
    return [
        {"case": case, "name": form} | run.summary(turns)
        for (case, form), turns in turns_by_key.items()
    ]


def table(rows: list[Row]) -> str:
    """A Markdown table of the speed-up by slicing, beside that of the FLOPs."""
    row_by_key = {(row["case"], row["name"]): row for row in rows}
    lines = [
        "| five tiers | masked | sliced | faster by | ideal | reached |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for case, title in CASES.items():
        masked, sliced = (row_by_key[case, form] for form in FORMS)
        faster = masked["cpu_s_per_round"] / sliced["cpu_s_per_round"]
        flops = sliced["flops_train"]
        ideal = len(flops) * max(flops) / sum(flops)
        cells = [
            seconds(masked["median_s"]),
            seconds(sliced["median_s"]),
            f"{faster:.1f}",
            f"{ideal:.1f}",
            f"{faster / ideal:.0%}",
        ]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
