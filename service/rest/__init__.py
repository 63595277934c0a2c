"""The REST adapter: HTTP in, one call of the Detector, an encoded response out."""

from service.rest.api_key_middleware import require_metrics_key
from service.rest.app import create_app
from service.rest.probes import create_metrics_app

__all__ = ["create_app", "create_metrics_app", "require_metrics_key"]
