from __future__ import annotations

import pytest

from service.observability.proxies import TrustedProxies
from service.settings import SettingsError, load_settings

PROXY, SECOND, CLIENT = "10.0.0.1", "10.0.0.2", "203.0.113.7"


def _client(trusted: str | None, peer: str, **headers: list[str]) -> str:
    values = {name.replace("_", "-"): lines for name, lines in headers.items()}
    return TrustedProxies(trusted).client(peer, lambda name: values.get(name, []))


@pytest.mark.parametrize(
    ("headers", "client"),
    [
        ({"x_forwarded_for": [CLIENT]}, CLIENT),
        ({"x_forwarded_for": [f"6.6.6.6, {CLIENT}"]}, CLIENT),  # the first one was forged
        ({"x_forwarded_for": ["6.6.6.6", CLIENT]}, CLIENT),
        ({"x_forwarded_for": [f"{CLIENT}, {SECOND}"]}, CLIENT),
        ({"x_forwarded_for": [f"{CLIENT}:4711"]}, CLIENT),
        ({"x_forwarded_for": ["[2001:db8::7]:4711"]}, "2001:db8::7"),
        ({"x_forwarded_for": ["::ffff:203.0.113.7"]}, CLIENT),
        ({"x_forwarded_for": [f"{SECOND}, {PROXY}"]}, SECOND),  # a client inside the network
        ({"x_forwarded_for": [f"{CLIENT}, unknown"]}, PROXY),
        ({"x_forwarded_for": [f"{CLIENT}, a\nb, {SECOND}"]}, SECOND),
        ({"x_forwarded_for": [""]}, PROXY),
        ({}, PROXY),
        ({"forwarded": [f"for={CLIENT};proto=https"]}, CLIENT),
        ({"forwarded": [f'proto=https; For="{CLIENT}:4711"']}, CLIENT),
        ({"forwarded": ['for="[2001:db8::7]:4711"']}, "2001:db8::7"),
        ({"forwarded": [f"for=6.6.6.6, for={CLIENT}"]}, CLIENT),
        ({"forwarded": ["for=_hidden"]}, PROXY),
        ({"x_forwarded_for": [CLIENT], "forwarded": ["for=6.6.6.6"]}, CLIENT),
    ],
)
def test_client_address_behind_a_trusted_proxy(headers: dict[str, list[str]], client: str) -> None:
    assert _client("10.0.0.0/8", PROXY, **headers) == client


@pytest.mark.parametrize("trusted", [None, "", "10.0.0.2", "192.168.0.0/16, ::1"])
def test_headers_of_other_peers_are_not_used(trusted: str | None) -> None:
    assert _client(trusted, PROXY, x_forwarded_for=[CLIENT]) == PROXY


def test_a_peer_without_an_address_is_not_trusted() -> None:
    assert not TrustedProxies("0.0.0.0/0").trusts("")
    assert _client("0.0.0.0/0", "", x_forwarded_for=[CLIENT]) == ""


def test_mapped_addresses_match_networks_of_version_4() -> None:
    assert TrustedProxies("10.0.0.0/8").trusts("::ffff:10.0.0.1")


def test_a_long_list_is_cut() -> None:
    hops = ", ".join([CLIENT] + [SECOND] * 100_000)
    assert _client("10.0.0.0/8", PROXY, x_forwarded_for=[hops]) == SECOND


@pytest.mark.parametrize("value", ["localhost", "10.0.0.0/33", "10.0.0.1;10.0.0.2"])
def test_the_setting_takes_addresses_and_networks(value: str) -> None:
    with pytest.raises(SettingsError, match="trusted_proxies"):
        load_settings(trusted_proxies=value)
    assert load_settings(trusted_proxies="10.0.0.1, fd00::/8").trusted_proxies
