"""Imported once by the server that forks walks: a process's first derivatives take seconds."""

import torch

import geoflow as gf
import references

torch.set_num_threads(1)
gf.walk(references.ellipsoid(), max_evaluations=30)
