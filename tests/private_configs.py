"""Small configs under every privacy mechanism."""

from configs import default

CLIENT = {
    "privacy.mechanism": "client_dp",
    "privacy.noise_multiplier": 1.0,
    "fairness.denominator": "fixed",
    "clients_per_round": 3,
    "data.partition.num_clients": 6,
    "model.mlp.hidden": (8,),
    "rounds": 3,
}
RECORD = {
    "privacy.mechanism": "record_dp",
    "privacy.noise_multiplier": 1.0,
    "submodel.heterofl.masked_loss": False,
    "data.partition.num_clients": 4,
    "model.mlp.hidden": (8,),
    "rounds": 3,
}
LOCAL = RECORD | {"privacy.mechanism": "local_dp", "privacy.noise_multiplier": 8.0}
LOCAL["clients_per_round"] = 2
BY_LOSS = CLIENT | {"fairness.rule": "term", "fairness.cap": 2.0}
SECRET = BY_LOSS | {
    "clients_per_round": 4,
    "tiers.budget": (0.5, 1.0),
    "tiers.proportions": (1.0, 1.0),
    "privacy.secure_sum": "masked",
    "privacy.secure.minimum": 2,
}
PATIENT = RECORD | {"privacy.unit": "patient", "privacy.accountant": "rdp"}


def changed(base, **fields):
    """The default config with the fields of `base` and others, a__b for a.b."""
    config = default.get_config()
    named = {name.replace("__", "."): value for name, value in fields.items()}
    config.update_from_flattened_dict(base | named)
    return config
