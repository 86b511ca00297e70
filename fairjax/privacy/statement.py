"""What an epsilon says and what it does not, in plain words.

There are no other words on it: summary.json has these, and whatever shows an epsilon
takes them from there.
"""

from typing import Any, NamedTuple

from fairjax.privacy import noise

NOTABLE_SHARE = 0.01
"""The share of delta above which a part of it is worth a note."""
USUAL_DELTA = 0.1
"""A delta above this share of 1 / n is larger than usual, for n protected units."""

_UNITS = {
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
    "what another run spent of the same records, if this one starts from its model",
    "the seed, from which all noise can be computed, and what hospitals keep to "
    "themselves: both are in the workdir",
)
_SECRET_COHORTS = "who came in a round, which clients.jsonl and checkpoints tell"
"""Not covered where cohorts are drawn in secret (client_dp)."""


class GuaranteeFacts(NamedTuple):
    """What the words depend on."""

    mechanism: str
    unit: str
    epsilon: float
    """Infinity where no epsilon can be stated."""
    delta: float
    tail: float
    """The part of delta for noise that cannot be drawn."""
    num_units: int
    """n: the number of units, at the client that has most of them."""
    noise_multiplier: float
    sampling: str
    neighbours: str
    shared_patients: int = 0
    """Patients who are at several clients."""
    clients_per_patient: int = 1
    """The largest number of clients that one patient is at."""


def statement(facts: GuaranteeFacts) -> dict[str, Any]:
    """summary.json's words: {"of", "covers", "does_not_cover", "floats", "notes"}."""
    protected_unit = _UNITS[facts.unit]
    if facts.shared_patients:
        protected_unit += f", at up to {facts.clients_per_patient} hospitals"
    return {
        "of": protected_unit,
        "covers": _COVERED[facts.mechanism],
        "does_not_cover": [
            *([_SECRET_COHORTS] if facts.mechanism == "client_dp" else []),
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


def notes(facts: GuaranteeFacts) -> list[str]:
    """What is easily misunderstood about a guarantee, a sentence each."""
    sentences = []
    is_unbounded = facts.epsilon == float("inf")
    if is_unbounded and facts.noise_multiplier == 0:
        sentences.append("No epsilon holds: there is no noise.")
    elif is_unbounded:
        sentences.append(
            f"No epsilon can be stated at delta {facts.delta:g}: noise of "
            f"{facts.noise_multiplier:.3g} clips, which ends somewhere, is too little."
        )
    elif facts.tail > NOTABLE_SHARE * facts.delta:
        share = facts.tail / facts.delta
        sentences.append(f"{share:.1%} of delta is for noise that cannot be drawn.")
    if facts.delta > USUAL_DELTA / facts.num_units:
        sentences.append(
            f"delta {facts.delta:g} is above a tenth of 1 / {facts.num_units}, which "
            "is more than is usual: whoever publishes one of n at random has delta "
            "1 / n."
        )
    if facts.sampling == "fixed" and facts.mechanism == "client_dp":
        sentences.append(
            "The noise multiplier is per clip. In a cohort of fixed size another "
            "hospital takes the place of one, which moves the sum by two clips: such "
            "noise hides half as well as in Poisson cohorts."
        )
    if facts.shared_patients:
        sentences.append(
            f"{facts.shared_patients} patients are at several hospitals. Epsilon is of "
            "those at all that they are at, together; that of a hospital is of "
            "patients who are at no other."
        )
    return sentences


def origin(workdir: str, privacy: dict[str, Any], *, same_data: bool) -> str:
    """A note on the run whose model another one starts from.

    Args:
        workdir: that run's folder.
        privacy: "privacy" of that run's summary.json, or at least its "mechanism".
        same_data: whether both runs have the same data, partitioned alike.
    """
    mechanism = privacy.get("mechanism", "none")
    records = "the same records" if same_data else "records that both have"
    if mechanism == "none":
        return (
            f"The run starts from the model of {workdir}, which was trained without "
            f"privacy: what that tells of {records} no epsilon bounds."
        )
    epsilon = privacy.get("epsilon")
    epsilon_text = "an epsilon" if epsilon is None else f"epsilon {epsilon:.3g}"
    return (
        f"The run starts from the model of {workdir}, which spent {epsilon_text} under "
        f"{mechanism}: of {records} both epsilons and both deltas add up, and what is "
        "shown here is of this run alone."
    )
