"""Sub-models of a plain model: a budget tier trains a mask over one parameter tree."""
