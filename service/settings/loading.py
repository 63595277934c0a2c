"""Settings from flags, the environment and defaults, with messages about bad values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from service.memory import memory_limit_bytes
from service.settings.environment import ENV_PREFIX
from service.settings.fields import Settings

# The largest shares of the memory's limit that are used unless others are given; engines, the edge
# and files in memory have the rest.
_LARGEST_SHARES = {"decode_memory_bytes": 3 / 8, "max_bodies_bytes": 1 / 8}
_LEAST_SHARE_BYTES = 1 << 26
_CREDENTIALS = re.compile(r"[^\s/'\"]*:[^\s/'\"]*@")  # user and password in a URL


class SettingsError(ValueError):
    """Invalid settings; the message names each field, its variable and the reason."""


def load_settings(**overrides: Any) -> Settings:
    """Reads the settings from the environment.

    Args:
        **overrides: values by field name, which take precedence; None means "not given".

    Raises:
        SettingsError: for bad values, one line each, with the field and its variable.
    """
    return fit_to_memory(_validated(Settings, overrides), memory_limit_bytes())


def fit_to_memory(settings: Settings, limit_bytes: int | None) -> Settings:
    """Lowers the memory settings that were not given, if the memory's limit is small.

    Args:
        settings: of the service.
        limit_bytes: of its container or machine; None: unknown.
    """
    if limit_bytes is None:
        return settings
    shares = {name: int(limit_bytes * share) for name, share in _LARGEST_SHARES.items()}
    least = {"max_bodies_bytes": settings.max_body_bytes}  # else the largest body gets 429 for ever
    lowered = {
        name: max(share, least.get(name, _LEAST_SHARE_BYTES))
        for name, share in shares.items()
        if name not in settings.model_fields_set and share < getattr(settings, name)
    }
    fitted = settings.model_copy(update=lowered)
    fitted.model_fields_set.difference_update(lowered)  # they were not given
    return fitted


class _GivenSettings(Settings):
    """Settings that are not read from the environment."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Keeps the values given in code only."""
        return (init_settings,)


def given_settings(**given: Any) -> Settings:
    """Returns settings of given values and defaults, for commands without a service.

    The environment is not read: it may configure a service, and so may not suit the command.

    Args:
        **given: values by field name; None means "not given".

    Raises:
        SettingsError: as `load_settings` does.
    """
    return _validated(_GivenSettings, given)


def _validated(settings: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Creates settings; raises SettingsError for bad values."""
    try:
        return settings(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(item) for item in error.errors())) from None


def _explain(item: Any) -> str:
    """Describes one bad value in one line."""
    message = str(item["msg"]).removeprefix("Value error, ")
    if not item["loc"]:
        return message
    field = str(item["loc"][0])
    value = _CREDENTIALS.sub("***@", repr(item["input"]))  # the line is logged
    return f"{field}={value} ({ENV_PREFIX}{field.upper()}): {message}"
