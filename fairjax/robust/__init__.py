"""Hospitals that fail or lie, and what keeps them from moving the model far."""
