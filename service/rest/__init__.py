"""The REST adapter: HTTP in, one call of the Detector, JSON or a picture out."""

from service.rest.app import create_app

__all__ = ["create_app"]
