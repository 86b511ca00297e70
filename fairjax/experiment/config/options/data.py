"""Fields of `data`: the data set, its columns, and its partition among clients."""

import dataclasses
from typing import Any

from fairjax.core import require
from fairjax.data import assignment, augment, datasets
from fairjax.experiment.config.options.fields import interval, one_of, option, subgroup

NORMALISATIONS = ("pooled", "client", "none")


def check_column(where: str, entry: Any) -> None:
    """Refuses an entry of `data.group` that is no name."""
    if not isinstance(entry, str):
        require.fail(where, "names of csv columns", entry)


@dataclasses.dataclass(frozen=True)
class Partition:
    """`data.partition`: who owns which records."""

    name: str = option(
        "iid",
        "natural (the data's hospitals); iid; skewed labels: dirichlet, "
        "pathological (some classes each), shards (records in order of their "
        "class); skewed sizes: quantity; dirichlet_overlap: no partition, the law "
        "of DynamicFL's released code",
        check=one_of(assignment.PARTITIONS),
    )
    num_clients: int = option(8, "clients, for all but natural", check=require.positive)
    alpha: float = option(
        0.5, "Dirichlet concentration: small is skewed", check=require.positive
    )
    seed: int | None = option(
        None,
        "seed for data partition, tier assignment and fault selection; not given: seed",
        check=interval(0, 2**31 - 1),
    )
    shards: int = option(2, "shards per client, for shards", check=require.count)
    classes: int = option(
        2, "classes per client, for pathological", check=require.count
    )
    min_size: int = option(
        2,
        "training records that every simulated client must get; natural: clients "
        "with fewer records are left out",
        check=require.positive,
    )
    test_fraction: float = option(
        0.25,
        "share of each client's records, if the data fix no test split",
        check=interval(0, 1, open_low=True, open_high=True),
    )
    val_fraction: float = option(
        0.1, "share of each client's records, if the data fix no validation split"
    )


@dataclasses.dataclass(frozen=True)
class Data:
    """`data`: the data set, its columns, and its partition among clients."""

    name: str = option(
        "breast_cancer",
        "breast_cancer, heart_disease, heart_disease/flamby, diabetes130, digits, "
        "mixtures, pbc_blood28; bloodmnist, breastmnist, dermamnist, organamnist, "
        "pathmnist, pneumoniamnist, covid_radiography, all 28 x 28, or with /224; "
        "cifar10, cifar100; npz or csv",
        check=one_of(datasets.DATASETS),
    )
    data_dir: str | None = option(None, "official files; else FAIRJAX_DATA_DIR")
    path: str | None = option(None, "your own file, for npz and csv")
    label: str | None = option(None, "csv: column of the class")
    positive: str | None = option(
        None,
        "name of the positive one of two classes: sensitivity, specificity, AUPRC "
        "and calibration describe it; not given: the data set's own, for npz and "
        "csv the second class in sorted order",
    )
    client: str | None = option(None, "csv: column of the hospital")
    patient: str | None = option(
        None, "csv: column of the patient; no patient is in two splits"
    )
    group: tuple[str, ...] = option(
        (),
        'csv: columns of patient groups, text or numbers; "age:40:60" cuts at 40 '
        "and 60",
        check=check_column,
    )
    normalise: str = option(
        "pooled",
        '"pooled": by all training records; "client": by the client\'s own; "none"',
        check=one_of(NORMALISATIONS),
    )
    augment: tuple[str, ...] = option(
        (),
        'random changes to training images, in this order: "crop" (shifted by up '
        'to an eighth of the side), "flip" (left and right); drawn for every '
        "record and step",
        check=one_of(augment.AUGMENTS),
    )
    partition: Partition = subgroup(Partition)
