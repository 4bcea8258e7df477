"""What geoflow's walks are compared with."""

from __future__ import annotations

from geoflow.baselines.decay_dataset import best_penalty, open_weight_decay, save_weight_decay
from geoflow.baselines.predictor_corrector import predictor_corrector
from geoflow.baselines.weight_decay import PENALTIES, weight_decay

__all__ = [
    "PENALTIES",
    "best_penalty",
    "open_weight_decay",
    "predictor_corrector",
    "save_weight_decay",
    "weight_decay",
]
