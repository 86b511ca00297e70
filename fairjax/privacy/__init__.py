"""Protections: clipping, noise, their privacy cost, and sums that hide every addend."""
