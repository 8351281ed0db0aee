"""Requests as people and tools send them: HEAD, path prefixes, and everything that is not an image file."""

import base64
import gzip
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detrkit import Detector
from detrkit.serve.hosts import Access
from detrkit.serve.unreadable import describe_unsupported
from tests.parameters import slow_except
from tests.serve.conftest import Served, serving
from tests.serve.test_server import assert_same_detections, error_of

EXAMPLE = "curl -F image=@photo.jpg http://127.0.0.1:8000/predict"
FTYP = b"\0\0\0\x20ftyp"
HEIC = FTYP + b"heic\0\0\0\0mif1heic" + bytes(200)
VIDEO = FTYP + b"isom\0\0\x02\0isomiso2avc1mp41" + bytes(200)


def encoded(format: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 30)).save(buffer, format)
    return buffer.getvalue()


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("photo.jpg", content)
    return buffer.getvalue()


@pytest.mark.parametrize("path", ["/health", "/metrics", "/", "/page.js", "/page.css", "/icon.svg", "/openapi.json"])
def test_head_is_answered_as_get_without_the_body(served: Served, path: str) -> None:
    head, get = served.client.head(path), served.client.get(path)
    assert head.status_code == get.status_code == 200
    assert head.content == b""
    assert int(head.headers["Content-Length"]) > 0
    for name in ("Content-Type", "Content-Security-Policy", "Cache-Control"):
        assert head.headers[name] == get.headers[name]


def test_head_of_other_paths_has_the_status_of_get(served: Served) -> None:
    assert served.client.head("/predict").status_code == 405
    assert served.client.head("/elsewhere").status_code == 404
    assert served.client.head("/health", headers={"Host": "attacker.example"}).status_code == 400


JSON_BODIES: list[dict[str, Any]] = [
    {"json": {"image": base64_of(encoded())}},
    {"json": {"inputs": f"data:image/jpeg;base64,{base64_of(encoded())}"}},
    {"json": {"instances": [{"b64": base64_of(encoded())}]}},
    {"json": [1, 2, 3]},
    {"content": b'\xef\xbb\xbf\n  {"image": "photo.jpg"}', "headers": {"Content-Type": "text/plain"}},
]


@pytest.mark.parametrize(
    ("options", "status", "found"),
    [
        *[(options, 415, "image: found JSON; send the image file itself") for options in JSON_BODIES],
        ({"content": base64_of(encoded())}, 415, "image: found base64; send the image file itself"),
        ({"content": base64_of(encoded("PNG"))}, 415, "image: found base64"),
        ({"content": base64.encodebytes(encoded("GIF"))}, 415, "image: found base64"),
        ({"content": json.dumps(base64_of(encoded("WEBP")))}, 415, "image: found base64"),
        ({"content": base64.urlsafe_b64encode(encoded("BMP"))}, 415, "image: found base64"),
        ({"content": f"data:image/png;base64,{base64_of(encoded('PNG'))}"}, 415, "image: found a data URL"),
        ({"content": "https://example.com/photo.jpg"}, 415, "image: found an address, which is not fetched; send"),
        ({"content": "s3://bucket/photo.jpg\n"}, 415, "image: found an address"),
        ({"data": {"image": base64_of(encoded())}}, 415, "image: found a form without files; send"),
        ({"data": {"url": "https://example.com/photo.jpg"}}, 415, "image: found a form without files"),
        ({"content": b"<!DOCTYPE html><html></html>"}, 415, "image: found HTML or XML"),
        ({"content": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}, 415, "image: found an SVG drawing; send it as PNG"),
        ({"content": b"%PDF-1.7\n"}, 415, "image: found a PDF"),
        ({"content": zipped(encoded())}, 415, "image: found a ZIP archive; send one image at a time"),
        ({"content": gzip.compress(encoded())}, 415, "image: found gzip"),
        ({"content": HEIC}, 415, "image: found a HEIC photo; save it as JPEG first"),
        (
            {"files": {"image": ("IMG_0001.HEIC", HEIC)}},
            415,
            "IMG_0001.HEIC: found a HEIC photo; save it as JPEG first",
        ),
        ({"files": {"image": ("a.heif", FTYP + b"mif1\0\0\0\0mif1" + bytes(90))}}, 415, "a.heif: found a HEIC photo"),
        ({"files": {"image": ("a.mp4", VIDEO)}}, 415, "a.mp4: found a video; send one frame"),
        ({"files": {"image": ("a.webm", b"\x1aE\xdf\xa3" + bytes(90))}}, 415, "a.webm: found a video"),
        ({"files": {"image": ("a.json", b"{}")}}, 415, "a.json: found JSON"),
        (
            {"content": gzip.compress(encoded()), "headers": {"Content-Encoding": "gzip"}},
            415,
            "the Content-Encoding 'gzip'",
        ),
        (
            {
                "content": b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n\r\n--b--\r\n',
                "headers": {"Content-Type": "application/json"},
            },
            415,
            "image: found a form under another Content-Type; leave that header to the HTTP client",
        ),
        # damaged images are no other kind of content
        ({"content": encoded()[:200], "headers": {"Content-Type": "image/jpeg"}}, 422, "cannot be read as an image"),
        (
            {
                "content": encoded("PNG").replace(b"\n", b"").replace(b"\r", b"").replace(b"\0", b""),
                "headers": {"Content-Type": "application/x-www-form-urlencoded"},
            },
            422,
            "if curl -d sent it, which damages files, use: curl -F",
        ),
        # forms
        ({"files": {"image": (None, "photo.jpg")}}, 400, "only the text field 'image'; send a file (curl: with @)"),
        ({"files": {"picture": (None, base64_of(encoded()))}}, 400, "only the text field 'picture'"),
        ({"data": {"image": "a" * 20_000}, "files": {"a": (None, "b")}}, 400, "exceeded maximum size"),
        ({"files": {"image": ("a.png", b"")}}, 400, "whose file is empty"),
        ({"content": b""}, 400, "whose body is empty"),
        (
            {"content": b"--b--\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
            400,
            "form is empty",
        ),
        ({"files": [("image", encoded()), ("image", encoded())]}, 400, "Too many files"),
        (
            {"files": {"image": encoded()}, "data": {"threshold": "0.7"}},
            400,
            "expected in the address, as in /predict?threshold",
        ),
        (
            {"params": {"treshold": "0.7"}, "content": encoded()},
            400,
            "query: found 'treshold', expected only threshold",
        ),
        ({"params": {"url": "http://127.0.0.1/secret"}}, 400, "query: found 'url', expected only threshold"),
    ],
)
def test_what_is_not_an_image_file_is_answered_with_what_to_send(
    served: Served, options: dict[str, Any], status: int, found: str
) -> None:
    for path in ("/predict", "/explain"):
        response = served.client.post(path, **options)
        assert response.status_code == status, response.text
        assert found in error_of(response)
    assert served.service.in_flight == 0


def test_answers_have_an_example(served: Served) -> None:
    for options in ({}, *JSON_BODIES, {"files": {"image": (None, "a")}}, {"content": base64_of(encoded())}):
        assert EXAMPLE in error_of(served.client.post("/predict", **options))
    assert error_of(served.client.get("/predict")) == f"GET /predict: method not allowed; to send an image: {EXAMPLE}"
    assert served.client.get("/predict").headers["Allow"] == "POST"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "AVIF"])
@pytest.mark.parametrize("field", slow_except(("photo[]",), ["image", "file", "upload", "photo[]"]))
def test_images_are_read_under_any_field_name_and_content_type(
    served: Served, detector: Detector, tmp_path: Path, format: str, field: str
) -> None:
    content = encoded(format)
    path = tmp_path / f"image.{format.lower()}"
    path.write_bytes(content)
    expected = detector.predict(path, 0)
    assert describe_unsupported(content[:512]) is None
    answer = served.client.post("/predict", files={field: (path.name, content, "application/octet-stream")})
    assert_same_detections(answer.json(), expected)
    for content_type in ("application/x-www-form-urlencoded", "application/json", "image/jpeg", "text/plain"):
        answer = served.client.post("/predict", content=content, headers={"Content-Type": content_type})
        assert_same_detections(answer.json(), expected)


@pytest.mark.parametrize("content", [b"", b"a", b"words of a text", b"\xff\xd8\xff\xe0" + bytes(90), b"\0" * 90])
def test_unknown_contents_are_not_named(content: bytes) -> None:
    assert describe_unsupported(content) is None


@pytest.mark.parametrize("prefix", ["/detect", ""], ids=["kept by the proxy", "removed by the proxy"])
def test_server_below_a_path_prefix(detector: Detector, prefix: str) -> None:
    with serving([detector], access=Access(root_path="/detect")) as served:
        get = served.client.get
        assert get(f"{prefix}/health").json()["status"] == "ready"
        page = get(f"{prefix}/")
        assert '<base href="/detect/">' in page.text
        for address in re.findall(r'(?:src|href)="([^"/]+)"', page.text):
            assert get(f"{prefix}/{address}").status_code == 200
        assert "base-uri 'self'" in page.headers["Content-Security-Policy"]
        posted = served.client.post(f"{prefix}/predict", content=encoded())
        assert posted.json()["objects"]
        assert get(f"{prefix}/openapi.json").json()["servers"] == [{"url": "/detect"}]
        assert served.client.head(f"{prefix}/health").status_code == 200
        assert served.client.get(f"{prefix}/detectx").status_code == 404
        assert 'detrkit_requests_total{path="/predict",status="200"} 1.0' in get(f"{prefix}/metrics").text


def test_prefix_without_a_slash_is_redirected(detector: Detector) -> None:
    with serving([detector], access=Access(root_path="/a/detect")) as served:
        response = served.client.get("/a/detect", follow_redirects=False)
        assert (response.status_code, response.headers["Location"]) == (308, "/a/detect/")
        assert served.client.get("/a/detect/").status_code == 200
        assert served.client.get("/a").status_code == 404


def test_no_address_of_the_server_is_told(served: Served) -> None:
    """Behind a proxy, an absolute redirect to Host would lead to the wrong address."""
    response = served.client.post("/predict/", content=encoded(), follow_redirects=False)
    assert response.status_code == 404
    assert "to send an image" in error_of(response)
    assert "<base" not in served.client.get("/").text
