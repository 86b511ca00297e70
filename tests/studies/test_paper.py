"""configs/paper: presets pass their checks, alone and joined, and methods build."""

import importlib

import jax
import pytest

from configs import default
from configs.paper import setting
from fairjax.core import require
from fairjax.experiment import compilation, resume
from fairjax.experiment.config import build, conversion, lookup, registry, validate

FILES = ("blood_cells", "cancer_slides", "chest_xray", "cifar10")
PRESETS = setting.presets("bloodmnist/224")


def config_of(file, preset=""):
    return importlib.import_module(f"configs.paper.{file}").get_config(preset)


@pytest.mark.parametrize("file", FILES)
def test_every_file_is_the_setting_on_its_data_and_says_how_to_run_it(file):
    config = config_of(file)
    validate.check(config)
    assert (config.rounds, config.local.epochs, config.local.batch_size) == (100, 5, 16)
    text = importlib.import_module(f"configs.paper.{file}").__doc__
    assert f"scripts/train.py --config=configs/paper/{file}.py" in text
    assert f"scripts/prepare_data.py --name={config.data.name}" in text
    assert config_of(file, "smoke").rounds == 2


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_passes_its_checks(preset):
    config = config_of("blood_cells", preset)
    validate.check(config)
    joined = config_of("blood_cells", f"ratio433+{preset}+hospitals90")
    validate.check(joined)
    assert joined.data.partition.num_clients == 90


@pytest.mark.parametrize("size", ["", "vit_tiny+"])
@pytest.mark.parametrize("method", registry.METHODS)
def test_every_method_fits_the_networks(size, method):
    c = conversion.to_typed(config_of("blood_cells", size + method))
    assert lookup.method(c, lookup.model(c, 8).axes).submodel is not None


def test_every_method_has_a_preset():
    assert registry.METHODS.keys() <= PRESETS.keys()


def test_presets_join_in_their_order():
    config = config_of("blood_cells", "vit_small+ratio361+overlap3+fedrolex")
    assert config.model.vit.width == 384
    assert config.data.name == "bloodmnist/224"
    assert config.tiers.proportions == (3.0, 6.0, 1.0)
    law = config.data.partition
    assert (law.name, law.alpha) == ("dirichlet_overlap", 0.3)
    assert (config.submodel.name, config.tiers.branches) == ("fedrolex", ())
    back = config_of("cifar10", "fedrolex+dynamicfl")
    assert back.to_dict() == config_of("cifar10").to_dict()
    with pytest.raises(require.InputError, match='Did you mean "ratio433"'):
        default.preset(default.get_config(), "smoke+ratio434", **PRESETS)


@pytest.mark.slow
def test_the_setting_trains_in_small():
    config = config_of("chest_xray", "smoke")
    run = build.run(config)
    state = resume.initial_state(run)
    step, _ = compilation.compile_round(run, state)
    after, (_, info) = step(state)
    moved = jax.tree.map(lambda a, b: abs(a - b).max(), after.params, state.params)
    assert max(jax.tree.leaves(moved)) > 0
    assert info.valid.any()
