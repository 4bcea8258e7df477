"""Scalars of a walk as series in time: rates, oscillations, noise."""
