"""Second stage of a run: the network that travels, and how it reads images."""

from typing import NamedTuple

import jax

from fairjax.core import axes, require
from fairjax.core.types import Model
from fairjax.data import federation, pixels
from fairjax.experiment.config import lookup, registry
from fairjax.experiment.config.build_data import sample_shape
from fairjax.experiment.config.schema import Config
from fairjax.models import adapt

MAX_PARAMETERS = 2**34
"""Largest model: 64 GiB of float32."""


class ModelChoice(NamedTuple):
    """A model and the form of its inputs on the device."""

    model: Model
    pixels: pixels.Pixels | None
    """How the model reads images kept as bytes; None: inputs lie as they are."""
    reason: str
    """The form of the inputs and why it was chosen."""


def model_choice(c: Config, splits: federation.Splits) -> ModelChoice:
    """The model of a checked config for its data.

    Raises:
        InputError: the model cannot take the data or carry the method, or it has too
            many parameters.
    """
    entry = registry.METHODS[c.submodel.name]
    if not registry.MODELS[c.model.name].tabular and splits.train.x.ndim != 4:
        choices = [name for name, model in registry.MODELS.items() if model.tabular]
        expected = f"one of {', '.join(choices)} for a table"
        require.fail("model.name", expected, c.model.name)
    if c.data.augment and splits.train.x.ndim != 4:
        require.fail("data.augment", "() for a table", c.data.augment)
    choices = [
        name
        for name, model in registry.MODELS.items()
        if (model.residual or not entry.blocks) and (model.exits or not entry.exits)
    ]
    if c.model.name not in choices:
        expected = f"one of {', '.join(choices)} for submodel.name {c.submodel.name}"
        require.fail("model.name", expected, c.model.name)
    model = lookup.model(c, len(splits.classes))
    model = adapt.computing_in(c.execution.dtype, model)
    image_pixels, reason = byte_pixels(c, splits)
    model = pixels.with_uint8_inputs(image_pixels, model)
    with lookup.model_options(c):
        shapes = jax.eval_shape(model.init, jax.random.key(0), sample_shape(splits))
    parameters = float(sum(leaf.size for leaf in jax.tree.leaves(shapes)))
    where = f"parameters of model {c.model.name}"
    require.in_range(where, parameters, 1, MAX_PARAMETERS)
    axes.check(f"model {c.model.name}", shapes, model.axes)
    return ModelChoice(model, image_pixels, reason)


def byte_pixels(
    c: Config, splits: federation.Splits
) -> tuple[pixels.Pixels | None, str]:
    """(how the device reads images kept as bytes, reason); None: as float32.

    Raises:
        InputError: the config asks for bytes where the data allow none.
    """
    setting = c.execution.pixels
    if setting != "float32" and splits.pixels is not None:
        reason = "asked for" if setting == "uint8" else "the data are bytes"
        return splits.pixels, f"uint8: {reason}"
    obstacle = "the data are no bytes"
    if c.data.normalise == "client" and splits.train.x.ndim == 4:
        obstacle = "every hospital normalises by itself"
    if setting == "uint8":
        require.fail("execution.pixels", f"float32: {obstacle}", setting)
    return None, f"float32: {'asked for' if setting == 'float32' else obstacle}"
