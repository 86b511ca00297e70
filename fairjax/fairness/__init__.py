"""Fairness rules: how a cohort is weighted, and in which direction it moves the model."""
