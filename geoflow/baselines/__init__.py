"""What geoflow's walks are compared with."""

from __future__ import annotations

from geoflow.baselines.predictor_corrector import predictor_corrector

__all__ = ["predictor_corrector"]
