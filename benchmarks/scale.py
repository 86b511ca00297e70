"""The growth of a round's time with clients, cohort, tiers, width and devices.

    python scripts/bench.py --name=scale

The benchmark takes five minutes on 2 CPU cores. Every point runs in its own process.
Devices are simulated and share the machine's cores.
"""

import io
import pathlib
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.peers import run
from benchmarks.rows import Row, seconds

AXES: dict[str, tuple[str, Sequence[int], str]] = {
    "clients": ("lr", (10, 100, 1_000, 10_000, 100_000), "hospitals, 10 a round"),
    "cohort": ("lr", (10, 100, 1_000), "hospitals a round, of 10,000"),
    "tiers": ("dense", (1, 2, 4, 8), "tiers of HeteroFL, sliced, 8 hospitals a round"),
    "width": ("dense", (64, 256, 1_024), "units of both hidden layers"),
    "devices": ("dense", (1, 2, 4), "simulated devices, 8 hospitals a round"),
}
"""Axis -> (case, points, description)."""


def fields(axis: str, point: int) -> list[str]:
    """The fields of the case and its config at a point."""
    tiers = tuple(round((t + 1) / point, 3) for t in range(point))
    overrides = {
        "clients": {"work.clients": point, "work.cohort": 10, "work.rounds": 100},
        "cohort": {
            "work.clients": 10_000,
            "work.cohort": point,
            "work.rounds": 100,
        },
        "tiers": {
            "work.cohort": 8,
            "submodel.name": "heterofl",
            "tiers.budget": tiers,
            "tiers.proportions": (1.0,) * point,
            "execution.slots": "stratified",
            "execution.form": "sliced",
        },
        "width": {"model.mlp.hidden": (point, point), "work.rounds": 10},
        "devices": {"work.cohort": 8, "execution.devices": point},
    }
    return [f"{field}={value!r}" for field, value in overrides[axis].items()]


def measure() -> list[Row]:
    """A row for every point."""
    rows = []
    for axis, (case, points, _) in AXES.items():
        for point in points:
            flags = ""
            if axis == "devices":
                flags = f"--xla_force_host_platform_device_count={point}"
            row = run.run_once(
                None, "benchmarks.peers.ours", (case, *fields(axis, point)), flags=flags
            )
            rows.append({"case": axis, "name": "fairjax", "point": point} | row)
    return rows


def slope(rows: Sequence[Row]) -> float:
    """The slope of log seconds over log points between the last two points.

    A slope of 1 means that time is proportional to the axis.
    """
    (x0, y0), (x1, y1) = ((row["point"], row["median_s"]) for row in rows[-2:])
    return float(np.log(y1 / y0) / np.log(x1 / x0))


def table(rows: list[Row]) -> str:
    """A Markdown table of seconds, compile seconds and memory of every point."""
    lines = [
        "| | | a round | compile | MB |",
        "|---|--:|--:|--:|--:|",
    ]
    for axis, (_, _, description) in AXES.items():
        axis_rows = [row for row in rows if row["case"] == axis]
        for row in axis_rows:
            label = (
                f"{description} (slope {slope(axis_rows):.2f})"
                if row is axis_rows[0]
                else ""
            )
            cells = [
                f"{row['point']:,}",
                seconds(row["median_s"]),
                f"{row['compile_s']:.1f} s",
                f"{row['peak_rss_mb']:,}",
            ]
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """Draws the seconds of a round over every axis."""
    figure, panels = plt.subplots(1, len(AXES), figsize=(3 * len(AXES), 2.6))
    for panel, (axis, (_, _, description)) in zip(panels, AXES.items(), strict=True):
        axis_rows = [row for row in rows if row["case"] == axis]
        points, durations = zip(
            *((r["point"], r["median_s"]) for r in axis_rows), strict=True
        )
        panel.loglog(points, durations, "o-")
        panel.set_title(axis)
        panel.set_xlabel(description.split(",")[0], fontsize=8)
        panel.set_ylim(bottom=min(durations) / 2, top=2 * max(durations))
        panel.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("seconds a round")
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    path.write_bytes(buffer.getvalue())
    plt.close(figure)
