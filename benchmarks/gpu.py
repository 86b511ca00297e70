"""ResNet-18 and ViT-tiny on an accelerator: layouts, lowerings and precisions.

    python scripts/bench.py --name=gpu

For a machine with a GPU or TPU; on a CPU it would take hours. Images of 32 x 32 at 100
hospitals, 10 or 100 of them a round, of one tier or of the five of HeteroFL. Beside
them the pattern of released codes, hospitals one after the other in PyTorch. What is
fastest here is what `auto` should choose there.
"""

import itertools

import jax
import jax.numpy as jnp

from benchmarks.peers import run
from benchmarks.rows import Row, seconds

MODELS = {
    "ResNet-18": {"model.name": "resnet"},
    "ViT-tiny": {"model.name": "vit", "model.vit.patch": 4},
}
TIERS = {
    "one tier": {},
    "five tiers": {
        "submodel.name": "heterofl",
        "tiers.budget": (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0),
        "tiers.share": (1.0,) * 5,
        "execution.slots": "stratified",
    },
}
COHORTS = (10, 100)
LAYOUTS = {
    "vmap": {"execution.batching": "vmap"},
    "chunks of 10": {"execution.batching": "chunk", "execution.chunk": 10},
    "scan": {"execution.batching": "scan"},
}
DTYPES = ("float32", "bfloat16")
SIDE = 8192
"""Of the square matrices whose product stands for the machine's best."""


def peak(dtype: str) -> float:
    """Floating-point operations a second of one large matrix product."""
    a = jnp.ones((SIDE, SIDE), dtype)
    product = jax.jit(lambda a: a @ a)
    timed = run.work.clock(lambda: jax.block_until_ready(product(a)))
    return 2 * SIDE**3 / timed


def points() -> list[tuple[str, str, dict]]:
    """(case, name, fields) of everything that is measured here."""
    found = []
    for model, tiers, cohort in itertools.product(MODELS, TIERS, COHORTS):
        case = f"{model}, {cohort} hospitals, {tiers}"
        base = MODELS[model] | TIERS[tiers] | {"cohort": cohort}
        for (name, laid), dtype in itertools.product(LAYOUTS.items(), DTYPES):
            lowerings = ("xla", "shift") if model == "ResNet-18" else ("xla",)
            forms = ("masked", "sliced") if tiers == "five tiers" else ("masked",)
            for conv, form in itertools.product(lowerings, forms):
                fields = laid | {
                    "execution.dtype": dtype,
                    "execution.conv": conv,
                    "execution.form": form,
                }
                found.append((case, f"{name}, {conv}, {form}, {dtype}", base | fields))
    return found


def measure() -> list[Row]:
    """A row for every point, and for the PyTorch loop of every cohort of one tier."""
    best = {dtype: peak(dtype) for dtype in DTYPES}
    rows = []
    for case, name, fields in points():
        given = [f"{field}={value!r}" for field, value in fields.items()]
        row = run.once(None, "benchmarks.peers.ours", ("cnn", *given), platform="")
        images = fields["cohort"] * run.work.CASES["cnn"].records
        # A cohort has as many hospitals of every tier.
        flops = images * sum(row["flops_train"]) / len(row["flops_train"])
        rows.append(
            {"case": case, "name": name}
            | row
            | {
                "images_per_s": images / row["median_s"],
                "share_of_peak": flops
                / row["median_s"]
                / best[fields["execution.dtype"]],
            }
        )
    for cohort in COHORTS:
        case = f"ResNet-18, {cohort} hospitals, one tier"
        row = run.once(
            "pfl", "benchmarks.peers.torch_loop", ("cnn", "resnet18", str(cohort))
        )
        images = cohort * run.work.CASES["cnn"].records
        more = {"images_per_s": images / row["median_s"]}
        rows.append({"case": case, "name": "PyTorch, one by one"} | row | more)
    return rows


def table(rows: list[Row]) -> str:
    """Every row: seconds, images a second, share of the best matrix product."""
    lines = [
        "| | | a round | images a second | of a matrix product | MB |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        share = row.get("share_of_peak")
        lines.append(
            f"| {row['case']} | {row['name']} | {seconds(row['median_s'])} "
            f"| {row['images_per_s']:,.0f} "
            f"| {'' if share is None else f'{share:.0%}'} | {row['peak_rss_mb']:,} |"
        )
    return "\n".join(lines)
