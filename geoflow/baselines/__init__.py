"""What geoflow's walks are compared with."""

from __future__ import annotations

from geoflow.baselines.decay_dataset import best_penalty, open_weight_decay, save_weight_decay
from geoflow.baselines.decay_training import PENALTIES, weight_decay
from geoflow.baselines.paper_loop import predictor_corrector

__all__ = [
    "PENALTIES",
    "best_penalty",
    "open_weight_decay",
    "predictor_corrector",
    "save_weight_decay",
    "weight_decay",
]


def __dir__() -> list[str]:
    return sorted(__all__)
