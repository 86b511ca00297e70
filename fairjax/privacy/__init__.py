"""Clipping, noise, what they cost in privacy, and sums that show no single addend."""
