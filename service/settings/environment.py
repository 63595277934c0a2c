"""Environment variables as settings: which are read, and which are ignored and why.

Kubernetes describes each Service of a namespace to every pod by variables: of a Service named
lite-detr-http they are LITE_DETR_HTTP_PORT=tcp://10.0.0.1:8000 and others of that prefix.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import EnvSettingsSource

ENV_PREFIX = "LITE_DETR_"

_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://", re.IGNORECASE)
_SERVICE_VARIABLE = re.compile(
    rf"{ENV_PREFIX}(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_LIKENESS = 0.6  # of a name to the setting that it probably means, 0..1


class Environment(EnvSettingsSource):
    """The environment, without addresses of Kubernetes Services where a port is expected."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Returns the value of a field; None where it is not set."""
        value, key, is_complex = super().get_field_value(field, field_name)
        if field_name.endswith("_port") and _SERVICE_ADDRESS.match(str(value)):
            value = None
        return value, key, is_complex


def service_addresses(environment: Mapping[str, str], known: Collection[str]) -> list[str]:
    """Explains which variables of settings are not used: addresses of Kubernetes Services.

    Args:
        environment: all variables.
        known: names of the settings that are read.

    Returns:
        One line for each, sorted by name.
    """
    return [
        f"{name} is ignored: its value {environment[name]} is the address of a Kubernetes Service"
        for name in sorted(known)
        if name.endswith("_PORT") and _SERVICE_ADDRESS.match(environment.get(name, ""))
    ]


def unknown_variables(
    environment: Mapping[str, str],
    known: Collection[str],
    *,
    others: Collection[str] = (),
    prefix: str = ENV_PREFIX,
) -> list[str]:
    """Explains which variables are not used although they have the names of settings.

    Args:
        environment: all variables.
        known: names of the settings that are read.
        others: names and, if they end with an underscore, prefixes of variables for others.
        prefix: of the variables to look at.

    Returns:
        One line for each, sorted by name; none for those of Kubernetes Services.
    """
    return [
        f"{name} is ignored: there is no such setting{_suggestion(name, known)}"
        for name, value in sorted(environment.items())
        if name.startswith(prefix)
        and name not in known
        and not any(name.startswith(o) if o.endswith("_") else name == o for o in others)
        and not _SERVICE_VARIABLE.fullmatch(name)
        and not _SERVICE_ADDRESS.match(value)
    ]


def _suggestion(name: str, known: Collection[str]) -> str:
    names = [each.removeprefix(ENV_PREFIX) for each in known]
    wanted = name.removeprefix(ENV_PREFIX)
    nearest = difflib.get_close_matches(wanted, names, n=1, cutoff=_LIKENESS)
    return f"; did you mean {ENV_PREFIX}{nearest[0]}?" if nearest else ""
