"""Finds the cloud that the service runs on, and turns its variables into settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.routing import BaseRoute, Match, Route

from service.clouds.contract import Cloud, Deployment, is_given
from service.clouds.registry import CLOUDS
from service.settings import ENV_PREFIX, Settings, SettingsError, load_settings

_AUTO = "auto"
_LEAST_SPECIFIC = "cloud-run"  # PORT may also be set where another cloud is recognized


@dataclass(frozen=True)
class CloudSettings:
    """The settings of a service on a cloud, or anywhere else.

    Attributes:
        settings: complete.
        deployment: None if there is no cloud.
        notes: lines for the log.
        warnings: the same, as warnings.
    """

    settings: Settings
    deployment: Deployment | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def settings_for_cloud(
    own: Settings, given: Mapping[str, Any], environment: Mapping[str, str]
) -> CloudSettings:
    """Completes settings by those that follow from a cloud.

    Args:
        own: the settings of the deployment itself, from `given` and `LITE_DETR_*` variables.
        given: values of flags by field name, for `load_settings`.
        environment: all variables.

    Raises:
        SettingsError: for variables of a cloud that cannot be used.
    """
    cloud = _cloud(own, environment)
    if cloud is None:
        return CloudSettings(own)
    deployment = cloud.read(environment, own)
    warnings = list(deployment.warnings)
    values: dict[str, Any] = {}
    for each in deployment.settings:
        if not is_given(own, each.field):
            values[each.field] = each.value
        elif each.required and getattr(own, each.field) != each.value:
            name = f"{each.field} ({ENV_PREFIX}{each.field.upper()})"
            warnings.append(
                f"{each.source} is not used: {name} is {str(getattr(own, each.field))!r}"
            )
    used = [each.source for each in deployment.settings if each.field in values]
    try:
        settings = load_settings(**{**given, **values})
    except SettingsError as error:
        sources = ", ".join(each for each in dict.fromkeys(used) if each != cloud.title)
        raise SettingsError(f"{error}; with {sources or 'the settings'} of {cloud.title}") from None
    if not values and not deployment.predict_path:
        return CloudSettings(settings, deployment, warnings=warnings)
    text = ", ".join(f"{name}={values[name]}" for name in values)
    note = f"{cloud.title} (docs/clouds.md): {text or 'no settings follow from it'}"
    return CloudSettings(settings, deployment, [note], warnings)


def _cloud(own: Settings, environment: Mapping[str, str]) -> Cloud | None:
    """The cloud of the setting, or the one whose variables are set.

    Raises:
        SettingsError: for variables of several clouds.
    """
    if own.cloud != _AUTO:
        return CLOUDS.get(own.cloud)
    found = {
        name: [variable for variable in cloud.variables if environment.get(variable, "").strip()]
        for name, cloud in CLOUDS.items()
    }
    recognized = [name for name, variables in found.items() if variables]
    specific = [name for name in recognized if name != _LEAST_SPECIFIC] or recognized
    if len(specific) > 1:
        texts = " and ".join(f"{found[name][0]} ({CLOUDS[name].title})" for name in specific)
        raise SettingsError(
            f"the variables of several clouds are set: {texts}; choose one with cloud "
            f"({ENV_PREFIX}CLOUD={'|'.join(specific)}|none)"
        )
    return CLOUDS[specific[0]] if specific else None


def check_paths(routes: Iterable[BaseRoute], added: Iterable[BaseRoute], title: str) -> None:
    """Checks that requests to added routes reach them.

    Args:
        routes: all routes of the application, in order.
        added: those to check.
        title: of what they belong to.

    Raises:
        SettingsError: if the service has a path of its own there.
    """
    routes = list(routes)
    for route in added:
        if not isinstance(route, Route):
            continue
        for method in (route.methods or set()) - {"HEAD"}:
            scope = {"type": "http", "path": route.path, "method": method, "root_path": ""}
            reached = next(each for each in routes if each.matches(scope)[0] is Match.FULL)
            if reached is not route:
                raise SettingsError(
                    f"{title} needs {method} {route.path}, but the service has a path of its own "
                    "there; choose another one"
                )
