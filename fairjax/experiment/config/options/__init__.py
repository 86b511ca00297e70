"""The options of methods, rules and models: a typed dataclass for each."""
