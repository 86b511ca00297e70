"""Fields of `privacy`: the mechanism, what it protects, and its budget."""

import dataclasses

from fairjax.core import require
from fairjax.experiment.config.options.fields import interval, one_of, option, subgroup
from fairjax.privacy import accounting, securesum
from fairjax.privacy import clip as clipping

MECHANISMS = ("none", "client_dp", "record_dp", "local_dp")
SAMPLINGS = ("poisson", "fixed", "full")
BATCHES = ("poisson", "shuffled")
ON_BUDGET = ("stop", "warn")


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """`privacy.adaptive`: a clip that follows a quantile of the updates' norms."""

    quantile: float | None = option(
        None, "not given: the clip is fixed", check=interval(0, 1)
    )
    rate: float = option(
        0.2, "step of the clip's logarithm per round", check=require.positive
    )
    count_noise: float | None = option(
        None,
        "standard deviation of the count's noise, clients; not given: expected "
        "cohort / 20",
        check=require.positive,
    )


@dataclasses.dataclass(frozen=True)
class Losses:
    """`privacy.losses`: noisy mean losses of tiers, for rules that read losses."""

    bound: float = option(
        2.0, "nats; a client's larger loss counts as this one", check=require.positive
    )
    noise_multiplier: float | None = option(
        None,
        "standard deviation of the noise on their sums, in half bounds; not "
        "given: sqrt(10) times privacy.noise_multiplier, a tenth of what a round "
        "spends",
        check=require.positive,
    )


@dataclasses.dataclass(frozen=True)
class Secure:
    """`privacy.secure`: a secure sum."""

    bits: int = option(
        20, "bits of an addend, 2 to 24; clients * 2^(bits - 1) must stay below 2^31"
    )
    bound: float = option(
        1.0,
        "largest entry of a weighted update; larger ones saturate (client_dp: its "
        "clip)",
        check=require.positive,
    )
    minimum: int = option(
        3,
        "clients that must train a coordinate, or it keeps its value; under "
        "client_dp the number in an average cohort, whichever clients take part",
        check=interval(2),
    )


@dataclasses.dataclass(frozen=True)
class Privacy:
    """`privacy`: the privacy mechanism, what it protects, and its budget."""

    mechanism: str = option(
        "none",
        "none; client_dp: clipped updates and noise on their sum, at a trusted "
        "server; record_dp: DP-SGD inside every client; local_dp: noise on every "
        "upload",
        check=one_of(MECHANISMS),
    )
    unit: str | None = option(
        None,
        'whose presence is hidden: under record_dp a "record" or a "patient" '
        "(data.patient), whose records at a client have one clipped gradient; "
        'else a "client", the whole hospital. Not given: record or client',
    )
    records_per_patient: int = option(
        4,
        "records of a patient in a step of record_dp, drawn anew for each step; "
        "memory grows with this number",
        check=require.count,
    )
    clip: float = option(
        1.0,
        "largest norm of a client's update, or under record_dp of a unit's "
        "gradient; from 2^-40 to 2^50, where float32 clips",
        check=clipping.check,
    )
    tier_clip: tuple[float, ...] = option(
        (),
        "per tier, in place of clip: tiers of smaller updates are hidden better",
        check=clipping.check,
    )
    noise_multiplier: float | None = option(
        None,
        "standard deviation of the noise, in clips, if a round released updates "
        "alone; any other release takes a share of it. Not given: what epsilon "
        "asks for",
        check=interval(0),
    )
    epsilon: float | None = option(
        None, "budget of all rounds; not given: no limit", check=require.positive
    )
    delta: float = option(
        1e-05,
        "below 1 / clients; record_dp: 1 / records, or patients, of the largest client",
        check=interval(0, 1, open_low=True, open_high=True),
    )
    sampling: str = option(
        "poisson",
        "cohorts of client_dp: every client with probability clients_per_round / "
        'N ("poisson"); exactly clients_per_round clients ("fixed", accounted by '
        "RDP and replace_one: replacing a client moves the sum by two clips, so "
        'that the same noise hides far less); or all clients ("full")',
        check=one_of(SAMPLINGS),
    )
    batches: str = option(
        "poisson",
        "batches of record_dp: every record, or patient, with probability "
        'batch_size / n ("poisson"), or cut from shuffled epochs of records, not '
        'amplified ("shuffled")',
        check=one_of(BATCHES),
    )
    microbatch: int = option(
        16, "units whose gradients are in memory at once", check=require.count
    )
    neighbours: str | None = option(
        None,
        'how neighbouring federations differ: one unit is absent ("zero_out") or '
        'is another one ("replace_one"); not given: replace_one for fixed cohorts '
        "and local_dp, else zero_out",
        check=one_of(accounting.NEIGHBOURS),
    )
    accountant: str = option(
        "auto",
        "pld or rdp; auto: pld, and rdp for fixed cohorts",
        check=one_of(("auto", *accounting.ACCOUNTANTS)),
    )
    on_budget: str = option(
        "stop",
        "stop before the round that would exceed epsilon, or warn",
        check=one_of(ON_BUDGET),
    )
    adaptive: Adaptive = subgroup(
        Adaptive, "for client_dp: the clip follows a quantile of the updates' norms"
    )
    losses: Losses = subgroup(
        Losses,
        "for client_dp with a fairness rule that reads losses: the rule sees "
        "noisy mean losses of tiers and weights tiers in place of clients; "
        "fairness.cap bounds the weights",
    )
    secure_sum: str = option(
        "off",
        'the cohort\'s sums as integers modulo 2^32: as they are ("quantized"), or '
        'under masks that cancel ("masked", the same bytes); simulated, see '
        "securesum.py",
        check=one_of(securesum.MODES),
    )
    secure: Secure = subgroup(Secure)
