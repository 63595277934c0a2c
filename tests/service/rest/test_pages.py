"""The page, its files and samples, and the documentation without internet."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from service.core.tiling.grid import MAX_OVERLAP, MAX_SIDE, MIN_SIDE
from service.images.drawing import CLASS_COLOURS
from service.rest import create_app, pages, schemas
from service.settings import load_settings
from tests.service.rest.conftest import MakeImage
from tests.service.rest.standin import StandIn

OWN_FILES = sorted(path for path in pages.STATIC_DIR.iterdir() if path.is_file())


@pytest.mark.parametrize("page", ["/", "/docs"])
async def test_everything_that_a_page_loads_exists(client: httpx.AsyncClient, page: str) -> None:
    response = await client.get(page)
    assert response.headers["content-type"].startswith("text/html")
    wanted = re.findall(r'(?:src|href)="([^"#]+)"', response.text)
    assert len(wanted) >= 4
    for url in wanted:
        assert (await client.get(f"/{url.removeprefix('./')}")).status_code == 200, url


async def test_the_imports_of_modules_exist(client: httpx.AsyncClient) -> None:
    script = (await client.get("/static/page.js")).text
    for name in re.findall(r'from "\./(\w+\.js)"', script):
        response = await client.get(f"/static/{name}")
        assert response.headers["content-type"].startswith("text/javascript")


@pytest.mark.parametrize("path", OWN_FILES, ids=lambda path: path.name)
def test_no_file_names_another_host(path: Path) -> None:
    text = path.read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://", text)


@pytest.mark.parametrize("name", ["index.html", "docs.html"])
def test_pages_have_nothing_inline(name: str) -> None:
    text = (pages.STATIC_DIR / name).read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=", text)
    assert not re.search(r"<script(?![^>]*\ssrc=)", text)


def test_the_page_and_drawn_images_use_the_same_colours() -> None:
    script = (pages.STATIC_DIR / "boxes.js").read_text()
    assert tuple(re.findall(r'"(#[0-9a-f]{6})",', script.partition("];")[0])) == CLASS_COLOURS


async def test_unchanged_files_are_not_sent_again(client: httpx.AsyncClient) -> None:
    first = await client.get("/static/page.css")
    assert first.headers["cache-control"] == "no-cache"
    again = await client.get("/static/page.css", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/samples/no.jpg"])
async def test_nothing_else_is_served(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 404


async def test_samples_are_listed_and_served(
    standin: StandIn, image: MakeImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "two_codes.jpg").write_bytes(image())
    (tmp_path / "samples" / "my-photo.png").write_bytes(image())
    (tmp_path / "samples" / "classes.json").write_text('{"two_codes.jpg": ["qr_code"]}')
    (tmp_path / "samples" / "notes.txt").write_text("not an image")
    monkeypatch.setattr(pages, "STATIC_DIR", tmp_path)
    transport = httpx.ASGITransport(create_app(standin.as_detector(), load_settings()))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        listed = schemas.Samples.model_validate_json((await client.get("/samples")).content)
        assert [item.model_dump() for item in listed.samples] == [
            {"name": "my photo", "url": "samples/my-photo.png", "classes": []},
            {"name": "two codes", "url": "samples/two_codes.jpg", "classes": ["qr_code"]},
        ]
        response = await client.get("/samples/two_codes.jpg")
    assert response.headers["content-type"] == "image/jpeg"
    assert response.content == image()


async def test_no_samples_is_an_empty_list(
    standin: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "STATIC_DIR", tmp_path)
    transport = httpx.ASGITransport(create_app(standin.as_detector(), load_settings()))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        assert (await client.get("/samples")).json() == {"samples": []}
        assert (await client.get("/samples/some.jpg")).status_code == 404


def test_the_sizes_of_tiles_have_the_bounds_of_the_service() -> None:
    text = (pages.STATIC_DIR / "index.html").read_text()
    for name in ("tile-width", "tile-height"):
        [field] = re.findall(rf'<input [^>]*id="{name}"[^>]*>', text)
        assert f'min="{MIN_SIDE}" max="{MAX_SIDE}"' in field
    [overlap] = re.findall(r'<input [^>]*id="overlap"[^>]*>', text)
    assert f'min="0" max="{MAX_OVERLAP}"' in overlap
