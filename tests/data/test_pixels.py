"""Images as bytes: a model gets the same inputs as from floats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from fairjax.core import axes, require
from fairjax.core.types import Size
from fairjax.data import augment, federation, pixels
from fairjax.data.table import Table
from fairjax.experiment import compilation, resume
from fairjax.experiment.config import build, validate
from tests import fakes

BYTES = np.random.default_rng(0).integers(0, 256, (60, 3, 2, 2)).astype(np.uint8)
LINE = pixels.Pixels(np.float32([-0.7, 0]), np.float32([0.013, 1 / 255]))


def built(x=BYTES, normalise="pooled"):
    labels = np.arange(len(x), dtype=np.int32) % 2
    free = np.full(len(x), -1, np.int8)
    table = Table("own", x, labels, free, ("a", "b"), "made up", scale=255.0)
    settings = {"num_clients": 3, "alpha": 1.0, "min_size": 1, "seed": 0}
    cuts = {"test_fraction": 0.2, "val_fraction": 0.0}
    return federation.build(
        table, partition="iid", normalise=normalise, **settings, **cuts
    )


@pytest.mark.parametrize("normalise", ["pooled", "none"])
def test_bytes_are_packed_and_read_as_they_were(normalise):
    splits = built(normalise=normalise)
    data = pixels.to_uint8(splits.pixels, splits.train)
    assert data.x.dtype == np.uint8
    originals = {image.tobytes() for image in BYTES}
    assert all(image.tobytes() in originals for image in data.x)
    restored = pixels.to_float32(splits.pixels, data.x)
    np.testing.assert_allclose(restored, splits.train.x, rtol=0, atol=1e-6)
    assert restored.dtype == jnp.float32


def test_every_byte_comes_back():
    all_bytes = np.stack([np.arange(256, dtype=np.uint8)] * 2, axis=1)
    data = fakes.federation()
    host = np.asarray(all_bytes * LINE.step + LINE.low)
    back = pixels.to_uint8(LINE, type(data)(host, *jax.tree.leaves(data)[1:]))
    np.testing.assert_array_equal(back.x, all_bytes)


def test_only_bytes_that_all_hospitals_read_alike_have_a_line():
    assert built(normalise="client").pixels is None
    assert built(BYTES.astype(np.float32)).pixels is None
    data = fakes.federation()
    assert pixels.to_uint8(None, data) is data
    model = fakes.small_mlp()
    assert pixels.with_uint8_inputs(None, model) is model


@pytest.mark.slow
def test_a_model_takes_bytes_and_floats_at_every_size():
    model = pixels.with_uint8_inputs(LINE, fakes.small_cnn())
    x = BYTES[:4]
    floats = pixels.to_float32(LINE, x)
    assert pixels.to_float32(LINE, floats) is floats
    params = fakes.drawn(model, floats)
    assert fakes.equal(model.apply(params, x), model.apply(params, floats))
    size = Size(axes.prefix_sizes(model.axes, 0.5), {})
    submodel = model.resize(size)
    params = fakes.drawn(submodel, floats)
    assert fakes.equal(submodel.apply(params, x), submodel.apply(params, floats))


def test_bytes_are_read_before_they_are_changed():
    change = augment.chain(("crop",), LINE)
    x = jnp.full((64, 16, 16, 2), 255, jnp.uint8)
    values = np.unique(change(jax.random.key(0), x)[..., 0])
    np.testing.assert_allclose(values, [0, LINE.low[0] + 255 * LINE.step[0]], atol=1e-6)


def digits(stored):
    config = default.get_config()
    config.data.name = "digits"
    config.data.augment = ("crop",)
    config.model.name = "cnn"
    config.model.cnn.channels = (8,)
    config.clients_per_round = 2
    config.execution.pixels = stored
    return build.run(config)


def test_a_round_on_bytes_is_the_round_on_floats():
    ended = []
    for stored in ("auto", "float32"):
        run = digits(stored)
        state = resume.initial_state(run)
        step, program = compilation.compile_round(run, state)
        kinds = {leaf.dtype for leaf in jax.tree.leaves(program.args_info)}
        assert (jnp.dtype("uint8") in kinds) == (stored == "auto")
        ended.append(step(state)[0])
    assert fakes.gap(ended[0].params, ended[1].params) < 1e-5
    assert run.choices["execution.pixels"] == "float32: asked for"
    assert digits("uint8").choices["execution.pixels"] == "uint8: asked for"


def test_bytes_are_refused_where_there_are_none():
    config = default.get_config()
    assert build.run(config).choices["execution.pixels"].startswith("float32: ")
    config.execution.pixels = "uint8"
    message = r"^execution\.pixels: expected float32: the data are no bytes; got"
    with pytest.raises(require.InputError, match=message):
        build.run(config)
    config.execution.pixels = "unit8"
    with pytest.raises(require.InputError, match=r'execution\.pixels: .*"uint8"'):
        validate.check(config)
