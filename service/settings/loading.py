"""Settings from flags, the environment and defaults, with messages about bad values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from service.settings.environment import ENV_PREFIX
from service.settings.fields import Settings

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
    return _validated(Settings, overrides)


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
