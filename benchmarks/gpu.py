"""ResNet-18 and ViT-tiny on an accelerator: layouts, lowerings and precisions.

    python scripts/bench.py --name=gpu

The benchmark needs a machine with a GPU or TPU; on a CPU it would take hours. It trains
on images of 32 x 32 at 100 clients, 10 or 100 of them in a round, with one tier or with
the five of HeteroFL. It also times the pattern of released codes, PyTorch that trains
one client after the other. The fastest layout here is what `auto` should choose on such
a machine.
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
        "tiers.proportions": (1.0,) * 5,
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
"""The side of the square matrices whose product measures the peak of the machine."""


def peak(dtype: str) -> float:
    """Floating-point operations per second of one large matrix product."""
    a = jnp.ones((SIDE, SIDE), dtype)
    product = jax.jit(lambda a: a @ a)
    duration = run.work.clock(lambda: jax.block_until_ready(product(a)))
    return 2 * SIDE**3 / duration


def points() -> list[tuple[str, str, dict]]:
    """(case, name, config fields) of every measured point."""
    rows = []
    for model, tiers, cohort in itertools.product(MODELS, TIERS, COHORTS):
        case = f"{model}, {cohort} hospitals, {tiers}"
        base = MODELS[model] | TIERS[tiers] | {"clients_per_round": cohort}
        for (name, layout_fields), dtype in itertools.product(LAYOUTS.items(), DTYPES):
            lowerings = ("xla", "shift") if model == "ResNet-18" else ("xla",)
            forms = ("masked", "sliced") if tiers == "five tiers" else ("masked",)
            for conv, form in itertools.product(lowerings, forms):
                fields = layout_fields | {
                    "execution.dtype": dtype,
                    "execution.conv": conv,
                    "execution.form": form,
                }
                rows.append((case, f"{name}, {conv}, {form}, {dtype}", base | fields))
    return rows


def measure() -> list[Row]:
    """A row for every point, and for the PyTorch loop with every cohort size."""
    best = {dtype: peak(dtype) for dtype in DTYPES}
    rows = []
    for case, name, fields in points():
        overrides = [f"{field}={value!r}" for field, value in fields.items()]
        row = run.run_once(
            None, "benchmarks.peers.ours", ("cnn", *overrides), platform=""
        )
        images = fields["clients_per_round"] * run.work.CASES["cnn"].records
        # A cohort has equally many clients of every tier.
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
        row = run.run_once(
            "pfl", "benchmarks.peers.torch_loop", ("cnn", "resnet18", str(cohort))
        )
        images = cohort * run.work.CASES["cnn"].records
        throughput = {"images_per_s": images / row["median_s"]}
        rows.append({"case": case, "name": "PyTorch, one by one"} | row | throughput)
    return rows


def table(rows: list[Row]) -> str:
    """A Markdown table: seconds, images per second, share of the matrix product."""
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
