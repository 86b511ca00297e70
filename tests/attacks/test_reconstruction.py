"""scripts/attack.py: reconstructions of a leaking network, their rows, and refusals."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from fairjax import attacks
from fairjax.attacks import (
    hypotheses,
    reconstruction,
    reconstruction_figures,
    victims,
)
from fairjax.attacks.inversion import Result
from fairjax.core import require
from fairjax.experiment import cli
from fairjax.experiment.config import conversion
from fairjax.experiment.io import workdir
from scripts import attack as script

SIDE = 12


@pytest.fixture(autouse=True)
def _optax_promotes():
    """Its Adam raises a float to the power of a count."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Blobs whose place is their class, each with its own shade."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, number in (("train", 24), ("test", 12)):
        label = np.arange(number) % 3
        images = rng.uniform(0, 60, (number, SIDE, SIDE, 1))
        for image, place in zip(images, label, strict=True):
            row = 3 * place + rng.integers(0, 3)
            image[row : row + 4, 2:9] += rng.uniform(80, 190)
        arrays[f"{split}_images"] = images.astype(np.uint8)
        arrays[f"{split}_labels"] = label
    path = tmp_path_factory.mktemp("data") / "blobs.npz"
    np.savez(path, **arrays)
    return str(path)


def config_of(pictures, **fields):
    config = default.get_config()
    config.update_from_flattened_dict(
        {
            "data.name": "npz",
            "data.path": pictures,
            "data.partition.name": "iid",
            "data.partition.num_clients": 2,
            "model.name": "mlp",
            "model.mlp.hidden": (16,),
            "submodel.heterofl.masked_loss": False,
            "tiers.budget": (0.5, 1.0),
            "tiers.proportions": (1.0, 1.0),
            "local.batch_size": 4,
        }
        | fields
    )
    return config


def opened(pictures, folder, **fields):
    with jax.numpy_dtype_promotion("standard"):
        return attacks.load_target(folder, config_of(pictures, **fields))


QUICK = {
    "images": 3,
    "iterations": 150,
    "restarts": 1,
    "tier": [0],
    "level": ["tier"],
}


def test_an_open_upload_gives_the_image_away_and_noise_does_not(pictures, tmp_path):
    other = {"attack": "membership", "auc": 0.5}
    old = {"attack": "inversion", "psnr": 1.0}
    workdir.write_json(tmp_path / "attack.json", [other, old])
    (row,) = attacks.attack("inversion", *opened(pictures, tmp_path), tmp_path, QUICK)
    assert row["rank1"] == row["label"] == 1
    assert row["psnr_low"] > row["baseline_psnr_nearest"]
    assert row["ssim_low"] > row["baseline_ssim_nearest"]
    assert row["psnr_low"] <= row["psnr"] <= row["psnr_high"]
    named = {"variant": "cosine", "observable": "gradient", "tier": 0, "level": "tier"}
    assert named.items() <= row.items()
    # Rows of other attacks stay, and earlier rows of this one go.
    assert json.loads((tmp_path / "attack.json").read_text()) == [other, row]
    assert (tmp_path / "attack_inversion.png").read_bytes().startswith(b"\x89PNG")
    noise = {"mechanism": "local_dp", "clip": 1.0, "noise_multiplier": 1.0}
    noise = {f"privacy.{name}": value for name, value in noise.items()}
    run, state = opened(pictures, tmp_path, **noise)
    settings = reconstruction.Inversion(
        images=3, iterations=150, restarts=1, level=("tier",)
    )
    found = reconstruction_figures.evaluate(
        run, settings, reconstruction.invert(run, state, settings)[0, "tier"]
    )
    assert found["psnr"] < found["baseline_psnr_mean"]
    assert found["ssim"] < 0.1 < row["ssim"]


def test_guesses_are_what_they_are_called(pictures, tmp_path):
    """PSNR of equal images is not a number; the guesses still have figures."""
    run, _ = opened(pictures, tmp_path)
    public = victims.to_pixels(run, run.splits.test.x)
    assert public.min() == 0
    assert public.max() == 1
    true = public[[3, 5]][:, None]
    made = reconstruction.Reconstruction(true, true, np.ones(2), None, np.zeros(2))
    row = reconstruction_figures.evaluate(run, reconstruction.Inversion(images=2), made)
    assert row["psnr"] is None
    assert row["ssim"] == pytest.approx(1, abs=1e-5)
    # The true images are public themselves, so each is its own nearest image.
    assert row["baseline_psnr_nearest"] is None
    mean = np.mean((true[:, 0] - public.mean(0)) ** 2, axis=(1, 2, 3))
    expected = np.mean([-10 * math.log10(each) for each in mean])
    assert row["baseline_psnr_mean"] == pytest.approx(expected, abs=1e-3)
    assert row["baseline_rank1"] == 1 / (2 + 12)


def test_images_of_a_batch_are_matched_and_labels_counted():
    true = np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1, 1) / 2
    targets = victims.Victims(
        jnp.asarray(true), jnp.asarray([[0, 0, 2]]), jnp.asarray([0]), true
    )
    best = Result(
        true[:, [2, 0, 1]] + 0.01, np.asarray([[2, 1, 0]]), np.zeros(1), np.zeros(1)
    )
    made = reconstruction.match_records(targets, best, None)
    np.testing.assert_allclose(made.images, true + 0.01)
    assert made.label.tolist() == [pytest.approx(2 / 3)]


@pytest.mark.parametrize(
    ("observable", "steps", "size"),
    [("gradient", 1, 5), ("steps", 3, 5), ("round", 4, 4)],
)
def test_what_the_server_sees(pictures, tmp_path, observable, steps, size):
    """A round of five records, in batches of four, twice."""
    run, _ = opened(pictures, tmp_path, **{"local.epochs": 2})
    settings = reconstruction.Inversion(observable=observable, steps=3, records=5)
    plan = reconstruction.attacked_problem(run, settings).schedule
    assert (plan.steps, plan.batch_size) == (steps, size)


def test_a_search_goes_through_every_tier_and_structure(pictures, tmp_path):
    branched = {
        "submodel.name": "dynamicfl",
        "tiers.branches": (0, 1),
        "submodel.dynamicfl.families": ("linear", "lowrank", "linear"),
    }
    run, state = opened(pictures, tmp_path, **branched)
    guess = hypotheses.search_space(run, state)
    assert guess.tier.tolist() == [0, 1, 1, 1]
    assert guess.alive.sum((1, 2)).tolist() == [0, 1, 1, 1]
    # Under a width method the tier determines the client.
    assert hypotheses.search_space(*opened(pictures, tmp_path)).alive is None


REFUSED = {
    ("--attack=inversoin",): "--attack: expected one of inversion, .* Did you mean",
    ("--level=teir",): "--level: expected one of plain, tier, structure, search",
    ("--tier=2",): r"--tier: expected a finite number in \[0, 1\]; got 2",
    ("--images=99",): "--images: expected at most the 22 records",
    ("--restarts=0",): "--restarts: expected a whole number above 0; got 0",
    ("--variant=dlg",): "--level: expected no search with variant dlg",
    ("--observable=batch",): "--observable: expected one of gradient, steps, round",
    ("--config=none.py",): "--config: expected a config; got",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_bad_input_is_one_line_and_exit_code_2(flags, pictures, tmp_path, capsys):
    config = tmp_path / "c.py"
    config.write_text(
        "from tests.attacks.test_reconstruction import config_of\n"
        f"def get_config():\n    return config_of({pictures!r})\n"
    )
    folder = tmp_path / "out"
    argv = ["attack.py", f"--config={config}", f"--workdir={folder}", *flags]
    with pytest.raises(SystemExit) as stop:
        cli.run(script.main, script.define, argv)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("attack.py: ")
    with pytest.raises(require.InputError, match=REFUSED[flags]):
        raise require.InputError(line)
    assert not folder.exists()


def test_folders_that_do_not_fit_are_refused(pictures, tmp_path, capsys):
    with pytest.raises(require.InputError, match="expected a run"):
        attacks.load_target(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(require.InputError, match="--config: expected none"):
        attacks.load_target(tmp_path, config_of(pictures))
    (tmp_path / "attack.json").write_text('[{"no": "rows"}]')
    with pytest.raises(require.InputError, match="expected rows of attacks"):
        attacks._read_rows(tmp_path / "attack.json")


def test_what_cannot_be_attacked_is_refused(pictures, tmp_path):
    run, _ = opened(pictures, tmp_path)

    def refused(what, run, **settings):
        with pytest.raises(require.InputError, match=what):
            reconstruction._check_settings(
                run, reconstruction.Inversion(images=2, **settings)
            )

    def private(**fields):
        paths = {f"privacy.{field}": value for field, value in fields.items()}
        config = conversion.with_values(run.config, paths)
        return dataclasses.replace(run, config=config)

    refused("privacy.mechanism: .* client_dp", private(mechanism="client_dp"))
    refused("privacy.secure_sum: expected off", private(secure_sum="masked"))
    flat = dataclasses.replace(run.splits.train, x=run.splits.train.x[:, 0, :, 0])
    splits = dataclasses.replace(run.splits, train=flat)
    refused(r"data\.name: .* 11 x 11", dataclasses.replace(run, splits=splits))
    own = run.spec.local.method._replace(objective=run.spec.local.objective)
    local = run.spec.local._replace(method=own)
    spec = dataclasses.replace(run.spec, local=local)
    cosine = dataclasses.replace(run, spec=spec)
    refused("--variant: expected cosine", cosine, variant="dlg", level=("tier",))
