"""Forms as bytes: whole, in small chunks, and malformed."""

from __future__ import annotations

from encodings.aliases import aliases

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import InvalidOptions
from service.rest.multipart import Form, FormReader
from service.transport.http_request import RequestRefused
from tests.service.rest.conftest import MakeImage

TYPE = "multipart/form-data; boundary=cut"


def part(headers: str, body: bytes) -> bytes:
    return b"--cut\r\n" + headers.encode() + b"\r\n\r\n" + body + b"\r\n"


def file_part(name: str, body: bytes) -> bytes:
    return part(f'Content-Disposition: form-data; name="f"; filename="{name}"', body)


END = b"--cut--\r\n"


def parse(body: bytes, step: int = 1 << 20, content_type: str = TYPE) -> Form:
    reader = FormReader(content_type, max_files=3)
    for start in range(0, len(body), step):
        reader.take(body[start : start + step])
    return reader.form()


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
async def test_a_form_in_small_chunks_is_the_same_form(step: int) -> None:
    content = bytes(range(256)) * 3 + b"\r\n--cu"
    threshold = part('Content-Disposition: form-data; name="threshold"', b"0.5")
    body = file_part("a.jpg", content) + threshold + file_part("ü.jpg", b"") + END
    form = parse(body, step)
    assert [(file.name, file.data) for file in form.files] == [("a.jpg", content), ("ü.jpg", b"")]
    assert form.fields == (("threshold", "0.5"),)


async def test_a_part_with_the_type_of_an_image_is_a_file() -> None:
    headers = 'Content-Disposition: form-data; name="image"\r\nContent-Type: image/jpeg'
    form = parse(part(headers, b"abc") + END)
    assert [(file.name, file.data) for file in form.files] == [("image", b"abc")]


@pytest.mark.parametrize(
    ("parameter", "name"),
    [
        ("filename*=utf-8''caf%C3%A9.jpg", "café.jpg"),
        ("FileName*=UTF-8'en'%e2%82%ac%20rates.png", "€ rates.png"),
        ("filename*=iso-8859-1''caf%E9.jpg", "café.jpg"),
        ('filename*0="caf"; filename*1="e.jpg"', "cafe.jpg"),
        ("filename*=nonsense''a.jpg", "a.jpg"),
        ("filename*=a.jpg", "a.jpg"),
        ("filename=\"plain.jpg\"; filename*=utf-8''other.jpg", "plain.jpg"),
        ('filename*0="caf\u00e9"; filename*1=".jpg"', "caf\u00e9.jpg"),
        ("filename*0*=utf-8''caf%C3; filename*1*=%A9.jpg", "caf\u00e9.jpg"),
        ("filename*=''caf%C3%A9.jpg", "caf\u00e9.jpg"),
        ("filename*=utf-8''%ED%A0%80.jpg", "\ufffd\ufffd\ufffd.jpg"),
        # Python has codecs of these names: some raise exceptions, some return lone surrogates.
        ("filename*=undefined''a.jpg", "a.jpg"),
        ("filename*0*=undefined''a.jpg", "a.jpg"),
        ("filename*=idna''a.jpg", "a.jpg"),
        ("filename*=hex''a.jpg", "a.jpg"),
        ("filename*=utf\x008''a.jpg", "a.jpg"),
        ("filename*=\u00e4''a.jpg", "a.jpg"),
        ("filename*=punycode''%ff.jpg", "\ufffd.jpg"),
        ("filename*=utf-7''+2AA-.jpg", "+2AA-.jpg"),
        ("filename*=unicode_escape''%5Cud800.jpg", "\\ud800.jpg"),
    ],
)
async def test_an_encoded_file_name_makes_a_part_a_file(parameter: str, name: str) -> None:
    form = parse(part(f'Content-Disposition: form-data; name="f"; {parameter}', b"abc") + END)
    assert [(file.name, file.data) for file in form.files] == [(name, b"abc")]
    assert not form.fields


@pytest.mark.parametrize("parameter", ['filename=""', "filename*=utf-8''"])
@pytest.mark.parametrize("content_type", ["", "\r\nContent-Type: application/octet-stream"])
async def test_a_file_input_without_a_file_is_left_out(parameter: str, content_type: str) -> None:
    empty = f'Content-Disposition: form-data; name="f"; {parameter}{content_type}'
    form = parse(part(empty, b"") * 10 + file_part("a.jpg", b"abc") * 3 + part(empty, b"") + END)
    assert [file.name for file in form.files] == ["a.jpg"] * 3
    nameless = parse(part(empty, b"abc") + END, step=1)
    assert [(file.name, file.data) for file in nameless.files] == [("f", b"abc")]
    with pytest.raises(InvalidOptions, match="more than the 3 files"):
        parse(part(empty, b"abc") * 4 + END, step=1)
    with pytest.raises(InvalidOptions, match="more than 67 parts"):
        parse(part(empty, b"") * 70 + END)


async def test_a_named_file_may_be_empty() -> None:
    assert [file.data for file in parse(file_part("a.jpg", b"") + END).files] == [b""]


@pytest.mark.parametrize("blank", [b"", b" ", b"\r\n\t"])
async def test_blank_fields_are_left_out(blank: bytes) -> None:
    fields = [(b"threshold", blank), (b"labels", b" qr_code "), (b"comment", blank)]
    headers = 'Content-Disposition: form-data; name="{}"'
    parts = [part(headers.format(name.decode()), value) for name, value in fields]
    assert parse(b"".join(parts) + END).fields == (("labels", "qr_code"),)


async def test_a_browsers_form_with_all_fields_left_blank_works(
    client: httpx.AsyncClient, image: MakeImage
) -> None:
    names = ("threshold", "max_detections", "labels", "format")
    fields = [part(f'Content-Disposition: form-data; name="{name}"', b"") for name in names]
    empty = part('Content-Disposition: form-data; name="second"; filename=""', b"")
    body = b"".join(fields) + empty + file_part("a.jpg", image()) + END
    response = await client.post("/detect", content=body, headers={"Content-Type": TYPE})
    assert response.status_code == 200
    assert len(response.json()["detections"]) == 2
    nothing = await client.post("/detect", content=empty + END, headers={"Content-Type": TYPE})
    assert nothing.status_code == 400
    assert "no file" in nothing.json()["detail"]


@pytest.mark.parametrize(
    ("content_type", "is_file"),
    [
        ("image/jpeg", True),
        ("binary/octet-stream", True),
        ("application/x-binary; a=b", True),
        ("Application/Octet-Stream", True),
        ("text/plain", False),
        ("application/json", False),
        ("application/x-www-form-urlencoded", False),
    ],
)
async def test_a_part_without_a_name_is_a_file_by_its_type(
    content_type: str, is_file: bool
) -> None:
    headers = f'Content-Disposition: form-data; name="f"\r\nContent-Type: {content_type}'
    form = parse(part(headers, b"abc") + END)
    assert (len(form.files), len(form.fields)) == (int(is_file), int(not is_file))


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", TYPE),
        (b"nothing of a form", TYPE),
        (file_part("a", b"abc"), TYPE),
        (file_part("a", b"abc")[:-20], TYPE),
        (b"--cut\r\nno colon\r\n\r\nabc\r\n" + END, TYPE),
        (file_part("a", b"abc") + END, "multipart/form-data"),
        (file_part("a", b"abc") + END, "multipart/form-data; boundary=" + "x" * 300),
        (part("X-Long: " + "y" * 9000, b"abc") + END, TYPE),
        (part('Content-Disposition: form-data; name="a"', b"\xff\xfe") + END, TYPE),
    ],
)
async def test_a_malformed_form_is_refused(body: bytes, content_type: str) -> None:
    with pytest.raises(RequestRefused, match="malformed") as caught:
        parse(body, content_type=content_type)
    assert caught.value.status == 400


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(
    "preamble",
    [
        b"This is a multi-part message in MIME format.\r\n",
        b"\r\n",
        b"--cu\r\n--cux --cut\r\n",
        b"\r\n--\r\n" * 10_000,
    ],
)
async def test_a_preamble_is_ignored(preamble: bytes, step: int) -> None:
    body = preamble + file_part("a.jpg", b"--cut preamble") + END
    form = parse(body, step)
    assert [(file.name, file.data) for file in form.files] == [("a.jpg", b"--cut preamble")]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"nothing of a form", "does not have the boundary that its Content-Type names"),
        (b"a --cut\r\n", "does not have the boundary"),
        (b"--cutter\r\n", "a boundary is not followed by a line end"),
        (b"--cut\nContent-Disposition: form-data\r\n", "a boundary is not followed by a line end"),
        (part("a b: c", b"abc") + END, "a character that is not allowed"),
        (part(": c", b"abc") + END, "a header of a part has no name"),
        (part("a: c\r x", b"abc") + END, "does not end with CRLF"),
        (b"--cut\r\na: b\r\n\rx", "do not end with an empty line"),
        (part("X-Long: " + "y" * 9000, b"abc") + END, "a header of a part is too long"),
        (part("\r\n".join(["X: y"] * 100), b"abc") + END, "too many headers"),
        (part('Content-Disposition: form-data; name="a"', b"\xff") + END, "is not UTF-8 text"),
        (
            part("Content-Disposition: form-data; filename*=a; filename*0=b", b"abc") + END,
            "the file name of a part is in pieces without an order",
        ),
    ],
)
async def test_what_is_malformed_is_said_in_plain_words_and_not_logged(
    body: bytes, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RequestRefused) as caught:
        parse(body)
    assert words in caught.value.detail
    assert not caplog.records


async def test_too_many_files_are_refused() -> None:
    with pytest.raises(InvalidOptions, match="more than the 3 files"):
        parse(file_part("a", b"abc") * 4 + END)


async def test_too_many_fields_are_refused() -> None:
    with pytest.raises(InvalidOptions, match="more than 32 fields"):
        parse(part('Content-Disposition: form-data; name="a"', b"1") * 33 + END)


async def test_the_error_for_a_long_field_suggests_a_file_name() -> None:
    with pytest.raises(InvalidOptions, match="give it a file name"):
        parse(part('Content-Disposition: form-data; name="a"', b"x" * 5000) + END)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(1, 50))
async def test_any_body_is_a_form_or_refused(body: bytes, step: int) -> None:
    for candidate in (body, b"--cut\r\n" + body, file_part("a", body) + END):
        try:
            form = parse(candidate, step)
        except (RequestRefused, InvalidOptions):
            continue
        assert all(file.name is not None for file in form.files)


def _charsets() -> list[str]:
    return sorted({*aliases, *aliases.values(), "idna", "raw_unicode_escape", "undefined", "no"})


@pytest.mark.parametrize("parameter", ["filename*", "filename*0*"])
def test_a_file_name_in_any_character_set_can_be_sent_back(parameter: str) -> None:
    for charset in _charsets():
        for text in ("x", "%ff", "+2AA-", "%5Cud800", "%00", "%1b$B%21"):
            headers = f"Content-Disposition: form-data; name=f; {parameter}={charset}''{text}"
            (file,) = parse(part(headers, b"abc") + END).files
            assert file.name.encode("utf-8"), (charset, text)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["filename", "filename*", "filename*0", "filename*1*", "name*", "*"]),
            st.text("ab'%eE9;=\"\\*\u00fc ", max_size=12),
        ),
        max_size=4,
    )
)
def test_any_parameters_of_a_part_are_read_or_refused(parameters: list[tuple[str, str]]) -> None:
    written = "".join(f"; {name}={text}" for name, text in parameters)
    try:
        form = parse(part(f"Content-Disposition: form-data{written}", b"abc") + END)
    except RequestRefused as error:
        assert error.status == 400
        return
    for name in [file.name for file in form.files] + [name for name, _ in form.fields]:
        name.encode("utf-8")


async def test_files_whose_names_are_in_odd_character_sets_have_results(
    client: httpx.AsyncClient, image: MakeImage
) -> None:
    charsets = ("undefined", "utf-7")
    parts = [
        part(f"Content-Disposition: form-data; name=f; filename*={charset}''+2AA-", image())
        for charset in charsets
    ]
    response = await client.post(
        "/detect", content=b"".join(parts) + END, headers={"Content-Type": TYPE}
    )
    assert response.status_code == 200, response.text


async def test_a_form_without_a_file_gets_400(client: httpx.AsyncClient) -> None:
    response = await client.post(
        "/detect",
        content=part('Content-Disposition: form-data; name="threshold"', b"0.5") + END,
        headers={"Content-Type": TYPE},
    )
    assert response.status_code == 400
    assert "no file" in response.json()["detail"]


async def test_an_unknown_field_gets_422(client: httpx.AsyncClient, image: MakeImage) -> None:
    response = await client.post("/detect", files={"f": ("a.jpg", image())}, data={"foo": "1"})
    assert response.status_code == 422
    assert "'foo'" in response.json()["detail"]


async def test_a_malformed_form_gets_400(client: httpx.AsyncClient) -> None:
    response = await client.post("/detect", content=b"abc", headers={"Content-Type": TYPE})
    assert response.status_code == 400
    assert response.json()["code"] == "malformed_form"


async def test_a_fourth_file_gets_422(client: httpx.AsyncClient, image: MakeImage) -> None:
    response = await client.post("/detect", files=[("f", ("a.jpg", image()))] * 4)
    assert response.status_code == 422
