"""The service below a path of a reverse proxy, which removes the path from requests or not."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest

from service.rest import create_app
from service.settings import SettingsError, load_settings
from tests.service.rest.conftest import MakeImage
from tests.service.rest.standin import StandIn

PROXY = "10.0.0.9"


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("href", "src") and value]


def _client(standin: StandIn, peer: str = PROXY, **settings: Any) -> httpx.AsyncClient:
    app = create_app(standin.as_detector(), load_settings(**settings))
    transport = httpx.ASGITransport(app, client=(peer, 5000))
    return httpx.AsyncClient(transport=transport, base_url="http://proxy")


@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        ({"root_path": "/vision"}, {}),
        ({"root_path": "vision/"}, {}),
        ({"trusted_proxies": "10.0.0.0/8"}, {"X-Forwarded-Prefix": "/vision"}),
        ({"trusted_proxies": "10.0.0.0/8"}, {"X-Forwarded-Prefix": "/vision/"}),
        ({"trusted_proxies": PROXY, "root_path": "/other"}, {"X-Forwarded-Prefix": "/vision"}),
    ],
)
@pytest.mark.parametrize("removes", [True, False])
async def test_page_samples_docs_and_api_work_below_a_prefix(
    standin: StandIn,
    image: MakeImage,
    settings: dict[str, str],
    headers: dict[str, str],
    removes: bool,
) -> None:
    async with _client(standin, **settings) as client:

        async def get(url: str) -> httpx.Response:
            """What the proxy responds for a path below the prefix."""
            assert url.startswith("http://proxy/vision/"), url
            path = url.removeprefix("http://proxy/vision" if removes else "http://proxy")
            return await client.get(path, headers=headers)

        start = "http://proxy/vision/"
        for page in (start, urljoin(start, "docs")):
            response = await get(page)
            assert response.status_code == 200
            links = Links()
            links.feed(response.text)
            assert links.found
            for link in links.found:
                assert (await get(urljoin(page, link))).status_code == 200, link
        (sample, *_) = (await get(urljoin(start, "samples"))).json()["samples"] or [None]
        if sample is not None:
            assert (await get(urljoin(start, sample["url"]))).status_code == 200
        url = urljoin(start, "openapi.json")
        (server,) = (await get(url)).json()["servers"]
        assert urljoin(url, server["url"]) == start
        path = "/detect" if removes else "/vision/detect"
        assert (await client.post(path, content=image(), headers=headers)).status_code == 200


async def test_paths_without_the_prefix_still_work(standin: StandIn) -> None:
    async with _client(standin, root_path="/a/b") as client:
        for path in ("/healthz", "/a/b/healthz"):
            assert (await client.get(path)).status_code == 200
        for path in ("/a/healthz", "/a/bc/healthz", "/a/b/a/b/healthz", "/A/b/healthz"):
            assert (await client.get(path)).status_code == 404


async def test_the_prefix_without_a_slash_is_redirected(standin: StandIn) -> None:
    async with _client(standin, root_path="/a/b") as client:
        response = await client.get("/a/b?x=1")
        assert response.status_code == 307
        assert urljoin("http://proxy/outer/a/b", response.headers["location"]) == (
            "http://proxy/outer/a/b/?x=1"
        )


async def test_several_proxies_add_their_prefixes(standin: StandIn) -> None:
    async with _client(standin, trusted_proxies=PROXY) as client:
        headers = {"X-Forwarded-Prefix": "/outer, /vision"}
        for path in ("/outer/vision/healthz", "/vision/healthz", "/healthz"):
            assert (await client.get(path, headers=headers)).status_code == 200


async def test_the_prefix_of_an_unknown_client_is_ignored(standin: StandIn) -> None:
    async with _client(standin, peer="192.0.2.1", trusted_proxies=PROXY) as client:
        response = await client.get("/vision/healthz", headers={"X-Forwarded-Prefix": "/vision"})
        assert response.status_code == 404


@pytest.mark.parametrize("prefix", ["/..", "/a b", "//", "", "https://x", "/v1", "/%2e"])
async def test_a_forwarded_prefix_that_cannot_be_one_is_ignored(
    standin: StandIn, prefix: str
) -> None:
    async with _client(standin, trusted_proxies=PROXY) as client:
        response = await client.get("/v1/models", headers={"X-Forwarded-Prefix": prefix})
        assert response.status_code == 200


@pytest.mark.parametrize("root_path", ["/v1", "/detect", "/samples", "/static/"])
def test_a_root_path_with_paths_of_the_service_is_refused(standin: StandIn, root_path: str) -> None:
    with pytest.raises(SettingsError, match="root_path"):
        create_app(standin.as_detector(), load_settings(root_path=root_path))
