"""The whole schema as dataclasses: every field with its type, default and meaning.

`default.get_config` makes the config that users change from these classes, and
`conversion.to_typed` turns it back into a `Config`, once, for all that reads it. Tuples
over tiers go from the smallest tier up.

A group of the models, methods or rules has `options`: {name of an entry: its options}.
Their dataclasses are in `options`, one per entry of the registry; in a config they are
groups with the entry's name.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fairjax.core import layout, require
from fairjax.experiment import model_selection
from fairjax.experiment.config.options.data import Data
from fairjax.experiment.config.options.fields import (
    interval,
    one_of,
    option,
    subgroup,
    table,
)
from fairjax.experiment.config.options.privacy import Privacy
from fairjax.experiment.config.options.robust import Robust
from fairjax.models import adapt, convolutions

ASSIGNMENTS = ("random", "by_size", "by_label")
CLASS_WEIGHTS = ("none", "balanced")
DENOMINATORS = ("cover", "fixed")
SLOTS = ("padded", "stratified")
RECORDS = ("auto", "device", "host")
PIXELS = ("auto", "uint8", "float32")


def check_change(where: str, change: Any) -> None:
    """Refuses an entry of `tiers.changes` that is no change of a client's tier."""
    if not isinstance(change, tuple) or len(change) != 3:
        require.fail(where, "(round, hospital, tier) for every change", change)
    number, client_index, tier = change
    require.count(f"{where} round", number)
    require.in_range(f"{where} hospital", client_index, 0)
    require.in_range(f"{where} tier", tier, 0)


def check_group_name(where: str, name: Any) -> None:
    """Refuses an entry of `fairness.client_group` that is no name."""
    if not isinstance(name, str) or not name:
        require.fail(where, "a group's name for every hospital", name)


@dataclasses.dataclass(frozen=True)
class Model:
    """`model`: the network that travels."""

    name: str = option(
        "mlp",
        "mlp, resmlp (tables and images); cnn, lenet, two_conv, resnet, vit (images)",
    )
    init_from: str | None = option(None, "workdir of a run to start from")
    options: Mapping[str, Any] = table()


@dataclasses.dataclass(frozen=True)
class Submodel:
    """`submodel`: the method that gives every tier its sub-model."""

    name: str = option(
        "heterofl",
        "fedavg (no sub-models); heterofl, federated_dropout, fedrolex, fjord "
        "(widths); fiarse (the largest weights); depthfl, inclusivefl, scalefl, "
        "nefl, partial (blocks); lora (ranks); dynamicfl (the whole model, with "
        "branches); mixed (tiers of several kinds)",
    )
    options: Mapping[str, Any] = table()


@dataclasses.dataclass(frozen=True)
class Tiers:
    """`tiers`: budget tiers, from the smallest up, and who is of which."""

    budget: tuple[float, ...] = option(
        (0.25, 0.5, 0.75, 1.0),
        "per tier: share of every hidden width; for fiarse share of the parameters",
        check=interval(0, 1, open_low=True),
    )
    branches: tuple[int, ...] = option(
        (),
        "per tier: branches per layer beside the plain model, for dynamicfl and "
        "mixed; (): 0, 1, 2, .. for dynamicfl (its tiers are whole, whatever "
        "budget says), else 0",
        check=interval(0),
    )
    proportions: tuple[float, ...] = option(
        (1.0, 1.0, 1.0, 1.0),
        "clients per tier, as a ratio; the richest tier with a share has at least one",
        check=interval(0),
    )
    assignment: str = option(
        "random",
        "which clients are poor: random, by_size (the small ones) or by_label "
        "(those with the smallest share of the last class, which is the positive "
        "one of two)",
        check=one_of(ASSIGNMENTS),
    )
    correlation: float = option(
        1.0,
        "correlation between tiers and the size or share that assigns them: 1 is "
        "its strict order, 0 is random",
        check=interval(0, 1),
    )
    changes: tuple[tuple[int, int, int], ...] = option(
        (),
        "((round, client, tier), ..): the client's tier from that round on; "
        "clients are numbered from 0, as in clients.jsonl",
        check=check_change,
    )


@dataclasses.dataclass(frozen=True)
class Local:
    """`local`: training at a client."""

    epochs: int = option(1, "passes over a client's records per round")
    steps: int | None = option(
        None,
        "steps per round of every client, in place of epochs",
        check=require.positive,
    )
    batch_size: int = option(16, "records", check=require.positive)
    optimizer: str = option("sgd", "sgd or adam (decoupled weight decay)")
    learning_rate: float = option(0.2, "at its highest", check=interval(0))
    schedule: str = option(
        "constant",
        "over rounds: constant; linear or cosine, to 0 at the end; steps, times "
        "decay_rate at every milestone; exponential, times decay_rate every round",
    )
    milestones: tuple[int, ...] = option(
        (),
        "for steps: rounds of the whole run after which the rate falls, increasing",
        check=require.count,
    )
    decay_rate: float | None = option(None, "for steps and exponential, in (0, 1]")
    warmup: int = option(
        0,
        "rounds of linear rise, r / (warmup + 1) in round r, before the schedule "
        "begins",
        check=interval(0),
    )
    momentum: float = option(0.0, "for sgd", check=interval(0, 1, open_high=True))
    weight_decay: float = option(
        0.0, "per step; sgd: added to the gradient", check=interval(0)
    )
    fedprox_mu: float = option(0.0, "FedProx mu", check=interval(0))
    max_grad_norm: float = option(
        0.0,
        "largest norm of a gradient over the coordinates that the client trains; "
        "0: none",
        check=interval(0),
    )
    class_weights: str = option(
        "none",
        "none or balanced (by the client's own counts)",
        check=one_of(CLASS_WEIGHTS),
    )


@dataclasses.dataclass(frozen=True)
class Server:
    """`server`: the optimiser of the server."""

    optimizer: str = option("sgd", "sgd, momentum, adam or yogi")
    learning_rate: float = option(1.0, "sgd at 1 is FedAvg", check=interval(0))
    schedule: str = option("constant", "schedule of the server's rate; as for local")
    milestones: tuple[int, ...] = option((), "as for local", check=require.count)
    decay_rate: float | None = option(None, "as for local")
    warmup: int = option(0, "as for local", check=interval(0))


@dataclasses.dataclass(frozen=True)
class Fairness:
    """`fairness`: how the updates of a cohort are weighted or combined."""

    rule: str = option(
        "size",
        "one rule, or several that give different things, as in "
        '"tier_term+logit_adjust". Weights: size (records), uniform; by loss '
        "q_ffl, term, cvar, ordered, gifair; by tier tier_term, tier_equal, "
        "tier_gap, tier_afl; by ascent on the losses afl, agnostic; by group gaps "
        "fairfed; by contribution fedce. Directions: q_fedavg, fedmgda, fedfv. "
        "Objectives: propfair, logit_adjust. What stays with a client: ditto (a "
        "model), fedbn (norms), private_head",
    )
    denominator: str = option(
        "cover",
        'divisor of a coordinate\'s updates: "cover", the weights of the clients '
        'that train it; "fixed", their shares of the records, so that a lone '
        "client's weight counts, and under client_dp the expected weight in a "
        "cohort, which public facts determine",
        check=one_of(DENOMINATORS),
    )
    cap: float = option(
        0.0,
        "largest weight, in shares of the records; 0: no cap (under client_dp, "
        "for rules that read losses, the weight of a tier, and at least 1)",
    )
    warmup: int = option(0, "rounds weighted by records before the rule begins")
    group: str | None = option(
        None,
        "patient attribute for fairfed (two values) and agnostic; not given: the "
        "data's first attribute that fits",
    )
    client_group: tuple[str, ...] = option(
        (),
        "group name of every client (its region, its kind), in the order of "
        "clients.jsonl, for agnostic and gifair, and evaluated at the end; (): no "
        "groups",
        check=check_group_name,
    )
    options: Mapping[str, Any] = table()


@dataclasses.dataclass(frozen=True)
class Execution:
    """`execution`: how the program runs on its devices."""

    form: str = option(
        "auto",
        "masked at full width, or sliced to each tier's size",
        check=one_of(layout.FORMS),
    )
    slots: str = option(
        "padded",
        'a cohort smaller than N: "padded" draws all clients with equal '
        'probability, and when sliced pads the slots of every tier; "stratified" '
        "draws every tier's share",
        check=one_of(SLOTS),
    )
    batching: str = option(
        "auto",
        "how a cohort runs: auto, vmap, scan or chunk",
        check=one_of(layout.BATCHINGS),
    )
    chunk: int = option(8, "clients side by side, for chunk", check=require.positive)
    conv: str = option(
        "auto",
        "lowering of convolutions: auto, xla, shift or forward",
        check=one_of(("auto", *convolutions.CONVOLUTIONS)),
    )
    unroll: int = option(
        1,
        "local steps in one turn of a client's loop; larger values compile longer",
        check=require.positive,
    )
    records: str = option(
        "auto",
        'where training records lie: "device"; "host", which sends the records of '
        'each cohort while the round before computes; "auto": host if all records '
        "take more than half of `memory`",
        check=one_of(RECORDS),
    )
    pixels: str = option(
        "auto",
        'training images on the device: "uint8", converted by the step that reads '
        'them; "float32", as the model takes them; "auto": uint8 where all '
        "clients normalise bytes alike",
        check=one_of(PIXELS),
    )
    memory: float = option(
        0.0,
        "MiB of a device that a run may take; 0: what the device reports, if it "
        "does. With batching auto, a round that needs more runs in chunks that "
        "fit",
        check=interval(0),
    )
    dtype: str = option(
        "float32",
        "dtype in which layers compute: float32 or bfloat16 (meant for GPU and "
        "TPU); parameters, losses and sums over clients are always float32",
        check=one_of(adapt.DTYPES),
    )
    devices: int = option(
        1,
        "devices that a cohort is spread over; 0: all devices of all processes",
        check=interval(0),
    )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """`checkpoint`: when the run is saved."""

    every: int = option(1, "rounds between checkpoints", check=require.positive)
    keep: int = option(2, "newest checkpoints on disk, at least 2", check=interval(2))


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole config, as the program reads it."""

    seed: int = option(
        0,
        "for everything random: the data partition, tiers, cohorts, initial weights",
        check=interval(0, 2**31 - 1),
    )
    rounds: int = option(50, "communication rounds", check=require.positive)
    clients_per_round: int = option(0, "clients per round; 0: all", check=interval(0))
    eval_every: int = option(
        5,
        "rounds between evaluations; the last round is always evaluated",
        check=require.positive,
    )
    selection_metric: str = option(
        "auto",
        "metric of the validation split whose best round is kept in "
        'workdir/selected: balanced_accuracy, accuracy, auroc or loss; "auto": '
        "auroc with two classes, else balanced_accuracy",
        check=one_of((model_selection.AUTO, *model_selection.CRITERIA)),
    )
    min_test_records: int = option(
        10,
        "test records that a client or a tier needs to be named the worst, or to "
        "count in a gap; one with fewer records is listed and marked",
        check=require.count,
    )
    baselines: bool = option(
        False,
        "after the last round also train every client alone for as many rounds, "
        "and fine-tune the model at each client for one: which clients would do "
        "better alone?",
    )
    data: Data = subgroup(Data)
    model: Model = subgroup(Model)
    submodel: Submodel = subgroup(Submodel)
    tiers: Tiers = subgroup(Tiers)
    local: Local = subgroup(Local)
    server: Server = subgroup(Server)
    fairness: Fairness = subgroup(Fairness)
    privacy: Privacy = subgroup(Privacy)
    robust: Robust = subgroup(Robust)
    execution: Execution = subgroup(Execution)
    checkpoint: Checkpoint = subgroup(Checkpoint)


Rate = Local | Server
"""A group with a learning rate and its schedule."""
