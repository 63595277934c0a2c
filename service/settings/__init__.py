"""The settings of a deployment, from flags and environment variables."""

from service.settings.environment import ENV_PREFIX, service_addresses, unknown_variables
from service.settings.fields import Settings
from service.settings.loading import SettingsError, given_settings, load_settings

__all__ = [
    "ENV_PREFIX",
    "Settings",
    "SettingsError",
    "given_settings",
    "load_settings",
    "service_addresses",
    "unknown_variables",
]
