"""The whole schema: every field with its unit and default.

Other configs import this one and change it. Tuples over tiers go from the smallest tier
up. A group named like a model, method or rule holds that one's own options; changing an
option of one that is not in use is refused.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from fairjax.core import require


def get_config() -> ConfigDict:
    """Eight hospitals, four width tiers, the embedded breast-cancer table."""
    c = ConfigDict()
    c.seed = 0  # of everything random: data cut, tiers, cohorts, initial weights
    c.rounds = 50  # communication rounds
    c.cohort = 0  # clients per round; 0: all
    c.eval_every = 5  # rounds between evaluations; the last round always is one
    # figure of the validation split whose best round is kept in workdir/selected:
    # balanced_accuracy, accuracy, auroc or loss; "auto": auroc with two classes, else
    # balanced_accuracy
    c.select = "auto"
    # test records that a hospital or a tier needs to be named the worst, or to count in a
    # gap; those with fewer are listed and marked
    c.min_test_records = 10
    # in the end also train every hospital alone for as many rounds, and tune the model
    # at each for one: who would be better off without the others?
    c.baselines = False

    c.data = ConfigDict()
    # breast_cancer, heart_disease, heart_disease/flamby, diabetes130, digits, mixtures,
    # pbc_blood28; bloodmnist, breastmnist, dermamnist, organamnist, pathmnist,
    # pneumoniamnist, covid_radiography, all 28 x 28, or with /224; cifar10, cifar100;
    # npz or csv
    c.data.name = "breast_cancer"
    c.data.data_dir = placeholder(str)  # official files; else FAIRJAX_DATA_DIR
    c.data.path = placeholder(str)  # your own file, for npz and csv
    c.data.label = placeholder(str)  # csv: column of the class
    # of two classes, the one that sensitivity, specificity, AUPRC and calibration are of,
    # by its name; not given: the data set's own, for npz and csv the second as sorted
    c.data.positive = placeholder(str)
    c.data.client = placeholder(str)  # csv: column of the hospital
    c.data.patient = placeholder(str)  # csv: column of the patient; crosses no split
    # csv: columns of patient groups, text or numbers; "age:40:60" cuts at 40 and 60
    c.data.group = ()
    # "pooled": by all training records; "client": by the hospital's own; "none"
    c.data.normalise = "pooled"
    # what changes images in training, in the order named: "crop" (moved by up to an eighth
    # of their side), "flip" (left and right); drawn for every record and step
    c.data.augment = ()
    c.data.partition = ConfigDict()
    # natural (the data's hospitals); iid; skewed labels: dirichlet, pathological (some
    # classes each), shards (records in order of their class); skewed sizes: quantity;
    # dirichlet_overlap: no partition, the law of DynamicFL's released code
    c.data.partition.name = "iid"
    c.data.partition.num_clients = 8  # hospitals, for all but natural
    c.data.partition.alpha = 0.5  # Dirichlet concentration: small is skewed
    # of who has which records, of the tiers and of whom faults strike; not given: seed
    c.data.partition.seed = placeholder(int)
    c.data.partition.shards = 2  # of a hospital, for shards
    c.data.partition.classes = 2  # of a hospital, for pathological
    # training records that every simulated hospital must get; natural: hospitals with
    # fewer records are left out
    c.data.partition.min_size = 2
    c.data.partition.test_fraction = 0.25  # of each hospital, if the data fix none
    c.data.partition.val_fraction = 0.1  # of each hospital, if the data fix none

    c.model = ConfigDict()
    # mlp, resmlp (tables and images); cnn, lenet, two_conv, resnet, vit (images)
    c.model.name = "mlp"
    c.model.init_from = placeholder(str)  # workdir of a run to start from
    c.model.mlp = ConfigDict()
    c.model.mlp.hidden = (32,)  # units per hidden layer; () is logistic regression
    c.model.cnn = ConfigDict()
    c.model.cnn.channels = (16, 32)  # channels per stage
    c.model.cnn.group_size = 4  # channels per norm group; 0: no norm
    c.model.lenet = ConfigDict()
    c.model.lenet.channels = (6, 16)  # channels per 5 x 5 convolution
    c.model.lenet.hidden = (120, 84)  # units per dense layer
    c.model.two_conv = ConfigDict()
    c.model.two_conv.channels = (32, 64)  # channels per 3 x 3 convolution
    c.model.two_conv.hidden = (128,)  # units per dense layer
    c.model.resmlp = ConfigDict()
    c.model.resmlp.width = 64  # units of the residual stream
    c.model.resmlp.hidden = 64  # units inside a block
    c.model.resmlp.depth = 4  # blocks
    c.model.resmlp.norm = "batch"  # batch, layer or none
    # what batch norms are evaluated with: "static", moments pooled over all hospitals;
    # "per_tier", over a tier's own; "batch", those of the evaluated batch
    c.model.resmlp.moments = "static"
    c.model.resnet = ConfigDict()
    c.model.resnet.channels = (64, 128, 256, 512)  # channels per stage
    c.model.resnet.blocks = (2, 2, 2, 2)  # per stage: ResNet-18; (3, 4, 6, 3): 34
    c.model.resnet.activation = "pre"  # pre- or post-activation blocks
    c.model.resnet.norm = "group"  # group, batch or none
    c.model.resnet.group_size = 4  # channels per norm group
    c.model.resnet.moments = "static"  # as of resmlp
    c.model.vit = ConfigDict()
    c.model.vit.width = 192  # of the residual stream: ViT-tiny
    c.model.vit.depth = 12  # blocks
    c.model.vit.heads = 3  # attention heads per block
    c.model.vit.patch = 16  # side of a patch, pixels
    c.model.vit.ratio = 4  # feed-forward units per stream channel

    c.submodel = ConfigDict()
    # fedavg (no sub-models); heterofl, federated_dropout, fedrolex, fjord (widths);
    # fiarse (the largest weights); depthfl, inclusivefl, scalefl, nefl, partial (blocks);
    # lora (ranks); dynamicfl (the whole model, with branches); ladder (mixed kinds)
    c.submodel.name = "heterofl"
    c.submodel.fedavg = ConfigDict()
    # "full": everybody the whole model; "smallest": everybody tier 0's width;
    # "exclusive": the width of one tier, by the clients that can carry it; "decoupled":
    # one model per tier
    c.submodel.fedavg.mode = "full"
    c.submodel.fedavg.tier = 0  # of "exclusive"; poorer clients take no part
    c.submodel.heterofl = ConfigDict()
    c.submodel.heterofl.scaler = True  # divide activations by the tier's share
    c.submodel.heterofl.masked_loss = True  # leave absent classes out of loss and head
    c.submodel.heterofl.dynamic = False  # draw every client's tier anew each round
    c.submodel.federated_dropout = ConfigDict()
    c.submodel.federated_dropout.shared = False  # one draw per round for all clients
    c.submodel.federated_dropout.scaler = True  # as of heterofl
    c.submodel.federated_dropout.masked_loss = True  # as of heterofl
    c.submodel.fedrolex = ConfigDict()
    c.submodel.fedrolex.scaler = True  # as of heterofl
    c.submodel.fedrolex.masked_loss = True  # as of heterofl
    # share of its window that a tier keeps over to the next round; not given: the
    # window moves on by one unit
    c.submodel.fedrolex.overlap = placeholder(float)
    c.submodel.fjord = ConfigDict()
    c.submodel.fjord.distill = True  # teach narrow widths by the client's widest
    c.submodel.fiarse = ConfigDict()
    c.submodel.fiarse.layerwise = False  # largest weights of every layer, not of all
    c.submodel.partial = ConfigDict()
    # which blocks a client trains: the last ones ("top"), a window that moves on
    # ("rolling"), or drawn anew each round ("random")
    c.submodel.partial.mode = "top"
    c.submodel.depthfl = ConfigDict()
    c.submodel.depthfl.stages = ()  # exits kept per tier; (): ceil(budget * exits)
    c.submodel.depthfl.distill = True  # exits of a client teach each other
    c.submodel.depthfl.ramp = 300  # rounds until they do so at full strength
    c.submodel.depthfl.ensemble = True  # answer with the mean of the exits
    c.submodel.depthfl.feddyn = 0.0  # FedDyn alpha; 0: without
    # tier whose depth all train that can, while poorer hospitals take no part; not given:
    # every tier its own
    c.submodel.depthfl.exclusive = placeholder(int)
    c.submodel.inclusivefl = ConfigDict()
    c.submodel.inclusivefl.stages = ()  # as of depthfl
    c.submodel.inclusivefl.beta = 0.2  # share of the richer tier in a last block
    c.submodel.scalefl = ConfigDict()
    c.submodel.scalefl.width = ()  # share of every width per tier; (): sqrt(budget)
    c.submodel.scalefl.exits = ()  # exits kept per tier; (): ceil(budget * exits)
    c.submodel.scalefl.gamma = 0.5  # strength of the last exit's teaching; 0: none
    c.submodel.scalefl.temperature = 3.0  # of the distillation
    c.submodel.scalefl.warmup = 0.25  # share of the rounds before it begins
    c.submodel.nefl = ConfigDict()
    # Share of the parameters that narrowing leaves, per tier; (): tiers.budget.
    c.submodel.nefl.width = ()
    # Identity blocks dropped per tier: how many from the end, or a tuple of positions.
    c.submodel.nefl.dropped = ()
    c.submodel.lora = ConfigDict()
    c.submodel.lora.rank = 8  # of the richest tier; the others keep their budget of it
    c.submodel.lora.alpha = 16.0  # kernels change by alpha / rank * a b, at every tier
    c.submodel.lora.head = True  # train the head whole, beside the factors
    c.submodel.dynamicfl = ConfigDict()  # of ladder too, for its tiers with branches
    # what a client trains: base and branches, whose sum is one kernel ("collapsed"); the
    # plain model by gradients that are as good as branches, at no cost, for families of
    # one map under sgd ("preconditioned"); or by those of branches as drawn ("matched",
    # the control)
    c.submodel.dynamicfl.branch_form = "collapsed"
    # family of every slot of a layer that fits it: 1x1, 1x1-KxK, 1x1-avg, 1xK, Kx1, KxK
    # beside convolutions, linear and lowrank beside matrices, scale beside both
    c.submodel.dynamicfl.families = (
        "1x1", "1x1-KxK", "1x1-avg", "1xK", "Kx1", "scale", "linear", "lowrank",
    )  # fmt: skip
    c.submodel.dynamicfl.rank = 4  # inner width of lowrank
    c.submodel.dynamicfl.inner = 1.0  # of 1x1-KxK, as a share of its inputs; in (0, 1]
    # which branches are alive: by "sensitivity", by "random" numbers, or the first ones
    # of every layer all the time ("fixed"); "auto": fixed for vit, else sensitivity
    c.submodel.dynamicfl.structure = "auto"
    c.submodel.dynamicfl.sensitivity = "product"  # |g psi|, "gradient" g^2 or "signed"
    c.submodel.dynamicfl.moved = 0.25  # share of the branches that move between rounds
    c.submodel.dynamicfl.skip = ("attention", "patch")  # layers without, by path part
    c.submodel.ladder = ConfigDict()
    # Per tier: width, depth (of its budget) or plain (all); (): width everywhere.
    c.submodel.ladder.kinds = ()
    c.submodel.ladder.cut = ()  # axes that width tiers narrow; (): every hidden one
    c.submodel.ladder.blocks = ()  # blocks of depth tiers; (): ceil(budget * blocks)

    c.tiers = ConfigDict()
    # per tier: share of every hidden width; of the parameters for fiarse
    c.tiers.budget = (0.25, 0.5, 0.75, 1.0)
    # per tier: branches per layer beside the plain model, for dynamicfl and ladder;
    # (): 0, 1, 2, .. for dynamicfl (whose tiers are whole, whatever budget says), else 0
    c.tiers.branches = ()
    # hospitals per tier, as a ratio; the richest with a share has one, however few
    c.tiers.share = (1.0, 1.0, 1.0, 1.0)
    # which hospitals are poor: random, by_size (the small ones) or by_label (those with
    # the smallest share of the last class, which of two is the positive one)
    c.tiers.assign = "random"
    # of the tiers with what they are assigned by: 1 is its strict order, 0 is random
    c.tiers.correlation = 1.0
    # ((round, hospital, tier), ..): from that round on; hospitals as in clients.jsonl, from 0
    c.tiers.schedule = ()

    c.local = ConfigDict()
    c.local.epochs = 1  # passes over a client's records per round
    c.local.steps = placeholder(int)  # steps per round of every client, not epochs
    c.local.batch_size = 16  # records
    c.local.optimizer = "sgd"  # sgd or adam (decoupled weight decay)
    c.local.learning_rate = 0.2  # at its highest
    # over rounds: constant; linear or cosine, to 0 in the end; steps, times decay_rate
    # at every milestone; exponential, times decay_rate every round
    c.local.schedule = "constant"
    # of steps: rounds after which the rate falls, of the whole run and increasing
    c.local.milestones = ()
    c.local.decay_rate = placeholder(float)  # of steps and exponential, in (0, 1]
    # rounds of linear rise, r / (warmup + 1) in round r, before the schedule begins
    c.local.warmup = 0
    c.local.momentum = 0.0  # of sgd
    c.local.weight_decay = 0.0  # per step; sgd: added to the gradient
    c.local.prox = 0.0  # FedProx mu
    c.local.clip = 0.0  # largest gradient norm over the kept coordinates; 0: none
    c.local.class_weights = "none"  # none or balanced (by the client's own counts)

    c.server = ConfigDict()
    c.server.optimizer = "sgd"  # sgd, momentum, adam or yogi
    c.server.learning_rate = 1.0  # sgd at 1 is FedAvg
    c.server.schedule = "constant"  # of the server's rate over rounds; as of local
    c.server.milestones = ()  # as of local
    c.server.decay_rate = placeholder(float)  # as of local
    c.server.warmup = 0  # as of local

    c.fairness = ConfigDict()
    # One rule, or several that give different things, as in "tier_term+logit_adjust".
    # Weights: size (records), uniform; by loss q_ffl, term, cvar, ordered, gifair; by
    # tier tier_term, tier_equal, tier_gap, tier_afl; climbing the losses afl, agnostic;
    # by group gaps fairfed; by contribution fedce. Directions: q_fedavg, fedmgda, fedfv.
    # Objectives: propfair, logit_adjust. What stays with a hospital: ditto (a model),
    # fedbn (norms), private_head.
    c.fairness.rule = "size"
    # what a coordinate's changes are divided by: "cover", the weights of the hospitals
    # that hold it; "fixed", their shares of the records, so that a lone holder's weight
    # counts, and under client_dp what a cohort holds on average, by what is public
    c.fairness.denominator = "cover"
    c.fairness.cap = 0.0  # largest weight, in shares of the records; 0: no cap (of
    # tiers, and from 1, for rules by losses under client_dp)
    c.fairness.warmup = 0  # rounds weighed by records before the rule begins
    # patient attribute of fairfed (of two values) and agnostic; not given: the data's
    # first one that fits
    c.fairness.group = placeholder(str)
    # a group's name for every hospital (its region, its kind), in the order of
    # clients.jsonl, for agnostic and gifair, and judged in the end; (): no groups
    c.fairness.hospital_group = ()
    c.fairness.q_ffl = ConfigDict()
    c.fairness.q_ffl.q = 1.0  # 0 is FedAvg; larger moves weight to high losses
    c.fairness.term = ConfigDict()
    c.fairness.term.t = 1.0  # tilt, per nat; 0 is FedAvg
    c.fairness.cvar = ConfigDict()
    c.fairness.cvar.alpha = 0.5  # share of the records trained for; 1 is FedAvg
    c.fairness.ordered = ConfigDict()
    c.fairness.ordered.power = 0.5  # 1 is FedAvg; smaller moves weight to high losses
    c.fairness.gifair = ConfigDict()
    c.fairness.gifair.c = 0.5  # share of the largest admissible strength; 0 is FedAvg
    # whose losses are levelled: client, tier or hospital_group
    c.fairness.gifair.groups = "client"
    c.fairness.afl = ConfigDict()
    c.fairness.afl.rate = 0.1  # of the ascent, per nat; 0 is FedAvg
    c.fairness.agnostic = ConfigDict()
    c.fairness.agnostic.rate = 0.1  # of the ascent, per nat; 0 is FedAvg
    # tier, client, hospital_group or group (of patients, by fairness.group)
    c.fairness.agnostic.domain = "tier"
    c.fairness.tier_afl = ConfigDict()
    c.fairness.tier_afl.rate = 0.1  # as of afl
    c.fairness.tier_term = ConfigDict()
    c.fairness.tier_term.t = 1.0  # as of term
    c.fairness.tier_equal = ConfigDict()
    c.fairness.tier_equal.strength = 1.0  # 1: every tier the same; 0 is FedAvg
    c.fairness.tier_gap = ConfigDict()
    c.fairness.tier_gap.rate = 1.0  # per round and unit of accuracy; 0 is FedAvg
    c.fairness.fairfed = ConfigDict()
    c.fairness.fairfed.beta = 1.0  # per round and unit of the gap; 0 is FedAvg
    c.fairness.fedce = ConfigDict()
    c.fairness.fedce.mode = "plus"  # directions and errors added (plus) or multiplied
    c.fairness.q_fedavg = ConfigDict()
    # 0 is the plain mean over hospitals; for plain sgd, with decay and prox if wanted
    c.fairness.q_fedavg.q = 1.0
    c.fairness.fedmgda = ConfigDict()
    c.fairness.fedmgda.epsilon = 0.1  # how far weights may move from records' shares
    c.fairness.fedfv = ConfigDict()
    c.fairness.fedfv.alpha = 0.1  # share of the worst served that are left as they are
    c.fairness.fedfv.tau = 1  # rounds that an absent hospital's change is remembered
    c.fairness.propfair = ConfigDict()
    c.fairness.propfair.bound = 2.0  # nats; above typical losses
    c.fairness.propfair.epsilon = 0.2  # nats; below this utility the plain loss
    c.fairness.logit_adjust = ConfigDict()
    c.fairness.logit_adjust.tau = 1.0  # strength of the class prior; 0 is FedAvg
    c.fairness.ditto = ConfigDict()
    c.fairness.ditto.strength = 0.1  # of the pull to the plain model

    c.privacy = ConfigDict()
    # none; client_dp: clipped changes, noise on their sum, by a server that is trusted;
    # record_dp: DP-SGD inside every hospital; local_dp: noise on every upload
    c.privacy.mechanism = "none"
    # whose presence is hidden: under record_dp a "record" or a "patient" (data.patient),
    # whose records at a hospital have one clipped gradient; else a "client", the whole
    # hospital. Not given: record or client
    c.privacy.unit = placeholder(str)
    # of a patient in a step of record_dp, drawn anew in each; memory grows with it
    c.privacy.records_per_patient = 4
    # largest norm of a hospital's change, or under record_dp of a unit's gradient; from
    # 2^-40 to 2^50, where float32 clips
    c.privacy.clip = 1.0
    # per tier, in place of clip: tiers of smaller changes are hidden better
    c.privacy.tier_clip = ()
    # standard deviation of the noise, in clips, were changes all that a round releases;
    # what else is released takes a share of it. Not given: what epsilon asks for
    c.privacy.noise_multiplier = placeholder(float)
    c.privacy.epsilon = placeholder(float)  # budget of all rounds; not given: no limit
    # below 1 / hospitals; record_dp: 1 / records, or patients, of the largest hospital
    c.privacy.delta = 1e-5
    # cohorts of client_dp: every hospital with probability cohort / N ("poisson"), as
    # many as `cohort` says ("fixed"; by RDP and replace_one: another hospital in the place
    # of one moves the sum by two clips, so that as much noise hides far less), or all of
    # them ("full")
    c.privacy.sampling = "poisson"
    # batches of record_dp: every record, or patient, with probability batch_size / n
    # ("poisson"), or cut from shuffled epochs of records, not amplified ("shuffled")
    c.privacy.batches = "poisson"
    c.privacy.microbatch = 16  # units whose gradients are in memory at once
    # in what neighbouring federations differ: one unit is absent ("zero_out") or is
    # another one ("replace_one"); not given: zero_out, but not for fixed cohorts and
    # local_dp
    c.privacy.neighbours = placeholder(str)
    c.privacy.accountant = "auto"  # pld or rdp; auto: pld, and rdp for fixed cohorts
    c.privacy.on_budget = "stop"  # before the round that would exceed epsilon; or warn
    c.privacy.adaptive = ConfigDict()  # of client_dp: the clip follows a quantile
    # of the changes' norms; not given: the clip is fixed
    c.privacy.adaptive.quantile = placeholder(float)
    c.privacy.adaptive.rate = 0.2  # of the clip's logarithm per round
    # standard deviation of the count's noise, hospitals; not given: cohort / 20
    c.privacy.adaptive.count_noise = placeholder(float)
    # of client_dp with a fairness rule by losses: what it is shown, the noisy mean losses
    # of tiers, which it weighs in place of hospitals; fairness.cap bounds the weights
    c.privacy.losses = ConfigDict()
    c.privacy.losses.bound = 2.0  # nats; a hospital's larger loss counts as this one
    # standard deviation of their sums' noise, in half bounds; not given: sqrt(10) times
    # privacy.noise_multiplier, a tenth of what a round spends
    c.privacy.losses.noise_multiplier = placeholder(float)
    # the cohort's sums as integers modulo 2^32: as they are ("quantized"), or under
    # masks that cancel ("masked", the same bytes); simulated, see securesum.py
    c.privacy.secure_sum = "off"
    c.privacy.secure = ConfigDict()
    # of an addend, 2 to 24; hospitals * 2^(bits - 1) must stay below 2^31
    c.privacy.secure.bits = 20
    # largest entry of a weighted change; larger ones saturate (client_dp: its clip)
    c.privacy.secure.bound = 1.0
    # hospitals that must hold a coordinate, or it is left as it is; under client_dp
    # in an average cohort, whoever comes
    c.privacy.secure.minimum = 3

    c.robust = ConfigDict()
    # leave out a client whose change is not finite (client_dp and local_dp may not show
    # that one failed: it sends what one that learned nothing does)
    c.robust.finite_guard = True
    # how changes become one: "mean", the weighted one of the fairness rule; by coordinate
    # "median" or "trimmed_mean" over who holds it, without weights; by distance "krum",
    # one hospital's as it is, or "multi_krum", the weighted mean of those that lie together
    c.robust.fold = "mean"
    c.robust.hostile = 1  # liars that a cohort may have, for krum and multi_krum
    c.robust.trimmed_mean = ConfigDict()
    c.robust.trimmed_mean.beta = 0.1  # share that is cut off at either end
    # largest norm of a change, in running medians of its tier's; 0: none
    c.robust.norm_bound = 0.0
    # largest weight of a hospital, in equal shares 1 / K, under a norm bound of a mean or
    # multi_krum: no loss or count that it claims buys more; 0: none
    c.robust.weight_cap = 3.0
    # ((name, share of hospitals, probability in a round), ..): what goes wrong, for
    # research. Absences drop_before, drop_during, drop_after, straggler; uploads nan, inf,
    # sign_flip, scaling, gaussian, free_rider; claims inflated_count, inflated_loss;
    # records label_flip, corrupted; impostor: says that it is of the richest tier
    c.robust.faults = ()
    c.robust.strength = ConfigDict()  # of faults
    c.robust.strength.sign_flip = 1.0  # times the change, reversed
    c.robust.strength.scaling = 10.0  # times the change
    c.robust.strength.gaussian = 1.0  # norm of the noise, in norms of the change
    c.robust.strength.inflated_count = 10.0  # times the records
    c.robust.strength.inflated_loss = 10.0  # times the loss
    c.robust.deadline = ConfigDict()  # of stragglers
    c.robust.deadline.most = 1.5  # usual times of a round; later uploads are dropped
    c.robust.deadline.spread = 0.5  # standard deviation of the logarithm of their time

    c.execution = ConfigDict()
    c.execution.form = "auto"  # masked at full width, or sliced to each tier's size
    # A cohort smaller than N: "padded" draws any clients alike, and when sliced pads the
    # slots of every tier; "stratified" draws every tier's share of the cohort.
    c.execution.slots = "padded"
    c.execution.batching = "auto"  # how a cohort runs: auto, vmap, scan or chunk
    c.execution.chunk = 8  # clients side by side, for chunk
    c.execution.conv = "auto"  # lowering of convolutions: auto, xla, shift or forward
    # local steps that one turn of a client's loop computes: more is more to compile
    c.execution.unroll = 1
    # where training records lie: "device"; "host", from where every round is given those
    # of its cohort, sent while the round before computes; "auto": host if they take more
    # than half of `memory`
    c.execution.records = "auto"
    # training images on the device: "uint8", read by the step that they train; "float32",
    # as the model takes them; "auto": uint8 where all hospitals normalise bytes alike
    c.execution.pixels = "auto"
    # MiB of a device that a run may take; 0: what the device reports, if it does. With
    # batching auto a round that takes more runs in chunks that do not
    c.execution.memory = 0.0
    # what layers compute in: float32 or bfloat16 (meant for GPU and TPU);
    # parameters, losses and sums over clients are float32 always
    c.execution.dtype = "float32"
    # devices that a cohort is dealt to; 0: all there are, of all processes
    c.execution.devices = 1

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 1  # rounds between checkpoints
    c.checkpoint.keep = 2  # newest checkpoints on disk, at least 2
    return c


def preset(config: ConfigDict, name: str, **presets: dict) -> ConfigDict:
    """The config with named sets of changes, {field: value}; "" changes nothing.

    "a+b" is a, and then b. Every config has "smoke": two rounds, both evaluated.
    """
    presets = {"smoke": {"rounds": 2, "eval_every": 1}, **presets}
    for part in name.split("+") if name else ():
        require.one_of("preset of --config", part, presets)
        config.update_from_flattened_dict(presets[part])
    return config
