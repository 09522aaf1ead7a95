"""Who may come into the app: real requests and handshakes to a real server, with and without the token."""

import http.client
import json
import os
import re
import socket
import stat
import subprocess
import sys
from urllib.parse import urlsplit

import psutil
import pytest
from browser import driver
from streamlit.testing.v1 import AppTest

from core.access import Access, new_token, open_address, pasted_token, shared
from core.errors import BasiscopeError
from core.reading import Endpoint

HTML = {"Accept": "text/html"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
UPLOAD = "/_stcore/upload_file/session/file"
PATHS = [
    "/",
    "/directions?run=x",
    "/basis",
    "/_stcore/health/",
    "/_stcore/script-health-check",
    "/_stcore/host-config",
    "/_stcore/metrics",
    "/_stcore/bidi-components/x/y.js",
    "/_stcore/agent/openapi.json",
    "/component/x/y.js",
    "/media/x.png",
    "/app/static/x.png",
    "/static/js/index.js",
    "/auth/login",
    "/no/such/page",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("empty")


@pytest.fixture(scope="module")
def address(folder):
    with driver.serve(folder, options=["--max-jobs", "0"]) as url:
        yield url


@pytest.fixture(scope="module")
def cookie(address):
    """The header of a browser that was opened with the address that is printed."""
    answer, _ = ask(address, driver.with_token("/"), headers=HTML)
    return {"Cookie": answer.headers["set-cookie"].split(";")[0]}


def ask(address, path, method="GET", body=None, headers=None):
    """(answer, its body) of one request, with no header that is not given but Host."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    read = b"" if answer.status == 101 else answer.read()
    connection.close()
    return answer, read


def handshake(address, headers, path="/_stcore/stream"):
    """The status of a socket's handshake: 101 where it is accepted."""
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    return ask(address, path, headers=upgrade | headers)[0].status


# --- http -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_given_without_the_token(address, path):
    answer, body = ask(address, path)
    assert answer.status == 403
    assert body == b"This app opens with the address that `basiscope app` printed."


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST", "OPTIONS"])
def test_nothing_is_sent_or_deleted_without_the_token(address, method):
    own = {"Origin": address}
    assert ask(address, UPLOAD, method, b"x", own)[0].status == 403


def test_the_health_is_told_to_everybody(address):
    assert ask(address, "/_stcore/health")[1] == b"ok"


@pytest.mark.parametrize("path", ["/", "/directions", "/_stcore/host-config", "/_stcore/script-health-check"])
def test_the_cookie_opens_pages(address, cookie, path):
    assert ask(address, path, headers=cookie)[0].status in (200, 404)


def test_the_cookie_opens_the_files_of_a_page(address, cookie):
    _, page = ask(address, "/", headers=cookie)
    file = re.search(r'src="\.?/?(static/js/[^"]+)"', page.decode())[1]
    assert ask(address, f"/{file}", headers=cookie)[0].status == 200
    assert ask(address, f"/{file}")[0].status == 403


@pytest.mark.parametrize(
    "wrong",
    ["", "x", driver.TOKEN[:-1], driver.TOKEN + "x", "é", "%00"],
    ids=["empty", "other", "shorter", "longer", "accent", "nul"],
)
def test_a_wrong_token_opens_nothing(address, cookie, wrong):
    name = cookie["Cookie"].split("=")[0]
    assert ask(address, "/", headers={"Cookie": f"{name}={wrong}".encode()})[0].status == 403
    answer, body = ask(address, f"/?token={wrong.encode().hex()}", headers=HTML)
    assert answer.status == 403 and b"not the token" in body and "set-cookie" not in answer.headers


def test_the_token_leaves_the_address_and_becomes_a_strict_cookie(address):
    answer, body = ask(address, driver.with_token("/directions?run=a%26b&direction=3"), headers=HTML)
    assert answer.status == 200
    assert b"url=/directions?run=a%26b&amp;direction=3" in body and driver.TOKEN.encode() not in body
    port = urlsplit(address).port
    wanted = f"basiscope_token_{port}={driver.TOKEN}; HttpOnly; Path=/; SameSite=strict"
    assert answer.headers["set-cookie"] == wanted
    assert answer.headers["referrer-policy"] == "same-origin"
    assert answer.headers["cache-control"] == "no-store"


def test_the_token_leads_to_no_other_server(address):
    _, body = ask(address, driver.with_token("//evil.test/x"), headers=HTML)
    assert b'url=/evil.test/x"' in body


@pytest.mark.parametrize("pasted", ["{token}", " {token}\n", "http://localhost:8501/?token={token}"])
def test_the_token_can_be_pasted(address, pasted):
    body = "token=" + pasted.format(token=driver.TOKEN).replace("&", "%26").replace("\n", "%0A")
    answer, page = ask(address, "/recover", "POST", body, HTML | FORM | {"Origin": address})
    assert answer.status == 200 and b"url=/recover" in page and "set-cookie" in answer.headers


def test_a_wrong_token_pasted_is_said(address):
    answer, page = ask(address, "/", "POST", "token=x" + "y" * 10_000, HTML | FORM | {"Origin": address})
    assert answer.status == 403 and b"not the token" in page


@pytest.mark.parametrize(
    "origin", ["http://localhost:{other}", "http://127.0.0.1:{port}", "null", "http://evil.test"]
)
def test_other_pages_get_nothing_even_with_the_cookie(address, cookie, origin):
    port = urlsplit(address).port
    foreign = {"Origin": origin.format(port=port, other=port + 1)}
    assert ask(address, "/_stcore/host-config", headers=cookie | foreign)[0].status == 403
    assert ask(address, UPLOAD, "PUT", b"x", cookie | foreign)[0].status == 403
    assert handshake(address, cookie | foreign) == 403


def test_what_changes_something_says_where_it_comes_from(address, cookie):
    assert ask(address, UPLOAD, "PUT", b"x", cookie)[0].status == 403
    answer, body = ask(address, UPLOAD, "PUT", b"x", cookie | {"Origin": address})
    assert (answer.status, b"XSRF" in body) == (403, True)  # now it is Streamlit that asks for its own token


@pytest.mark.parametrize(
    "host", ["evil.test", "evil.test:{port}", "localhost.evil.test", "10.0.0.1", "a@localhost", ""]
)
def test_names_that_lead_here_are_refused(address, cookie, host):
    port = urlsplit(address).port
    rebound = {"Host": host.format(port=port), "Origin": f"http://{host.format(port=port)}"}
    assert ask(address, "/", headers=cookie | rebound)[0].status in (400, 403)
    assert handshake(address, cookie | rebound) in (400, 403)


# --- the socket -----------------------------------------------------------------------------------------


def test_the_socket_opens_to_the_own_page_with_the_cookie(address, cookie):
    assert handshake(address, cookie | {"Origin": address}) == 101


def test_the_socket_opens_through_a_tunnel(address, cookie):
    tunnel = {"Host": "localhost:9000", "Origin": "http://localhost:9000"}
    assert handshake(address, cookie | tunnel) == 101


@pytest.mark.parametrize("path", ["/_stcore/stream", "/_stcore/stream?token={token}", "/_stcore/health", "/other"])
def test_the_socket_stays_shut_without_the_cookie(address, path):
    assert handshake(address, {"Origin": address}, path.format(token=driver.TOKEN)) != 101


def test_the_socket_stays_shut_without_an_origin(address, cookie):
    assert handshake(address, cookie) == 403


# --- where the token is ---------------------------------------------------------------------------------


def test_the_address_is_printed_once_kept_privately_and_in_no_command(address, folder):
    log = (folder / "server.log").read_text()
    port = urlsplit(address).port
    assert log.count(driver.TOKEN) == 1 and f"\n  URL: {address}/?token={driver.TOKEN}\n" in log
    for name in (f"{port}.json", f"{port}.html"):
        assert stat.S_IMODE((folder / "app" / name).stat().st_mode) == 0o600
    assert open_address(folder / "app", port) == f"{address}/?token={driver.TOKEN}"
    assert not any(driver.TOKEN in " ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"]))


def test_the_same_command_again_prints_the_address(address, folder, tmp_path):
    port = str(urlsplit(address).port)
    command = [sys.executable, "-m", "core.cli", "app", "--headless", "--port", port, "--workspace"]
    again = subprocess.run([*command, str(folder)], capture_output=True, text=True, cwd=driver.ROOT)
    assert again.returncode == 1 and f"at {address}/?token={driver.TOKEN}\n" in again.stderr
    elsewhere = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, cwd=driver.ROOT)
    assert elsewhere.returncode == 1 and driver.TOKEN not in elsewhere.stderr
    assert "on another workspace" in elsewhere.stderr


def test_a_token_of_ones_own_is_no_job_s(monkeypatch):
    monkeypatch.setenv("BASISCOPE_TOKEN", "mine")
    assert new_token() == "mine" and "BASISCOPE_TOKEN" not in os.environ
    assert len(new_token()) >= 32 and new_token() != new_token()


# --- rules ----------------------------------------------------------------------------------------------


def test_a_proxy_has_its_own_address():
    access = shared(Access("t", address="https://lab.org/basiscope"), "0.0.0.0")
    assert access.base == "/basiscope"
    assert access.link(8501) == "https://lab.org/basiscope/?token=t"
    assert access.knows("lab.org") and access.knows("10.1.2.3:8501") and access.knows("[fe80::1]:8501")
    assert access.is_own("https://lab.org", "localhost:8501")
    assert not access.is_own("https://other.org", "localhost:8501")
    assert not access.knows("evil.test") and not access.knows("evil.test:8501")


@pytest.mark.parametrize(
    ("host", "place"),
    [
        ("127.0.0.1", "localhost"),
        ("0.0.0.0", socket.gethostname().lower()),
        ("10.1.2.3", "10.1.2.3"),
        ("fe80::1", "[fe80::1]"),
    ],
)
def test_the_address_for_others_leads_to_what_listens(host, place):
    access = shared(Access("t"), host)
    assert access.link(8501) == f"http://{place}:8501/?token=t"
    assert access.knows(place) and access.knows("localhost")


def test_streamlit_alone_serves_nothing(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.headless", "true"]
    command += ["--server.port", str(port)]
    where = os.environ | {"BASISCOPE_WORKSPACE": str(tmp_path), "PYTHONPATH": str(driver.ROOT)}
    process = subprocess.Popen(
        command, cwd=driver.ROOT, env=where, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        address = f"http://localhost:{port}"
        while not driver.is_healthy(f"{address}/_stcore/health"):
            assert process.poll() is None
        said = first_text(address)
        assert "This app is started with `basiscope app`" in said
    finally:
        process.kill()
        process.wait()


def first_text(address):
    """What the first run of a session writes, as bytes of its messages."""
    from streamlit.proto.BackMsg_pb2 import BackMsg
    from websockets.sync.client import connect

    with connect(address.replace("http", "ws") + "/_stcore/stream", origin=address, max_size=None) as client:
        message = BackMsg()
        message.rerun_script.query_string = ""
        client.send(message.SerializeToString())
        said = ""
        while "basiscope app" not in said and "Recover" not in said:
            said += client.recv(timeout=60).decode(errors="replace")
    return said


def test_the_app_alone_knows_this_machine_only():
    access = Access("t")
    assert all(map(access.knows, ("localhost:8501", "127.0.0.1", "[::1]:8501", "LOCALHOST.")))
    assert not any(map(access.knows, ("10.1.2.3", "evil.test", "", None, "localhost/x", "localhost:x")))


@pytest.mark.parametrize("email", ["ann@lab.org", "ANN@LAB.ORG", "bo@uni.org"])
def test_who_may_log_in(email):
    access = Access(users=("ann@lab.org", "*@uni.org"))
    assert access.lets_in(email)
    assert not any(map(access.lets_in, ("eve@lab.org", "ann@lab.org.evil.test", None, "")))


def test_a_pasted_address_has_its_token():
    assert pasted_token(" http://localhost:8501/?token=abc \n") == "abc"
    assert pasted_token("abc") == "abc"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "--host lets others in: say --share, too."),
        (["--address", "https://lab.org"], "--address lets others in"),
        (["--share", "--address", "lab.org"], "--address is a whole address"),
        (["--login", "*@lab.org"], "--login lets others in"),
    ],
)
def test_contradictions_are_said(run_cli, tmp_path, options, said):
    status, _, err = run_cli("app", "--workspace", tmp_path / "w", "--headless", *options)
    assert status == 2 and said in err
    assert not (tmp_path / "w").exists()


def test_a_shared_app_answers_to_other_machines_and_bounds_uploads(tmp_path):
    with driver.serve(tmp_path, options=["--share", "--max-uploads", "1", "--max-jobs", "0"]) as url:
        cookie = {"Cookie": f"basiscope_token_{urlsplit(url).port}={driver.TOKEN}"}
        there = {"Host": "10.1.2.3:80", "Origin": "http://10.1.2.3:80"}
        assert ask(url, "/", headers=cookie | there)[0].status == 200
        assert handshake(url, cookie | there) == 101
        assert ask(url, "/", headers=cookie | {"Host": "evil.test"})[0].status == 403
        assert ask(url, "/", headers=there)[0].status == 403
        own = cookie | {"Origin": url}
        answer, body = ask(url, UPLOAD, "PUT", b"x" * 1_000_001, own)
        assert answer.status == 413 and b"1 MB" in body
        assert ask(url, UPLOAD, "PUT", iter([b"x"]), own | {"Transfer-Encoding": "chunked"})[0].status == 411
        assert ask(url, UPLOAD, "PUT", b"x", own)[0].status == 403  # Streamlit's own token is asked for after that


def test_no_token_says_what_it_risks(folder, tmp_path):
    options = ["--no-token", "--max-jobs", "0"]
    with driver.serve(tmp_path, options=options) as url:
        assert "can read files and start jobs as you, from any program." in (tmp_path / "server.log").read_text()
        assert ask(url, "/")[0].status == 200
        assert handshake(url, {"Origin": url}) == 101
        assert handshake(url, {"Origin": "http://localhost:1"}) == 403
        assert handshake(url, {}) == 403
    assert not any((tmp_path / "app").iterdir())
    assert json.dumps(driver.TOKEN) not in (tmp_path / "server.log").read_text()


@pytest.mark.parametrize("url", ["http://ann:sk-123456@evil.test/v1", "http://evil.test/v1?api_key=sk-123456"])
def test_a_key_in_the_address_of_a_server_is_refused_and_not_repeated(run_cli, tmp_path, monkeypatch, url):
    asked = ("evaluate", "--endpoint", url, "--model-name", "m", "--problems", tmp_path / "p.jsonl")
    status, out, err = run_cli(*asked, "--workspace", tmp_path / "w")
    assert status == 1 and "BASISCOPE_ENDPOINT_KEY" in err and "sk-123456" not in out + err
    monkeypatch.setenv("BASISCOPE_LLM_URL", url)
    with pytest.raises(BasiscopeError, match="BASISCOPE_LLM_KEY"):
        Endpoint.from_environment()


def test_the_login_is_asked_for_before_any_page(monkeypatch, tmp_path):
    monkeypatch.setenv("BASISCOPE_WORKSPACE", str(tmp_path))
    monkeypatch.setattr("core.access._here", Access(users=("*@lab.org",)))
    at = AppTest.from_file(str(driver.ROOT / "app.py"), default_timeout=60).run()
    assert not at.exception and [button.label for button in at.button] == ["Log in"]
