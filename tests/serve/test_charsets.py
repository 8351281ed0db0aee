"""Forms and headers in encodings that are none, or whose codecs raise errors of unusual kinds."""

import pytest

from tests.serve.conftest import Served
from tests.serve.test_requests import encoded

ODD = ["punycode", "idna", "utf-7", "utf-16", "utf-32", "rot13", "base64", "hex", "zlib", "raw_unicode_escape"]
ODD += ["unicode_escape", "undefined", "mbcs", "nothing", "", "a" * 300, "../x", "\xff", "utf-8-sig", "oem", '"; x="']


def form(charset: str, name: bytes = b"image", extra: bytes = b"") -> tuple[bytes, dict[str, bytes]]:
    head = (
        b'--x\r\nContent-Disposition: form-data; name="' + name + b'"; filename="\xe9-\x80.png"\r\n' + extra + b"\r\n"
    )
    content = head + encoded("PNG") + b"\r\n--x--\r\n"
    return content, {"Content-Type": b"multipart/form-data; boundary=x; charset=" + charset.encode("latin-1")}


@pytest.mark.parametrize("charset", ODD)
def test_odd_charset_of_a_form_is_answered_with_a_sentence(served: Served, charset: str) -> None:
    content, headers = form(charset, b"im\x80age-\xff")
    answer = served.client.post("/predict", content=content, headers=headers)
    assert answer.status_code == 415, answer.text
    assert "charset" in answer.json()["error"]


@pytest.mark.parametrize("charset", ["utf-8", "UTF8", '"utf-8"', "iso-8859-1", "windows-1252", "shift_jis", "gbk"])
def test_charsets_of_browsers_are_accepted(served: Served, charset: str) -> None:
    content, headers = form(charset)
    assert served.client.post("/predict", content=content, headers=headers).status_code == 200


@pytest.mark.parametrize("charset", ["punycode", "binary", "rot13"])
def test_charset_of_anything_else_is_ignored(served: Served, charset: str) -> None:
    for kind in ("image/png", "text/plain", "application/x-www-form-urlencoded", "application/octet-stream"):
        headers = {"Content-Type": f"{kind}; charset={charset}"}
        assert served.client.post("/predict", content=encoded("PNG"), headers=headers).status_code == 200
    part = b"Content-Type: image/png; charset=" + charset.encode() + b"\r\n"
    content, headers_of_form = form("utf-8", extra=part)
    assert served.client.post("/predict", content=content, headers=headers_of_form).status_code == 200


def test_encoded_file_names_are_no_error(served: Served) -> None:
    for name in (
        b"filename*=punycode''a%80",
        b"filename*=utf-16''%ff",
        b"filename*0*=x''%",
        b'filename="=?punycode?b?gA==?="',
    ):
        content, headers = form("utf-8")
        content = content.replace(b'filename="\xe9-\x80.png"', name)
        answer = served.client.post("/predict", content=content, headers=headers)
        assert answer.status_code in (200, 400), (name, answer.text)
