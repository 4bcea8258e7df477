"""Regularisation paths: the KKT point of min R on L = c, followed while c changes."""
