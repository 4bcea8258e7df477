"""Trajectories and analyses as files: written whole or not at all, checked when read."""
