"""What is attacked: the newest checkpoint of a run, or the first model of a config."""

from fairjax import attacks
from fairjax.experiment.train import train
from tests import fakes
from tests.trained import small


def test_the_first_model_of_a_config_is_that_of_the_run_that_it_starts_from(tmp_path):
    source = tmp_path / "source"
    trained = train(small(rounds=1), source)
    config = small(seed=1, model__init_from=str(source))
    _, state = attacks.load_target(tmp_path / "attack", config)
    assert fakes.equal(state.params, trained.state.params)
    _, state = attacks.load_target(tmp_path / "attack", small(seed=1))
    assert not fakes.equal(state.params, trained.state.params)
