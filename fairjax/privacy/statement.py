"""What an epsilon says and what it does not, in plain words.

These are the only words on it: summary.json holds them, and whatever shows an epsilon
takes them from there.
"""

from typing import Any, NamedTuple

from fairjax.privacy import noise

MATTERS = 0.01
"""Share of delta from which on a part of it is worth a note."""
USUAL = 0.1
"""Of 1 / n: above it a delta is larger than is usual, for n who are protected."""

_WHOM = {
    "client": "one hospital with all of its records",
    "record": "one training record",
    "patient": "one patient with all of its training records",
}
_COVERED = {
    "client_dp": "the models of all rounds, released by a server that is trusted with "
    "every hospital's change, and the noisy counts and losses that they follow from",
    "record_dp": "all that hospitals send in all rounds, and so the models",
    "local_dp": "all that hospitals send in all rounds, and so the models",
}
_NOT_COVERED = (
    "losses, metrics and counts in the workdir, which are taken without noise",
    "validation and test records, and that the selected round was chosen by them",
    "the choice of the best of several runs or of a sweep: what all of them spend adds "
    "up",
    "what another run spent of the same records, if this one starts from its model "
    "(model.init_from)",
    "the seed, from which all noise can be computed, and what hospitals keep to "
    "themselves: both are in the workdir",
)
_SECRET = "who came in a round, which clients.jsonl and checkpoints tell"
"""Not covered where cohorts are drawn in secret."""


class Facts(NamedTuple):
    """What the words depend on."""

    mechanism: str
    unit: str
    epsilon: float
    """Infinity: none can be stated."""
    delta: float
    tail: float
    """What of delta is for noise that cannot be drawn."""
    members: int
    """n: how many units there are, at the hospital that has most of them."""
    noise_multiplier: float
    sampling: str
    neighbours: str
    shared: int = 0
    """Patients at several hospitals."""
    hospitals: int = 1
    """The most that one patient is at."""


def statement(facts: Facts) -> dict[str, Any]:
    """summary.json's words: {"of", "covers", "does_not_cover", "floats", "notes"}."""
    whom = _WHOM[facts.unit]
    if facts.shared:
        whom += f", at up to {facts.hospitals} hospitals"
    return {
        "of": whom,
        "covers": _COVERED[facts.mechanism],
        "does_not_cover": [
            *([_SECRET] if facts.mechanism == "client_dp" else []),
            *_NOT_COVERED,
        ],
        "floats": (
            "Noise and sums are float32, the accounting is of real numbers: the last "
            "bits of a noised number may tell what it was before (Mironov 2012). Noise "
            f"ends at {noise.RADIUS:.1f} standard deviations; {facts.tail:.1g} of "
            "delta is for that."
        ),
        "notes": notes(facts),
    }


def notes(facts: Facts) -> list[str]:
    """What of a guarantee is easily taken for something else, a sentence each."""
    found = []
    unbounded = facts.epsilon == float("inf")
    if unbounded and facts.noise_multiplier == 0:
        found.append("No epsilon holds: there is no noise.")
    elif unbounded:
        found.append(
            f"No epsilon can be stated at delta {facts.delta:g}: noise of "
            f"{facts.noise_multiplier:.3g} clips, which ends somewhere, is too little."
        )
    elif facts.tail > MATTERS * facts.delta:
        share = facts.tail / facts.delta
        found.append(f"{share:.1%} of delta is for noise that cannot be drawn.")
    if facts.delta > USUAL / facts.members:
        found.append(
            f"delta {facts.delta:g} is above a tenth of 1 / {facts.members}, which is "
            "more than is usual: whoever publishes one of n at random has delta 1 / n."
        )
    if facts.sampling == "fixed" and facts.mechanism == "client_dp":
        found.append(
            "The noise multiplier is per clip. In a cohort of fixed size another "
            "hospital takes the place of one, which moves the sum by two clips: such "
            "noise hides half as well as in Poisson cohorts."
        )
    if facts.shared:
        found.append(
            f"{facts.shared} patients are at several hospitals. Epsilon is of those at "
            "all that they are at, together; that of a hospital is of patients who are "
            "at no other."
        )
    return found


def origin(workdir: str, privacy: dict[str, Any], *, same: bool) -> str:
    """A note on the run whose model another one starts from.

    Args:
        workdir: its folder.
        privacy: of its summary.json, or at least its mechanism.
        same: whether both have the same data, cut alike.
    """
    mechanism = privacy.get("mechanism", "none")
    whose = "the same records" if same else "records that both have"
    if mechanism == "none":
        return (
            f"The run starts from the model of {workdir}, which was trained without "
            f"privacy: what that tells of {whose} no epsilon bounds."
        )
    spent = privacy.get("epsilon")
    how = "an epsilon" if spent is None else f"epsilon {spent:.3g}"
    return (
        f"The run starts from the model of {workdir}, which spent {how} under "
        f"{mechanism}: of {whose} both epsilons and both deltas add up, and what is "
        "shown here is of this run alone."
    )
