"""The REST adapter: HTTP in, one call of the Detector, JSON or a picture out."""

from service.rest.app import create_app
from service.rest.guard import guard_metrics
from service.rest.probes import create_metrics_app

__all__ = ["create_app", "create_metrics_app", "guard_metrics"]
