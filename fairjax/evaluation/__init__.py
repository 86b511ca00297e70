"""Evaluation of deployed sub-models and of personalised models."""
