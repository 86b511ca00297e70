"""From names to functions: every name runs, and every config is resolved."""

import dataclasses
import functools
import itertools
import json
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
from fairjax.data import cohorts
from fairjax.experiment.config import (
    build,
    conversion,
    lookup,
    optimizers,
    registry,
    renames,
    validate,
)
from fairjax.experiment.config.options import fields
from fairjax.experiment.config.schema import Config
from fairjax.experiment.resume import initial_state
from tests import private_configs

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
    # One rule of every kind; tests/fairness has all rules.
    "fairness.rule": ("size", "term", "fedmgda", "ditto"),
    "local.optimizer": tuple(optimizers.OPTIMIZERS),
    "server.optimizer": tuple(optimizers.SERVERS),
    "local.schedule": tuple(optimizers.SCHEDULES),
    "execution.batching": BATCHINGS,
}


changed = functools.partial(private_configs.changed, {})


def cover(axes, number):
    """Rows in which any `number` values of different axes occur together, greedily."""
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
            "local.fedprox_mu": 0.1,
            "local.max_grad_norm": 1.0,
            "server.learning_rate": 0.5,
            **fields,
        }
    )
    if not registry.MODELS[fields["model.name"]].tabular:
        config.data.name = "digits"
    # optax's Adam does not promote strictly.
    with jax.numpy_dtype_promotion("standard"):
        run = build.run(config)
        identity = build.identity(run)
        assert json.loads(json.dumps(identity)) == identity
        state = initial_state(run)
        cohort = cohorts.sample(
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
"""`make verify` trains these; tests/models/test_models.py tests their logits."""
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
    works(
        {
            "model.name": name,
            "tiers.budget": (0.5, 1.0),
            "tiers.proportions": (1.0, 1.0),
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("fields", cover(AXES, 3), ids=lambda f: "-".join(f.values()))
def test_every_three_names_work_together(fields):
    works(fields)


# --------------------------------------------------------------------------- the config


def explained(group, path=""):
    """(path, text) of every field of a dataclass and of the groups in it."""
    for field in dataclasses.fields(group):
        kind, _ = fields.field_type(group, field.name)
        if fields.is_group(kind):
            yield from explained(kind, f"{path}{field.name}.")
        elif not fields.is_table(field):
            yield f"{path}{field.name}", field.metadata["help"]


def test_every_field_is_explained():
    texts = dict(explained(Config))
    for group, entries in registry.TABLES.items():
        for name, entry in entries.items():
            if entry.options is not None:
                texts |= explained(entry.options, f"{group}.{name}.")
    assert texts.keys() == renames.flatten(default.get_config().to_dict()).keys()
    short = {path for path, text in texts.items() if len(text) < len("nats")}
    assert not short


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
    splits = build.run(conversion.from_plain(conversion.to_plain(config))).splits
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
    model = lookup.model(validate.check(config).config, 8)
    image = jax.ShapeDtypeStruct((1, 28, 28, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count / 1e6 == pytest.approx(expected, abs=0.05)


def test_every_rule_and_the_method_are_built_once(monkeypatch):
    """One value for checks, protections and the round: it follows from the config."""
    calls = []

    def counted(table, name, field):
        entry = table[name]

        def factory(*args):
            calls.append(name)
            return getattr(entry, field)(*args)

        monkeypatch.setitem(table, name, entry._replace(**{field: factory}))

    counted(registry.RULES, "tier_term", "rule")
    counted(registry.RULES, "logit_adjust", "rule")
    counted(registry.METHODS, "heterofl", "method")
    build.run(changed(fairness__rule="tier_term+logit_adjust"))
    assert sorted(calls) == ["heterofl", "logit_adjust", "tier_term"]


@pytest.mark.parametrize("config", EXAMPLES)
def test_every_config_has_a_smoke_preset(config):
    assert config.get_config("smoke").rounds == 2
    with pytest.raises(require.InputError, match=r"preset of --config: .*'somke'"):
        config.get_config("somke")


def test_a_config_survives_its_json():
    config = changed(
        local__steps=3, tiers__budget=(0.5, 1.0), tiers__proportions=(1.0, 1.0)
    )
    again = conversion.from_plain(conversion.to_plain(config))
    assert isinstance(again, ConfigDict)
    assert again.to_dict() == config.to_dict()


def test_differences_name_the_fields():
    ours = conversion.to_plain(changed(seed=3, local__momentum=0.5))
    theirs = conversion.to_plain(default.get_config())
    del theirs["data"]["name"]
    assert conversion.differences(ours, theirs) == [
        "data.name",
        "local.momentum",
        "seed",
    ]
    assert conversion.differences(ours, ours) == []


def test_tuples_in_tuples_survive_json():
    fields = {"tiers__changes": ((3, 1, 0),), "robust__faults": (("nan", 0.5, 1.0),)}
    config = changed(**fields)
    stored = json.loads(json.dumps(conversion.to_plain(config)))
    assert stored == conversion.to_plain(config)
    assert conversion.differences(stored, conversion.to_plain(config)) == []
    assert conversion.from_plain(stored).tiers.changes == fields["tiers__changes"]
    validate.check(conversion.from_plain(stored))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"execution__form": "sliced", "execution__batching": "scan"}, ""),
        ({"checkpoint__keep": 9, "data__data_dir": "/mnt/data", "rounds": 60}, ""),
        ({"local__schedule": "cosine"}, "local.schedule, rounds"),
        ({"local__fedprox_mu": 0.1}, "local.fedprox_mu"),
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
        build.identity(build.run(config)) for config in (changed(), changed(**fields))
    )
    differing = [n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)]
    assert ", ".join(sorted(differing)) == named


def test_the_identity_knows_axes_that_the_config_does_not_name():
    """A later version of a model may narrow an axis that an earlier one did not."""
    run = build.run(changed())
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


def test_auto_is_resolved_and_explained():
    run = build.run(changed(data__name="digits", model__name="cnn"))
    named = ("form", "batching", "conv", "devices", "records", "pixels")
    assert set(run.choices) == {"selection_metric", *(f"execution.{n}" for n in named)}
    assert run.choices["selection_metric"] == f"{run.criterion}: 10 classes"
    of_two = build.run(changed(data__positive="benign")).choices
    assert of_two["data.positive"] == "benign: asked for"
    assert run.choices["execution.devices"] == "1: asked for"
    everything = build.run(changed(execution__devices=0))
    assert everything.choices["execution.devices"] == "4: all that there are"
    assert run.choices["execution.batching"] == "scan: on CPU, convolutions"
    assert run.choices["execution.conv"] == "forward: on cpu"
    wide = build.run(changed(model__mlp__hidden=(2048,)))
    assert wide.choices["execution.batching"].startswith("scan: on CPU, ")
    assert "execution.conv" not in wide.choices
    assert wide.chunked_layout is run.chunked_layout is None


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
    choice = build.run(config, vmapped=vmapped).choices["execution.conv"]
    assert choice.startswith("shift: ")


@pytest.mark.parametrize("name", ["depthfl", "inclusivefl", "scalefl", "nefl"])
def test_methods_of_exits_and_steps_want_a_residual_network(name):
    message = rf"model\.name: expected one of .* for submodel\.name {name}; got 'mlp'"
    with pytest.raises(require.InputError, match=message):
        build.run(changed(submodel__name=name))


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
        ("mixed.kinds", ("widht",)),
    ],
)
def test_options_of_sub_models_are_checked_before_anything_is_built(field, value):
    config = changed(**{f"submodel.{field}": value})
    with pytest.raises(require.InputError, match=rf"submodel\.{re.escape(field)}: "):
        validate.check(config)


def test_a_cohort_of_zero_is_everybody():
    assert build.run(changed(data__partition__num_clients=5)).cohort == 5
    assert build.run(changed(clients_per_round=3)).cohort == 3


def test_a_cohort_by_tier_has_room_for_all_tiers():
    by_tier = {"execution__slots": "stratified", "data__partition__num_clients": 8}
    assert build.run(changed(clients_per_round=5, **by_tier)).slots == (2, 1, 1, 1)
    with pytest.raises(
        require.InputError, match=r"^clients_per_round: expected at least 4, a hos"
    ):
        build.run(changed(clients_per_round=3, **by_tier))


def test_local_steps_replace_epochs():
    by_steps = build.run(changed(local__steps=7)).spec.local.schedule
    assert (by_steps.steps, by_steps.epochs) == (7, None)
    by_epochs = build.run(changed(local__epochs=2)).spec.local.schedule
    assert by_epochs.epochs == 2


def test_class_weights_reach_the_objective():
    """The balanced loss of a skewed client is the mean of per-class means."""
    fields = {"submodel.name": "fedavg", "model.name": "mlp"}
    plain = one_round({**fields, "local.class_weights": "none"})[1].clients.loss
    balanced = one_round({**fields, "local.class_weights": "balanced"})[1].clients.loss
    assert np.all(np.abs(plain - balanced) > 1e-6)
