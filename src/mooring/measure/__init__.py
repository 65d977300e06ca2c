"""Watching a training: telemetry to loggers, its history, and a picture of it. The curvature of the loss."""

from mooring.measure.hessian import Estimate, Hessian
from mooring.measure.loggers import log_to
from mooring.measure.watcher import Watch, watch

__all__ = ["Estimate", "Hessian", "Watch", "log_to", "watch"]
