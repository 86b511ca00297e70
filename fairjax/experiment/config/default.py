"""The whole schema: every field with its unit and default.

Every config file imports this schema and changes it. Tuples over tiers go from the
smallest tier up. A group that has the name of a model, method or rule holds the options
of that one; changing an option of one that is not in use is refused.

The options of models, methods and rules are dataclasses in `options`, which the
registry names. Their groups are added when a config is made, so an entry that is added
to the registry has its group in the next config. docs/options.md lists them.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from fairjax.core import require
from fairjax.experiment.config import registry, renames
from fairjax.experiment.config.options import fields


def get_config() -> ConfigDict:
    """Eight hospitals, four width tiers, the embedded breast-cancer table."""
    c: Any = ConfigDict()
    # for everything random: the data partition, tiers, cohorts, initial weights
    c.seed = 0
    c.rounds = 50  # communication rounds
    c.clients_per_round = 0  # clients per round; 0: all
    c.eval_every = 5  # rounds between evaluations; the last round is always evaluated
    # metric of the validation split whose best round is kept in workdir/selected:
    # balanced_accuracy, accuracy, auroc or loss; "auto": auroc with two classes, else
    # balanced_accuracy
    c.selection_metric = "auto"
    # test records that a client or a tier needs to be named the worst, or to count in a
    # gap; one with fewer records is listed and marked
    c.min_test_records = 10
    # after the last round also train every client alone for as many rounds, and
    # fine-tune the model at each client for one: which clients would do better alone?
    c.baselines = False
    for add_group in (
        _add_data,
        _add_model,
        _add_submodel,
        _add_tiers,
        _add_training,
        _add_fairness,
        _add_privacy,
        _add_robust,
        _add_execution,
    ):
        add_group(c)
    return c


def _add_data(c: Any) -> None:
    c.data = ConfigDict()
    # breast_cancer, heart_disease, heart_disease/flamby, diabetes130, digits, mixtures,
    # pbc_blood28; bloodmnist, breastmnist, dermamnist, organamnist, pathmnist,
    # pneumoniamnist, covid_radiography, all 28 x 28, or with /224; cifar10, cifar100;
    # npz or csv
    c.data.name = "breast_cancer"
    c.data.data_dir = placeholder(str)  # official files; else FAIRJAX_DATA_DIR
    c.data.path = placeholder(str)  # your own file, for npz and csv
    c.data.label = placeholder(str)  # csv: column of the class
    # name of the positive one of two classes: sensitivity, specificity, AUPRC and
    # calibration describe it; not given: the data set's own, for npz and csv the second
    # class in sorted order
    c.data.positive = placeholder(str)
    c.data.client = placeholder(str)  # csv: column of the hospital
    # csv: column of the patient; no patient is in two splits
    c.data.patient = placeholder(str)
    # csv: columns of patient groups, text or numbers; "age:40:60" cuts at 40 and 60
    c.data.group = ()
    # "pooled": by all training records; "client": by the client's own; "none"
    c.data.normalise = "pooled"
    # random changes to training images, in this order: "crop" (shifted by up to an
    # eighth of the side), "flip" (left and right); drawn for every record and step
    c.data.augment = ()
    c.data.partition = ConfigDict()
    # natural (the data's hospitals); iid; skewed labels: dirichlet, pathological (some
    # classes each), shards (records in order of their class); skewed sizes: quantity;
    # dirichlet_overlap: no partition, the law of DynamicFL's released code
    c.data.partition.name = "iid"
    c.data.partition.num_clients = 8  # clients, for all but natural
    c.data.partition.alpha = 0.5  # Dirichlet concentration: small is skewed
    # seed for data partition, tier assignment and fault selection; not given: seed
    c.data.partition.seed = placeholder(int)
    c.data.partition.shards = 2  # shards per client, for shards
    c.data.partition.classes = 2  # classes per client, for pathological
    # training records that every simulated client must get; natural: clients with fewer
    # records are left out
    c.data.partition.min_size = 2
    # share of each client's records, if the data fix no test split
    c.data.partition.test_fraction = 0.25
    # share of each client's records, if the data fix no validation split
    c.data.partition.val_fraction = 0.1


def _add_model(c: Any) -> None:
    c.model = ConfigDict()
    # mlp, resmlp (tables and images); cnn, lenet, two_conv, resnet, vit (images)
    c.model.name = "mlp"
    c.model.init_from = placeholder(str)  # workdir of a run to start from
    fields.add_groups(c.model, registry.MODELS)


def _add_submodel(c: Any) -> None:
    c.submodel = ConfigDict()
    # fedavg (no sub-models); heterofl, federated_dropout, fedrolex, fjord (widths);
    # fiarse (the largest weights); depthfl, inclusivefl, scalefl, nefl, partial
    # (blocks); lora (ranks); dynamicfl (the whole model, with branches); mixed (tiers
    # of several kinds)
    c.submodel.name = "heterofl"
    fields.add_groups(c.submodel, registry.METHODS)


def _add_tiers(c: Any) -> None:
    c.tiers = ConfigDict()
    # per tier: share of every hidden width; for fiarse share of the parameters
    c.tiers.budget = (0.25, 0.5, 0.75, 1.0)
    # per tier: branches per layer beside the plain model, for dynamicfl and mixed;
    # (): 0, 1, 2, .. for dynamicfl (its tiers are whole, whatever budget says), else 0
    c.tiers.branches = ()
    # clients per tier, as a ratio; the richest tier with a share has at least one
    c.tiers.proportions = (1.0, 1.0, 1.0, 1.0)
    # which clients are poor: random, by_size (the small ones) or by_label (those with
    # the smallest share of the last class, which is the positive one of two)
    c.tiers.assignment = "random"
    # correlation between tiers and the size or share that assigns them: 1 is its strict
    # order, 0 is random
    c.tiers.correlation = 1.0
    # ((round, client, tier), ..): the client's tier from that round on; clients are
    # numbered from 0, as in clients.jsonl
    c.tiers.changes = ()


def _add_training(c: Any) -> None:
    c.local = ConfigDict()
    c.local.epochs = 1  # passes over a client's records per round
    # steps per round of every client, in place of epochs
    c.local.steps = placeholder(int)
    c.local.batch_size = 16  # records
    c.local.optimizer = "sgd"  # sgd or adam (decoupled weight decay)
    c.local.learning_rate = 0.2  # at its highest
    # over rounds: constant; linear or cosine, to 0 at the end; steps, times decay_rate
    # at every milestone; exponential, times decay_rate every round
    c.local.schedule = "constant"
    # for steps: rounds of the whole run after which the rate falls, increasing
    c.local.milestones = ()
    c.local.decay_rate = placeholder(float)  # for steps and exponential, in (0, 1]
    # rounds of linear rise, r / (warmup + 1) in round r, before the schedule begins
    c.local.warmup = 0
    c.local.momentum = 0.0  # for sgd
    c.local.weight_decay = 0.0  # per step; sgd: added to the gradient
    c.local.fedprox_mu = 0.0  # FedProx mu
    # largest norm of a gradient over the coordinates that the client trains; 0: none
    c.local.max_grad_norm = 0.0
    c.local.class_weights = "none"  # none or balanced (by the client's own counts)

    c.server = ConfigDict()
    c.server.optimizer = "sgd"  # sgd, momentum, adam or yogi
    c.server.learning_rate = 1.0  # sgd at 1 is FedAvg
    c.server.schedule = "constant"  # schedule of the server's rate; as for local
    c.server.milestones = ()  # as for local
    c.server.decay_rate = placeholder(float)  # as for local
    c.server.warmup = 0  # as for local


def _add_fairness(c: Any) -> None:
    c.fairness = ConfigDict()
    # One rule, or several that give different things, as in "tier_term+logit_adjust".
    # Weights: size (records), uniform; by loss q_ffl, term, cvar, ordered, gifair; by
    # tier tier_term, tier_equal, tier_gap, tier_afl; by ascent on the losses afl,
    # agnostic; by group gaps fairfed; by contribution fedce. Directions: q_fedavg,
    # fedmgda, fedfv. Objectives: propfair, logit_adjust. What stays with a client:
    # ditto (a model), fedbn (norms), private_head.
    c.fairness.rule = "size"
    # divisor of a coordinate's updates: "cover", the weights of the clients that train
    # it; "fixed", their shares of the records, so that a lone client's weight counts,
    # and under client_dp the expected weight in a cohort, which public facts determine
    c.fairness.denominator = "cover"
    # largest weight, in shares of the records; 0: no cap (under client_dp, for rules
    # that read losses, the weight of a tier, and at least 1)
    c.fairness.cap = 0.0
    c.fairness.warmup = 0  # rounds weighted by records before the rule begins
    # patient attribute for fairfed (two values) and agnostic; not given: the data's
    # first attribute that fits
    c.fairness.group = placeholder(str)
    # group name of every client (its region, its kind), in the order of clients.jsonl,
    # for agnostic and gifair, and evaluated at the end; (): no groups
    c.fairness.client_group = ()
    fields.add_groups(c.fairness, registry.RULES)


def _add_privacy(c: Any) -> None:
    c.privacy = ConfigDict()
    # none; client_dp: clipped updates and noise on their sum, at a trusted server;
    # record_dp: DP-SGD inside every client; local_dp: noise on every upload
    c.privacy.mechanism = "none"
    # whose presence is hidden: under record_dp a "record" or a "patient"
    # (data.patient), whose records at a client have one clipped gradient; else a
    # "client", the whole hospital. Not given: record or client
    c.privacy.unit = placeholder(str)
    # records of a patient in a step of record_dp, drawn anew for each step; memory
    # grows with this number
    c.privacy.records_per_patient = 4
    # largest norm of a client's update, or under record_dp of a unit's gradient; from
    # 2^-40 to 2^50, where float32 clips
    c.privacy.clip = 1.0
    # per tier, in place of clip: tiers of smaller updates are hidden better
    c.privacy.tier_clip = ()
    # standard deviation of the noise, in clips, if a round released updates alone; any
    # other release takes a share of it. Not given: what epsilon asks for
    c.privacy.noise_multiplier = placeholder(float)
    c.privacy.epsilon = placeholder(float)  # budget of all rounds; not given: no limit
    # below 1 / clients; record_dp: 1 / records, or patients, of the largest client
    c.privacy.delta = 1e-5
    # cohorts of client_dp: every client with probability clients_per_round / N
    # ("poisson"); exactly clients_per_round clients ("fixed", accounted by RDP and
    # replace_one: replacing a client moves the sum by two clips, so that the same noise
    # hides far less); or all clients ("full")
    c.privacy.sampling = "poisson"
    # batches of record_dp: every record, or patient, with probability batch_size / n
    # ("poisson"), or cut from shuffled epochs of records, not amplified ("shuffled")
    c.privacy.batches = "poisson"
    c.privacy.microbatch = 16  # units whose gradients are in memory at once
    # how neighbouring federations differ: one unit is absent ("zero_out") or is another
    # one ("replace_one"); not given: replace_one for fixed cohorts and local_dp, else
    # zero_out
    c.privacy.neighbours = placeholder(str)
    c.privacy.accountant = "auto"  # pld or rdp; auto: pld, and rdp for fixed cohorts
    # stop before the round that would exceed epsilon, or warn
    c.privacy.on_budget = "stop"
    # for client_dp: the clip follows a quantile of the updates' norms
    c.privacy.adaptive = ConfigDict()
    c.privacy.adaptive.quantile = placeholder(float)  # not given: the clip is fixed
    c.privacy.adaptive.rate = 0.2  # step of the clip's logarithm per round
    # standard deviation of the count's noise, clients; not given: expected cohort / 20
    c.privacy.adaptive.count_noise = placeholder(float)
    # for client_dp with a fairness rule that reads losses: the rule sees noisy mean
    # losses of tiers and weights tiers in place of clients; fairness.cap bounds the
    # weights
    c.privacy.losses = ConfigDict()
    c.privacy.losses.bound = 2.0  # nats; a client's larger loss counts as this one
    # standard deviation of the noise on their sums, in half bounds; not given: sqrt(10)
    # times privacy.noise_multiplier, a tenth of what a round spends
    c.privacy.losses.noise_multiplier = placeholder(float)
    # the cohort's sums as integers modulo 2^32: as they are ("quantized"), or under
    # masks that cancel ("masked", the same bytes); simulated, see securesum.py
    c.privacy.secure_sum = "off"
    c.privacy.secure = ConfigDict()
    # bits of an addend, 2 to 24; clients * 2^(bits - 1) must stay below 2^31
    c.privacy.secure.bits = 20
    # largest entry of a weighted update; larger ones saturate (client_dp: its clip)
    c.privacy.secure.bound = 1.0
    # clients that must train a coordinate, or it keeps its value; under client_dp the
    # number in an average cohort, whichever clients take part
    c.privacy.secure.minimum = 3


def _add_robust(c: Any) -> None:
    c.robust = ConfigDict()
    # leave out a client whose update is not finite (client_dp and local_dp may not show
    # that one failed: it counts as a client that learned nothing)
    c.robust.finite_guard = True
    # how updates become one: "mean", the weighted mean of the fairness rule; by
    # coordinate "median" or "trimmed_mean" over the clients that train it, without
    # weights; by distance "krum", one client's update as it is, or "multi_krum", the
    # weighted mean of the updates that lie close together
    c.robust.aggregator = "mean"
    # Byzantine clients that a cohort may have, for krum and multi_krum
    c.robust.num_byzantine = 1
    c.robust.trimmed_mean = ConfigDict()
    c.robust.trimmed_mean.beta = 0.1  # share that is cut off at either end
    # largest norm of an update, in running medians of its tier's norms; 0: none
    c.robust.norm_bound = 0.0
    # largest weight of a client, in equal shares 1 / K, under a norm bound of a mean or
    # multi_krum: a false loss or count cannot raise it further; 0: none
    c.robust.weight_cap = 3.0
    # ((name, share of clients, probability in a round), ..): what goes wrong, for
    # research. Absences drop_before, drop_during, drop_after, straggler; uploads nan,
    # inf, sign_flip, scaling, gaussian, free_rider; claims inflated_count,
    # inflated_loss; records label_flip, corrupted; impostor: claims to be in the
    # richest tier
    c.robust.faults = ()
    c.robust.strength = ConfigDict()  # strength of each fault
    c.robust.strength.sign_flip = 1.0  # times the update, reversed
    c.robust.strength.scaling = 10.0  # times the update
    c.robust.strength.gaussian = 1.0  # norm of the noise, in norms of the update
    c.robust.strength.inflated_count = 10.0  # times the records
    c.robust.strength.inflated_loss = 10.0  # times the loss
    c.robust.deadline = ConfigDict()  # deadline that stragglers may miss
    c.robust.deadline.most = 1.5  # usual times of a round; later uploads are dropped
    c.robust.deadline.spread = 0.5  # standard deviation of the logarithm of their time


def _add_execution(c: Any) -> None:
    c.execution = ConfigDict()
    c.execution.form = "auto"  # masked at full width, or sliced to each tier's size
    # A cohort smaller than N: "padded" draws all clients with equal probability, and
    # when sliced pads the slots of every tier; "stratified" draws every tier's share.
    c.execution.slots = "padded"
    c.execution.batching = "auto"  # how a cohort runs: auto, vmap, scan or chunk
    c.execution.chunk = 8  # clients side by side, for chunk
    c.execution.conv = "auto"  # lowering of convolutions: auto, xla, shift or forward
    # local steps in one turn of a client's loop; larger values compile longer
    c.execution.unroll = 1
    # where training records lie: "device"; "host", which sends the records of each
    # cohort while the round before computes; "auto": host if all records take more than
    # half of `memory`
    c.execution.records = "auto"
    # training images on the device: "uint8", converted by the step that reads them;
    # "float32", as the model takes them; "auto": uint8 where all clients normalise
    # bytes alike
    c.execution.pixels = "auto"
    # MiB of a device that a run may take; 0: what the device reports, if it does. With
    # batching auto, a round that needs more runs in chunks that fit
    c.execution.memory = 0.0
    # dtype in which layers compute: float32 or bfloat16 (meant for GPU and TPU);
    # parameters, losses and sums over clients are always float32
    c.execution.dtype = "float32"
    # devices that a cohort is spread over; 0: all devices of all processes
    c.execution.devices = 1

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 1  # rounds between checkpoints
    c.checkpoint.keep = 2  # newest checkpoints on disk, at least 2


def preset(config: ConfigDict, name: str, **presets: dict) -> ConfigDict:
    """The config with named sets of changes, {field: value}; "" changes nothing.

    "a+b" applies a and then b. Every config has "smoke": two rounds, both evaluated.

    Raises:
        InputError: there is no such preset, or the preset uses a field's old name.
    """
    presets = {"smoke": {"rounds": 2, "eval_every": 1}, **presets}
    for part in name.split("+") if name else ():
        if part not in presets:
            renames.refuse_preset(part, presets)
        require.one_of("preset of --config", part, presets)
        renames.refuse(presets[part], f"preset {part}: ")
        config.update_from_flattened_dict(presets[part])
    return config
