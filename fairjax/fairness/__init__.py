"""Fairness rules: how a cohort is weighted, and in which direction the model moves."""
