"""Faulty and Byzantine clients, and what keeps them from moving the model far."""
