"""The server behind nginx and Caddy, configured as docs/guides/serving.md says, with TLS and a path prefix, in Chromium."""

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from detrkit import Detector
from detrkit.serve.config import ServeConfig
from detrkit.serve.hosts import Access, AllowedHosts, parse_forwarded_allow_ips
from tests.serve.conftest import Served, serving
from tests.serve.test_page import BROWSERS, Visit
from tests.serve.test_server import assert_same_detections
from tests.waiting import PATIENCE, wait_until

DOCKERFILE = Path(__file__).parents[2] / "Dockerfile"
GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "serving.md"
SITE = "detect.example.com"
PREFIX = "/detect"
SECTIONS = {"nginx": "nginx", "caddy": "Caddyfile"}
NGINX = """
worker_processes 1;
daemon off;
error_log {folder}/error.log;
pid {folder}/nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {server}
}}
"""
# how else nginx is often set up
REPLACED_HOST = (r"proxy_set_header .*;\n", "")
HOST_WITHOUT_PORT = (r"Host \$http_host", "Host $host")
PREFIX_KEPT = (r"(proxy_pass http://[^/;]+)/;", r"\1;")
CADDY_REMOVES_PREFIX = (r"handle (/detect/\*)", r"handle_path \1")


def config_in_guide(language: str) -> str:
    """Return the code block of a language in the guide."""
    return re.search(rf"```{language}\n(.*?)```", GUIDE.read_text(), re.DOTALL)[1]  # type: ignore[index]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("certificate")
    chain, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={SITE}",
         "-addext", f"subjectAltName=DNS:{SITE}", "-keyout", key, "-out", chain],
        check=True, capture_output=True,
    )  # fmt: skip
    return chain, key


class Proxied:
    """A server behind a running proxy."""

    def __init__(self, served: Served, port: int) -> None:
        self.served = served
        self.port = port
        self.origin = f"https://{SITE}:{port}"
        self.address = f"https://127.0.0.1:{port}{PREFIX}"
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.client = httpx.Client(verify=context, headers={"Host": f"{SITE}:{port}"}, timeout=PATIENCE)

    def post(self, path: str, content: bytes, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(
            f"{self.address}{path}", content=content, headers=named, extensions={"sni_hostname": SITE}
        )

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.client.get(f"{self.address}{path}", headers=headers, extensions={"sni_hostname": SITE})


@contextmanager
def proxied(
    proxy: str,
    detector: Detector,
    certificate: tuple[Path, Path],
    folder: Path,
    changes: tuple[tuple[str, str], ...] = (),
    access: Access | None = None,
) -> Iterator[Proxied]:
    """Run a server behind a proxy that is configured as the guide says, with some changes."""
    executable = shutil.which(proxy, path=f"{os.environ['PATH']}:/usr/sbin")
    if executable is None:
        pytest.skip(f"needs {proxy} (Debian's package {proxy})")
    access = access or Access(AllowedHosts((SITE,)), parse_forwarded_allow_ips("127.0.0.1"), PREFIX)
    with ExitStack() as stack:
        served = stack.enter_context(serving([detector], ServeConfig(threshold=0.0), access))
        port = free_port()
        config = config_in_guide(SECTIONS[proxy])
        for pattern, replacement in changes:
            config, count = re.subn(pattern, replacement, config)
            assert count, (pattern, config)
        command = _nginx_command if proxy == "nginx" else _caddy_command
        words = command(config.replace("http://127.0.0.1:8000", served.url), port, certificate, folder)
        environment = {**os.environ, "HOME": str(folder)}
        process = subprocess.Popen(
            [executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
        )
        stack.callback(process.communicate)
        stack.callback(process.terminate)
        _wait_for(port, process)
        one = Proxied(served, port)
        stack.callback(one.client.close)
        yield one


def _nginx_command(server: str, port: int, certificate: tuple[Path, Path], folder: Path) -> list[str]:
    server = re.sub(r"listen .*;", f"listen 127.0.0.1:{port} ssl;", server)
    server = re.sub(r"(ssl_certificate) .*;", rf"\1 {certificate[0]};", server)
    server = re.sub(r"(ssl_certificate_key) .*;", rf"\1 {certificate[1]};", server)
    user = "user root;" if os.geteuid() == 0 else ""  # the workers' default user cannot enter the folder
    (folder / "nginx.conf").write_text(user + NGINX.format(folder=folder, server=server))
    return ["-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]


def _caddy_command(site: str, port: int, certificate: tuple[Path, Path], folder: Path) -> list[str]:
    options = "{\n    admin off\n    auto_https disable_redirects\n    skip_install_trust\n}\n"
    tls = f"    tls {certificate[0]} {certificate[1]}\n"
    site = site.replace(f"{SITE} {{\n", f"{SITE}:{port} {{\n    bind 127.0.0.1\n{tls}")
    (folder / "Caddyfile").write_text(options + site)
    return ["run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    def listens() -> bool:
        if process.poll() is not None:
            raise AssertionError((process.stdout.read() if process.stdout else b"").decode())
        try:
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
        except OSError:
            return False
        return True

    wait_until(listens)


SETUPS = [
    pytest.param("nginx", (), id="nginx"),
    pytest.param("nginx", (PREFIX_KEPT,), id="nginx keeps the prefix"),
    pytest.param("nginx", (REPLACED_HOST,), id="nginx replaces Host"),
    pytest.param("nginx", (HOST_WITHOUT_PORT,), id="nginx drops the port"),
    pytest.param("caddy", (), id="caddy"),
    pytest.param("caddy", (CADDY_REMOVES_PREFIX,), id="caddy removes the prefix"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("proxy", "changes"), SETUPS)
def test_page_and_json_work_behind_a_proxy_and_foreign_origins_are_refused(
    proxy: str,
    changes: tuple[tuple[str, str], ...],
    detector: Detector,
    drawn: list[Path],
    certificate: tuple[Path, Path],
    tmp_path: Path,
    tls_browser: Any,
) -> None:
    with proxied(proxy, detector, certificate, tmp_path, changes) as one:
        content = drawn[0].read_bytes()
        expected = detector.predict(drawn[0], 0)
        # programs
        assert_same_detections(one.post("/predict", content).json(), expected)
        assert one.get("/health").json()["status"] == "ready"
        assert one.client.head(f"{one.address}/health", extensions={"sni_hostname": SITE}).status_code == 200
        large = one.post("/predict", bytes(3_000_000))
        assert (large.status_code, list(large.json())) == (422, ["error"]), "nginx takes 1 MB by default"
        # other sites
        for headers in (
            {"Origin": "https://attacker.example"},
            {"Origin": "null"},
            {"Origin": f"https://{SITE}:{one.port + 1}"},
            {"Origin": "https://attacker.example", "X_Forwarded_Host": "attacker.example"},
            {"Origin": one.origin, "Sec_Fetch_Site": "cross-site"},
        ):
            response = one.post("/predict", content, **headers)
            assert response.status_code in (400, 403), headers
            assert list(response.json()) == ["error"]
        # the page
        visit = Visit(tls_browser, f"{one.origin}{PREFIX}/", ignore_https_errors=True)
        visit.send(drawn[0])
        assert visit.wait_for("done") == f"{drawn[0].name}: 9 objects."
        assert visit.messages == []
        assert all(url.startswith((f"{one.origin}{PREFIX}/", "data:", "blob:")) for url in visit.fetched), visit.fetched
        answer = visit.page.evaluate(
            "async (bytes) => { const a = await fetch('predict', {method: 'POST', body: new Uint8Array(bytes)});"
            " return [a.status, await a.json()] }",
            list(content),
        )
        assert answer[0] == 200
        assert_same_detections(answer[1], expected)
        visit.context.close()


@pytest.mark.slow
def test_page_of_another_origin_cannot_use_a_proxied_server(
    detector: Detector, drawn: list[Path], certificate: tuple[Path, Path], tmp_path: Path, tls_browser: Any
) -> None:
    """The browser sends the request; the server refuses it, and the page cannot read the answer."""
    with proxied("nginx", detector, certificate, tmp_path) as one:
        context = tls_browser.new_context(ignore_https_errors=True)
        context.route("https://attacker.example/**", lambda route: route.fulfill(body="<p>", content_type="text/html"))
        page = context.new_page()
        page.goto("https://attacker.example/")
        script = """async ([url, bytes]) => {
            const answers = [];
            for (const options of [{mode: "no-cors"}, {mode: "cors"}, {mode: "cors", headers: {"X-Forwarded-Host": "a"}}]) {
                try { answers.push((await fetch(url, {method: "POST", body: new Uint8Array(bytes), ...options})).type) }
                catch { answers.push("refused") }
            }
            return answers }"""
        answers = page.evaluate(script, [f"{one.origin}{PREFIX}/predict", list(drawn[0].read_bytes())])
        # the browser does not even send the third one; Cross-Origin-Resource-Policy hides the answer to the first one
        assert answers == ["refused", "refused", "refused"]
        counted = one.get("/metrics").text
        assert 'path="/predict",status="403"} 2.0' in counted
        assert 'path="/predict",status="200"' not in counted
        context.close()


@pytest.mark.slow
def test_server_without_the_allowed_host_says_what_to_do(
    detector: Detector, drawn: list[Path], certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    with proxied("nginx", detector, certificate, tmp_path, access=Access()) as one:
        response = one.post("/predict", drawn[0].read_bytes())
    assert response.status_code == 400
    assert json.loads(response.text)["error"].endswith(f"start it with allowed_hosts='{SITE}'")


@pytest.fixture(scope="module")
def tls_browser() -> Iterator[Any]:
    """Chromium in which the name of the site leads to a port of this machine."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    executable = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if executable is None:
        pytest.skip("needs Chromium on the PATH")
    # without the second one, the browser itself would keep pages of other machines from this one
    arguments = [f"--host-resolver-rules=MAP {SITE} 127.0.0.1", "--disable-features=LocalNetworkAccessChecks"]
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", *arguments])
        yield launched
        launched.close()


def test_health_check_of_the_container_reports_the_state(detector: Detector) -> None:
    code = re.search(r'"-c", \\\n +"(.*)"\]', DOCKERFILE.read_text())[1]  # type: ignore[index]
    with serving([detector], access=Access(AllowedHosts((SITE,)))) as served:
        check = [sys.executable, "-c", code.replace("8000", served.url.rsplit(":", 1)[1])]
        assert subprocess.run(check, check=False).returncode == 0
        served.service.batcher.close()
        assert subprocess.run(check, check=False).returncode == 1
    assert subprocess.run(check, check=False, capture_output=True).returncode == 1
