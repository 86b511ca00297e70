"""From names to functions: every name runs, and a config says what it means."""

import dataclasses
import functools
import itertools
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import (
    breast_cancer,
    default,
    diabetes130,
    digits,
    heart_disease,
    pbc_blood28,
    smoke,
    vit,
)
from fairjax.core import require, round
from fairjax.core.types import LeafAxes
from fairjax.data import federation
from fairjax.experiment.config import build, registry, validate
from fairjax.experiment.train import initial

CONFIGS = pathlib.Path(default.__file__).parent
BATCHINGS = ("vmap", "scan", "chunk")
SMALL = {
    "model.mlp.hidden": (8,),
    "model.cnn.channels": (4, 8),
    "model.lenet.channels": (4, 4),
    "model.lenet.hidden": (8,),
    "model.two_conv.channels": (4, 4),
    "model.two_conv.hidden": (8,),
    "model.resmlp.width": 8,
    "model.resmlp.hidden": 8,
    "model.resmlp.depth": 2,
    "model.resnet.channels": (8, 8),
    "model.resnet.blocks": (1, 1),
    "model.vit.width": 8,
    "model.vit.depth": 1,
    "model.vit.heads": 2,
    "model.vit.patch": 4,
}

AXES = {
    "model.name": ("mlp", "cnn"),
    "submodel.name": ("fedavg", "heterofl"),
    # One of every kind; tests/fairness has all of them.
    "fairness.rule": ("size", "term", "fedmgda", "ditto"),
    "local.optimizer": tuple(registry.OPTIMIZERS),
    "server.optimizer": tuple(registry.SERVERS),
    "local.schedule": tuple(registry.SCHEDULES),
    "execution.batching": BATCHINGS,
}


def changed(**fields):
    config = default.get_config()
    names = {name.replace("__", "."): value for name, value in fields.items()}
    config.update_from_flattened_dict(names)
    return config


def cover(axes, number):
    """Rows in which any `number` values of different axes meet, chosen greedily."""
    every = [
        dict(zip(axes, values, strict=True))
        for values in itertools.product(*axes.values())
    ]
    meetings = [set(itertools.combinations(row.items(), number)) for row in every]
    left, rows = set().union(*meetings), []
    while left:
        best = max(range(len(every)), key=lambda i: len(left & meetings[i]))
        rows.append(every[best])
        left -= meetings[best]
    return rows


def one_round(fields):
    """One round and one evaluation of a small federation; the params after it."""
    config = default.get_config()
    config.update_from_flattened_dict(
        {
            "data.partition.num_clients": 4,
            **SMALL,
            "local.batch_size": 64,
            "local.learning_rate": 0.01,
            "local.milestones": (1,),
            "local.decay_rate": 0.5,
            "local.prox": 0.1,
            "local.clip": 1.0,
            "server.learning_rate": 0.5,
            **fields,
        }
    )
    if fields["model.name"] not in registry.FOR_TABLES:
        config.data.name = "digits"
    # optax's Adam does not promote strictly.
    with jax.numpy_dtype_promotion("standard"):
        run = build.build(config)
        identity = build.identity(run)
        assert json.loads(json.dumps(identity)) == identity
        state = initial(run)
        cohort = federation.sample(
            state.key, state.round, jnp.asarray(run.tiers), run.cohort
        )
        step = functools.partial(round.step, spec=run.spec, layout=run.layout)
        new, info = jax.jit(step)(state, run.splits.train, cohort)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), new.params, state.params)
    return new, info, max(jax.tree.leaves(moved))


def works(fields):
    new, info, moved = one_round(fields)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(new.params))
    assert moved > 0
    np.testing.assert_allclose(np.sum(info.weights), 1, rtol=1e-5)


PAIRS = cover(AXES, 2)
CONVOLVED = ("lenet", "resnet", "two_conv")
"""Trained by `make verify`; tests/test_models.py has their answers."""
IMAGES = [fields for fields in PAIRS if fields["model.name"] == "cnn"]


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(fields, marks=pytest.mark.slow if fields in IMAGES[2:] else [])
        for fields in PAIRS
    ],
    ids=lambda fields: "-".join(fields.values()),
)
def test_every_two_names_work_together(fields):
    works(fields)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in CONVOLVED else [])
        for name in sorted(registry.MODELS.keys() - set(AXES["model.name"]))
    ],
)
def test_every_model_trains(name):
    works({"model.name": name, "tiers.budget": (0.5, 1.0), "tiers.share": (1.0, 1.0)})


@pytest.mark.slow
@pytest.mark.parametrize("fields", cover(AXES, 3), ids=lambda f: "-".join(f.values()))
def test_every_three_names_work_together(fields):
    works(fields)


# --------------------------------------------------------------------------- the config


def test_every_field_of_the_default_is_explained():
    text = (CONFIGS / "default.py").read_text().split("def preset")[0]
    groups = re.findall(r"^    c\.([\w.]+) = ConfigDict\(\)", text, re.MULTILINE)
    lines = text.splitlines()
    for number, line in enumerate(lines):
        match = re.match(r"    c\.([\w.]+) = ", line)
        if match and match[1] not in groups:
            assert "  # " in line or lines[number - 1].strip().startswith("#"), line


def test_groups_of_a_csv_reach_the_splits(tmp_path):
    rows = [f"{20 + i},{'mf'[i % 2]},{i % 3},{i % 2}" for i in range(60)]
    (tmp_path / "mine.csv").write_text("\n".join(["age,sex,dose,ill", *rows]))
    config = default.get_config()
    config.update_from_flattened_dict(
        {
            "data.name": "csv",
            "data.path": str(tmp_path / "mine.csv"),
            "data.label": "ill",
            "data.group": ("sex", "age:40:60"),
            "data.partition.num_clients": 4,
        }
    )
    splits = build.build(validate.from_plain(validate.plain(config))).splits
    assert [attribute.name for attribute in splits.groups] == ["sex", "age"]
    assert splits.groups[1].values[1] == "40 to under 60"
    everybody = np.concatenate(
        [splits.train.group, splits.val.group, splits.test.group]
    )
    assert np.bincount(everybody[:, 1]).tolist() == [20, 20, 20]


EXAMPLES = (breast_cancer, diabetes130, digits, heart_disease, pbc_blood28, vit)


@pytest.mark.parametrize("config", [*EXAMPLES, smoke])
def test_every_config_passes_its_checks_and_says_how_to_run_it(config):
    validate.check(config.get_config())
    name = config.__name__.rpartition(".")[2]
    assert f"scripts/train.py --config=configs/{name}.py --workdir=" in config.__doc__


@pytest.mark.parametrize(
    ("preset", "expected"),
    [("tiny", 5.4), ("small", 21.3), ("base", 85.1), ("1b", 1259.5)],
)
def test_transformers_of_the_paper_have_their_sizes(preset, expected):
    config = vit.get_config(preset)
    validate.check(config)
    family = registry.METHODS[config.submodel.name]
    model = registry.MODELS["vit"](config, 8, family)
    image = jax.ShapeDtypeStruct((1, 28, 28, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count / 1e6 == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("config", EXAMPLES)
def test_every_config_has_a_smoke_preset(config):
    assert config.get_config("smoke").rounds == 2
    with pytest.raises(require.InputError, match=r"preset of --config: .*'somke'"):
        config.get_config("somke")


def test_a_config_survives_its_json():
    config = changed(local__steps=3, tiers__budget=(0.5, 1.0), tiers__share=(1.0, 1.0))
    again = validate.from_plain(validate.plain(config))
    assert isinstance(again, ConfigDict)
    assert again.to_dict() == config.to_dict()


def test_differences_name_the_fields():
    ours = validate.plain(changed(seed=3, local__momentum=0.5))
    theirs = validate.plain(default.get_config())
    del theirs["data"]["name"]
    assert validate.differences(ours, theirs) == ["data.name", "local.momentum", "seed"]
    assert validate.differences(ours, ours) == []


def test_tuples_in_tuples_survive_json():
    fields = {"tiers__schedule": ((3, 1, 0),), "robust__faults": (("nan", 0.5, 1.0),)}
    config = changed(**fields)
    stored = json.loads(json.dumps(validate.plain(config)))
    assert stored == validate.plain(config)
    assert validate.differences(stored, validate.plain(config)) == []
    assert validate.from_plain(stored).tiers.schedule == fields["tiers__schedule"]
    validate.check(validate.from_plain(stored))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"execution__form": "sliced", "execution__batching": "scan"}, ""),
        ({"checkpoint__keep": 9, "data__data_dir": "/mnt/data", "rounds": 60}, ""),
        ({"local__schedule": "cosine"}, "local.schedule, rounds"),
        ({"local__prox": 0.1}, "local.prox"),
        ({"seed": 1}, "data, seed"),
        ({"tiers__budget": (0.1, 0.5, 0.75, 1.0)}, "tier 0, tiers.budget"),
        (
            {"model__mlp__hidden": (31,)},
            "model.mlp.hidden, tier 0, tier 1, tier 2, tier 3",
        ),
    ],
)
def test_the_identity_of_a_run_is_what_decides_its_state(fields, named):
    ours, theirs = (
        build.identity(build.build(config)) for config in (changed(), changed(**fields))
    )
    differing = [n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)]
    assert ", ".join(sorted(differing)) == named


def test_the_identity_knows_axes_that_the_config_does_not_name():
    """As where a later version of a model cuts what an earlier one did not."""
    run = build.build(changed())
    model = run.spec.local.model
    tree = {**model.axes.tree, "head": {**model.axes.tree["head"]}}
    tree["head"]["bias"] = LeafAxes(("head",))
    local = run.spec.local._replace(
        model=model._replace(axes=model.axes._replace(tree=tree))
    )
    other = dataclasses.replace(run, spec=dataclasses.replace(run.spec, local=local))
    ours, theirs = build.identity(run), build.identity(other)
    differing = {n for n in ours if ours[n] != theirs[n]}
    assert differing == {f"tier {t}" for t in range(4)}


RATES = {"decay_rate": 0.5, "milestones": (4, 7)}


def numpy_factor(name, warmup, rounds):
    """A schedule's factor in every round and the one after the last, in NumPy."""
    r = np.arange(rounds + 1.0)
    since, length = np.maximum(r - warmup, 0), rounds - warmup
    factor = {
        "constant": np.ones_like(r),
        "linear": 1 - since / length,
        "cosine": (1 + np.cos(np.pi * since / length)) / 2,
        "steps": 0.5 ** (r[:, None] >= [4, 7]).sum(1),
        "exponential": 0.5**since,
    }[name]
    return np.where(r < warmup, (r + 1) / (warmup + 1), factor)


@pytest.mark.parametrize("warmup", [0, 1, 3])
@pytest.mark.parametrize("name", registry.SCHEDULES)
def test_a_schedule_is_its_formula_in_every_round(name, warmup):
    fields = {"schedule": name, "warmup": warmup, **RATES}
    factor = registry.schedule(ConfigDict(fields), 10)
    got = [float(factor(jnp.asarray(number))) for number in range(11)]
    np.testing.assert_allclose(got, numpy_factor(name, warmup, 10), atol=1e-6)


def test_the_schedules_of_a_config_are_those_of_its_round():
    fields = {f"local__{field}": value for field, value in RATES.items()}
    fields |= {f"server__{field}": value for field, value in RATES.items()}
    config = changed(
        local__schedule="steps", server__schedule="exponential", rounds=10, **fields
    )
    spec = build.build(config).spec
    factors = {"steps": spec.schedule, "exponential": spec.server_schedule}
    for name, factor in factors.items():
        got = [float(factor(jnp.asarray(number))) for number in range(11)]
        np.testing.assert_allclose(got, numpy_factor(name, 0, 10), atol=1e-6)


@pytest.mark.parametrize("group", validate.RATES)
def test_a_run_is_extended_where_no_schedule_rests_on_its_rounds(group):
    can = {
        name: validate.extendable(
            validate.plain(changed(**{f"{group}__schedule": name}))
        )
        for name in registry.SCHEDULES
    }
    assert [name for name in can if not can[name]] == ["linear", "cosine"]
    for name in registry.SCHEDULES:
        made = [
            registry.schedule(ConfigDict({"schedule": name, "warmup": 2, **RATES}), n)
            for n in (8, 16)
        ]
        short, long = (
            [float(factor(jnp.asarray(number))) for number in range(8)]
            for factor in made
        )
        assert (short == long) == can[name]


def test_a_method_that_begins_by_a_share_of_the_rounds_is_not_extended():
    def can(**options):
        fields = {f"submodel__scalefl__{name}": v for name, v in options.items()}
        config = changed(submodel__name="scalefl", **fields)
        return validate.extendable(validate.plain(config))

    assert not can()
    assert can(gamma=0.0)
    assert can(warmup=0.0)


@pytest.mark.parametrize("group", validate.RATES)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "step"}, 'schedule: expected one of .*mean "steps"'),
        ({"warmup": -1}, "warmup: expected a finite number >= 0; got -1"),
        (
            {"schedule": "steps", "decay_rate": 0.1},
            r"milestones: expected rounds for schedule steps; got \(\)",
        ),
        (
            {"schedule": "steps", "milestones": (3,)},
            "decay_rate: expected a factor for schedule steps; got None",
        ),
        (
            {"schedule": "exponential"},
            "decay_rate: expected a factor for schedule exponential; got None",
        ),
        (
            {"schedule": "exponential", "decay_rate": 1.5},
            r"decay_rate: expected a finite number in \(0, 1\]; got 1.5",
        ),
        ({"milestones": (0.5,)}, "milestones: expected a whole number above 0"),
        (
            {"schedule": "steps", "decay_rate": 0.1, "milestones": (7, 4)},
            r"milestones: expected rounds that increase, .*; got \(7, 4\)",
        ),
        (
            {"schedule": "steps", "decay_rate": 0.1, "milestones": (4,), "warmup": 5},
            r"milestones: expected .* none of the 5 of warmup; got \(4,\)",
        ),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(group, fields, message):
    config = changed(**{f"{group}__{field}": v for field, v in fields.items()})
    with pytest.raises(require.InputError, match=rf"{group}\.{message}"):
        validate.check(config)


@pytest.mark.parametrize("group", validate.RATES)
def test_an_option_that_the_schedule_does_not_read_is_refused(group):
    config = changed(**{f"{group}__schedule": "exponential"})
    config[group].decay_rate, config[group].milestones = 0.9, (3,)
    path = f"{group}.milestones"
    validate.check(config, (f"{group}.decay_rate", f"{group}.warmup"))
    with pytest.raises(require.InputError) as refused:
        validate.check(config, (path,))
    what = f"{path}: expected {group}.schedule='steps' for this option"
    assert str(refused.value) == f"{what}; got 'exponential'"


def test_auto_is_resolved_and_explained():
    run = build.build(changed(data__name="digits", model__name="cnn"))
    named = ("form", "batching", "conv", "devices", "records", "pixels")
    assert set(run.choices) == {"select", *(f"execution.{n}" for n in named)}
    assert run.choices["select"] == f"{run.criterion}: 10 classes"
    of_two = build.build(changed(data__positive="benign")).choices
    assert of_two["data.positive"] == "benign: asked for"
    assert run.choices["execution.devices"] == "1: asked for"
    everything = build.build(changed(execution__devices=0))
    assert everything.choices["execution.devices"] == "4: all that there are"
    assert run.choices["execution.batching"] == "scan: on CPU, convolutions"
    assert run.choices["execution.conv"] == "forward: on cpu"
    wide = build.build(changed(model__mlp__hidden=(2048,)))
    assert wide.choices["execution.batching"].startswith("scan: on CPU, ")
    assert "execution.conv" not in wide.choices
    assert wide.chunked is run.chunked is None


@pytest.mark.parametrize(
    ("fields", "vmapped"),
    [
        ({"execution__batching": "vmap"}, False),
        ({"execution__batching": "chunk"}, False),
        (
            {
                "submodel__name": "fedavg",
                "privacy__mechanism": "record_dp",
                "privacy__noise_multiplier": 1.0,
            },
            False,
        ),
        ({}, True),
    ],
)
def test_kernels_that_are_vmapped_are_not_convolved(fields, vmapped):
    config = changed(data__name="digits", model__name="cnn", **fields)
    choice = build.build(config, vmapped=vmapped).choices["execution.conv"]
    assert choice.startswith("shift: ")


@pytest.mark.parametrize("name", ["depthfl", "inclusivefl", "scalefl", "nefl"])
def test_methods_of_exits_and_steps_want_a_residual_network(name):
    message = rf"model\.name: expected one of .* for submodel\.name {name}; got 'mlp'"
    with pytest.raises(require.InputError, match=message):
        build.build(changed(submodel__name=name))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("depthfl.ramp", 0),
        ("depthfl.feddyn", -0.1),
        ("depthfl.exclusive", 4),
        ("inclusivefl.beta", 1.5),
        ("scalefl.width", (0.5, 1.1)),
        ("scalefl.temperature", 0.0),
        ("scalefl.warmup", 1.5),
        ("nefl.width", (0.0,)),
        ("lora.rank", 0),
        ("lora.alpha", 0.0),
        ("ladder.kinds", ("widht",)),
    ],
)
def test_options_of_sub_models_are_checked_before_anything_is_built(field, value):
    config = changed(**{f"submodel.{field}": value})
    with pytest.raises(require.InputError, match=rf"submodel\.{re.escape(field)}: "):
        validate.check(config)


def test_a_cohort_of_zero_is_everybody():
    assert build.build(changed(data__partition__num_clients=5)).cohort == 5
    assert build.build(changed(cohort=3)).cohort == 3


def test_a_cohort_by_tier_has_room_for_all_tiers():
    by_tier = {"execution__slots": "stratified", "data__partition__num_clients": 8}
    assert build.build(changed(cohort=5, **by_tier)).slots == (2, 1, 1, 1)
    with pytest.raises(
        require.InputError, match=r"^cohort: expected at least 4, a hos"
    ):
        build.build(changed(cohort=3, **by_tier))


def test_local_steps_replace_epochs():
    by_steps = build.build(changed(local__steps=7)).spec.local.plan
    assert (by_steps.steps, by_steps.epochs) == (7, None)
    by_epochs = build.build(changed(local__epochs=2)).spec.local.plan
    assert by_epochs.epochs == 2


def test_class_weights_reach_the_objective():
    """Of a skewed client: the balanced loss is the mean of per-class means."""
    fields = {"submodel.name": "fedavg", "model.name": "mlp"}
    plain = one_round({**fields, "local.class_weights": "none"})[1].clients.loss
    balanced = one_round({**fields, "local.class_weights": "balanced"})[1].clients.loss
    assert np.all(np.abs(plain - balanced) > 1e-6)


def test_budgets_may_change_in_mid_run():
    """A richer hospital gains branches, a poorer one loses them; no model is lost."""
    config = default.get_config()
    config.submodel.name = "dynamicfl"
    config.submodel.dynamicfl.families = ("linear", "lowrank", "linear")
    config.model.mlp.hidden = (8, 8)
    config.local.learning_rate = 0.0
    config.data.partition.num_clients = 4
    run = build.build(config)
    poor, rich = (int(np.argmax(run.tiers == tier)) for tier in (0, 3))
    # Round numbers count from 1.
    config.tiers.schedule = ((2, poor, 3), (3, rich, 0))
    run = build.build(config)
    tiers = [np.asarray(run.tiers_at(finished)) for finished in range(3)]
    assert np.array_equal(tiers[0], run.tiers)
    assert (tiers[1][poor], tiers[1][rich]) == (3, 3)
    assert (tiers[2][poor], tiers[2][rich]) == (3, 0)

    @jax.jit
    def step(state):
        cohort = federation.sample(
            state.key, state.round, run.tiers_at(state.round), run.cohort
        )
        return round.step(
            state, run.splits.train, cohort, spec=run.spec, layout=run.layout
        )[0]

    state, alive = initial(run), []
    first = state.params
    for _ in range(3):
        state = step(state)
        alive.append(np.asarray(state.memory["alive"]).sum((1, 2))[[poor, rich]])
        # Rate 0: whoever has whichever branches, the plain model is the same bytes.
        assert all(
            np.array_equal(a, b)
            for a, b in zip(
                jax.tree.leaves(state.params), jax.tree.leaves(first), strict=True
            )
        )
    assert np.array_equal(alive, [[0, 6], [6, 6], [6, 0]])


def test_a_schedule_keeps_a_slot_for_whoever_comes():
    config = default.get_config()
    config.execution.form = "sliced"
    before = build.build(config).slots
    config.tiers.schedule = ((2, 0, 3), (2, 1, 3))
    run = build.build(config)
    moved = np.bincount(np.asarray(run.tiers_at(1)), minlength=4)
    assert run.slots == tuple(np.maximum(before, moved))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("tiers.schedule", ((0, 0, 0),), "tiers.schedule round"),
        ("tiers.schedule", ((1, 0),), "(round, hospital, tier) for every change"),
        ("tiers.schedule", ((1, 0, 4),), "tiers.schedule tier"),
        ("tiers.schedule", ((1, 8, 0),), "tiers.schedule hospital"),
        ("tiers.branches", (0, 1), "4 values, as tiers.budget"),
        ("tiers.branches", (0, 2, 1, 3), "tiers.branches"),
        ("tiers.branches", (0, 0, 0, 1), "dynamicfl or ladder"),
        ("submodel.dynamicfl.families", ("2x2",), "1x1"),
        ("submodel.dynamicfl.structure", "fix", "fixed"),
    ],
)
def test_bad_branches_and_schedules_are_named(field, value, words):
    config = default.get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(require.InputError, match=re.escape(words)):
        build.build(config)
