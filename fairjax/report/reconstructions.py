"""A grid of images: a client's records beside the attackers' reconstructions."""

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fairjax.report.canvas import DPI, INK, png
from fairjax.report.lettering import literal

MAX_IMAGES = 10
"""The most images in a row."""


def grid(strips: Mapping[str, Float[np.ndarray, "n H W ch"]]) -> bytes:
    """A PNG with a row per name and a column per victim.

    Args:
        strips: name -> images with pixels in [0, 1]. The first `MAX_IMAGES` are drawn;
            of an image without exactly 3 channels only the first channel is drawn.
    """
    columns = min(MAX_IMAGES, *(len(strip) for strip in strips.values()))
    # Every image pixel covers a whole number of screen pixels; otherwise images would
    # be blurred and the file large.
    pad = math.ceil(next(iter(strips.values())).shape[1] / 28)
    height_px = next(iter(strips.values())).shape[1] + 2 * pad
    side = max(1, round(60 / height_px)) * height_px / DPI
    label = math.ceil(DPI * (0.055 * max(map(len, strips)) + 0.1)) / DPI
    width, height = label + columns * side, len(strips) * side
    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    for row, (name, strip) in enumerate(strips.items()):
        bottom = 1 - (row + 1) / len(strips)
        figure.text(
            0.02 / width,
            bottom + 0.5 / len(strips),
            literal(name),
            verticalalignment="center",
            fontsize=7,
            color=INK,
        )
        axes = figure.add_axes(
            (label / width, bottom, columns * side / width, 1 / len(strips))
        )
        tiles = np.pad(
            strip[:columns],
            [(0, 0), (pad, pad), (pad, pad), (0, 0)],
            constant_values=1,
        )
        line = np.concatenate(list(tiles), axis=1)
        if line.shape[-1] != 3:
            line = np.repeat(line[..., :1], 3, axis=-1)
        axes.imshow(line, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
    return png(figure)
