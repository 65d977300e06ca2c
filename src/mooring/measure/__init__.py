"""Watching a training: telemetry to loggers, its history, and a picture of it."""

from mooring.measure.loggers import log_to
from mooring.measure.watcher import Watch, watch

__all__ = ["Watch", "log_to", "watch"]
