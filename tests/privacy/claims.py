"""Accepted configurations of every kind, whose claims the audit checks.

`make test` audits some of them. `make verify` audits a cover: every pair of values of
the dimensions below that is accepted together is in some case. The config's own checks
decide which cases are accepted.
"""

import functools
import itertools

import numpy as np

from configs import default
from fairjax.attacks import audit, canaries
from fairjax.core import require
from fairjax.experiment import resume
from fairjax.experiment.config import build, compatibility, registry, schema, validate
from fairjax.privacy import securesum
from fairjax.robust import aggregators
from fairjax.submodels import fedavg

COUNTS = (3, 4, 2, 1)
"""Records of the clients; the last client has a single record."""
PATIENTS = "aabcccdeef"
"""The patient of each record, in order."""
CLASSES, FEATURES = 3, 3
CLAIM = 0.001
"""The probability that a cover of true claims fails."""

CLIENT = {"privacy.mechanism": "client_dp", "privacy.noise_multiplier": 12.0}
RECORD = {"privacy.mechanism": "record_dp", "privacy.noise_multiplier": 60.0}
LOCAL = {"privacy.mechanism": "local_dp", "privacy.noise_multiplier": 24.0}
ADAPTIVE = {
    "privacy.adaptive.quantile": 0.5,
    "privacy.adaptive.count_noise": 40.0,
    "privacy.adaptive.rate": 5.0,
}
MECHANISMS = {
    "client_dp": {
        "full": CLIENT | {"privacy.sampling": "full", "clients_per_round": 0},
        "replaced": CLIENT
        | {
            "privacy.sampling": "full",
            "clients_per_round": 0,
            "privacy.neighbours": "replace_one",
        }
        | {"privacy.noise_multiplier": 24.0},
        "poisson": CLIENT | {"privacy.sampling": "poisson", "clients_per_round": 3},
        "fixed": CLIENT
        | {"privacy.sampling": "fixed", "clients_per_round": 3}
        | {"privacy.noise_multiplier": 24.0},
        "adaptive": CLIENT
        | {"privacy.sampling": "full", "clients_per_round": 0}
        | ADAPTIVE,
    },
    "record_dp": {
        "poisson": RECORD,
        "patient": RECORD
        | {"privacy.unit": "patient", "privacy.records_per_patient": 2},
        "shuffled": RECORD | {"privacy.batches": "shuffled"},
        "replaced": RECORD
        | {"privacy.batches": "shuffled", "privacy.neighbours": "replace_one"}
        | {"privacy.noise_multiplier": 120.0},
    },
    "local_dp": {"full": LOCAL},
}
"""Mechanism -> its variants."""
METHODS = {name: {"submodel.name": name} for name in registry.METHODS}
METHODS |= {
    f"fedavg {mode}": METHODS["fedavg"] | {"submodel.fedavg.mode": mode}
    for mode in fedavg.MODES[1:]
}
DIMENSIONS = {
    "method": tuple(METHODS),
    "rule": tuple(registry.RULES),
    "fold": aggregators.AGGREGATORS,
    "secure_sum": securesum.MODES,
    "denominator": schema.DENOMINATORS,
}
"""The dimensions beside "variant", which is the mechanism's own."""
Case = tuple[str, ...]
"""(mechanism, variant, method, rule, fold, secure_sum, denominator)."""


def table(path) -> None:
    """Four clients with Gaussian classes; some client has every class."""
    rng, rows = np.random.default_rng(0), sum(COUNTS)
    label = np.arange(rows) % CLASSES
    x = rng.normal(size=(rows, FEATURES)) + label[:, None]
    np.savez(
        path,
        train_images=x.astype(np.float32),
        train_labels=label,
        train_client=np.repeat(np.arange(len(COUNTS)), COUNTS),
        train_patient=np.array(list(PATIENTS)),
        test_images=x[: len(COUNTS)].astype(np.float32),
        test_labels=label[: len(COUNTS)],
        test_client=np.arange(len(COUNTS)),
        test_patient=np.array(list("wxyz")),
    )


def config_of(path, case: Case):
    mechanism, variant, method, rule, fold, secure_sum, denominator = case
    family = registry.METHODS[METHODS[method]["submodel.name"]]
    # fedbn keeps norm layers at the client, and mlp has none.
    residual = family.blocks or family.exits or rule == "fedbn"
    config = default.get_config()
    config.update_from_flattened_dict(
        {
            "data.name": "npz",
            "data.path": str(path),
            "data.normalise": "none",
            "data.partition.name": "natural",
            "data.partition.min_size": 1,
            "data.partition.val_fraction": 0.0,
            "rounds": 2,
            "execution.devices": 1,
            "model.name": "resmlp" if residual else "mlp",
            "model.mlp.hidden": (4,),
            "model.resmlp.width": 4,
            "model.resmlp.hidden": 2,
            "model.resmlp.depth": 2,
            "model.resmlp.norm": "layer",
            "tiers.budget": (0.5, 1.0),
            "tiers.proportions": (1.0, 1.0),
            "local.batch_size": 4,
            "local.epochs": 16,
            "local.learning_rate": 0.01,
            "submodel.heterofl.masked_loss": False,
            "submodel.federated_dropout.masked_loss": False,
            "submodel.fedrolex.masked_loss": False,
            "submodel.fjord.distill": mechanism != "record_dp",
            "submodel.depthfl.feddyn": 0.1,
            "submodel.lora.rank": 2,
            "fairness.rule": rule,
            "fairness.denominator": denominator,
            "privacy.clip": 0.1,
            "privacy.accountant": "rdp",
            "privacy.secure_sum": secure_sum,
            "privacy.secure.minimum": 2,
            "robust.aggregator": fold,
            "robust.num_byzantine": 0,
        }
        | METHODS[method]
        | MECHANISMS[mechanism][variant]
    )
    if mechanism == "client_dp":
        config.fairness.cap = 2.0 if rule in _weighing() else 0.0
        if config.privacy.neighbours == "replace_one":
            config.privacy.accountant = "auto"
    return config


@functools.cache
def _weighing() -> frozenset[str]:
    """Rules that read losses; client_dp accepts them with a cap alone."""
    rules = compatibility.default_rules()
    return frozenset(name for name, rule in rules.items() if "losses" in rule.reads)


def accepted(path, case: Case) -> bool:
    """Whether the checks accept the case, also on its data."""
    config = config_of(path, case)
    try:
        validate.check(config)
        build.run(config)
    except require.InputError:
        return False
    return True


def begins(path, case: Case) -> bool:
    """Whether the case has a first state: a rule may keep leaves that do not exist."""
    try:
        resume.initial_state(build.run(config_of(path, case)))
    except require.InputError:
        return False
    return True


def sampled(path, mechanism: str, seed: int, **fixed: str) -> Case:
    """An accepted case with some fixed values; the others are drawn."""
    rng = np.random.default_rng(seed)
    pools = {"variant": tuple(MECHANISMS[mechanism]), **DIMENSIONS}
    pools |= {name: (value,) for name, value in fixed.items()}
    for _ in range(1000):
        drawn = (str(rng.choice(pool)) for pool in pools.values())
        case = (mechanism, *drawn)
        if accepted(path, case) and begins(path, case):
            return case
    raise AssertionError(f"nothing is accepted with {mechanism} and {fixed}")


def cover(path, mechanism: str) -> list[Case]:
    """Cases with every pair of values that is accepted together."""
    variants = tuple(MECHANISMS[mechanism])
    plain = "fixed" if mechanism == "client_dp" else "cover"
    usual = ("heterofl", "size", "mean", "off", plain)

    def ok(*values: str) -> bool:
        return accepted(path, (mechanism, *values))

    # Whether a method suits a mechanism hardly depends on the rest; each chosen case
    # is checked again in the end.
    methods = [m for m in METHODS if ok(variants[0], m, *usual[1:])]
    rest = [
        (variant, "heterofl", *values)
        for variant, *values in itertools.product(
            variants, *list(DIMENSIONS.values())[1:]
        )
    ]
    rest = [values for values in rest if ok(*values)]
    cases = [
        (mechanism, variant, method, *values)
        for method in methods
        for variant, _, *values in rest
    ]

    def pairs(case: Case) -> set:
        return set(itertools.combinations(enumerate(case), 2))

    left = set().union(*map(pairs, cases))
    chosen = []
    while left and cases:
        best = max(cases, key=lambda case: len(pairs(case) & left))
        if not pairs(best) & left:
            break
        cases.remove(best)
        if ok(*best[1:]) and begins(path, best):
            chosen.append(best)
            left -= pairs(best)
    assert chosen, f"nothing is accepted with {mechanism}"
    return chosen


def shown(run, *, cases: int, runs: int = 360, canary=tuple(canaries.CANARIES)):
    """Rows of an audit of two rounds, at the confidence of one among `cases`."""
    # This client's patient has three records, two of which are in a step.
    party = "1" if run.guarantee.unit == "patient" else None
    settings = audit.Audit(
        canary=canary,
        party=party,
        rounds=2,
        runs=runs,
        chunk=runs,
        single_client=False,
        confidence=1 - CLAIM / cases,
    )
    return audit.audit(run, settings)
