"""Who may ask: keys, host names, web sites; and the page's content policy."""

from __future__ import annotations

import base64
import hashlib

import pytest
from scripted import Scripted, site

from tutelage.serve.app import PAGE, page_headers
from tutelage.serve.gate import Rules

KEY = "sk-correct-horse"


@pytest.fixture(scope="module")
def served():
    with site(Scripted()) as running:
        yield running


@pytest.fixture(scope="module")
def locked():
    with site(Scripted(), rules=Rules(api_key=KEY)) as running:
        yield running


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", f"Bearer {KEY}x", f"Basic {KEY}", KEY, "Bearer \xe9"]
)
def test_without_the_key_nothing_is_told(locked, header):
    sent = {} if header is None else {"Authorization": header}
    for path in ("/v1/models", "/metrics", "/v1/nothing"):
        answer = locked.ask("GET", path, headers=sent)
        assert answer.status == 401 and answer.error["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert locked.ask("POST", "/v1/chat/completions", {}, sent).status == 401


def test_with_the_key_everything_is_open_and_health_always(locked):
    assert locked.ask("GET", "/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status == 200
    assert locked.ask("GET", "/v1/models", headers={"Authorization": f"bearer  {KEY} "}).status == 200
    assert locked.ask("GET", "/health").status == 200
    assert locked.ask("GET", "/").status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.2", "[::2]", "["]
)
def test_other_names_of_this_machine_are_refused(served, host):
    assert served.ask("GET", "/v1/models", headers={"Host": host}).status == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:81", "127.0.0.1", "[::1]:5"])
def test_loopback_names_are_accepted(served, host):
    assert served.ask("GET", "/v1/models", headers={"Host": host}).status == 200


def test_a_server_for_others_answers_to_any_name():
    with site(Scripted(), rules=Rules(bound="0.0.0.0")) as served:
        assert served.ask("GET", "/v1/models", headers={"Host": "gpu-box:8000"}).status == 200


def test_pages_of_other_sites_are_refused_and_no_simple_request_gets_through(served):
    evil = {"Origin": "https://evil.example"}
    assert served.ask("GET", "/v1/models", headers=evil).status == 403
    assert (
        served.ask("POST", "/v1/chat/completions", {}, {**evil, "Content-Type": "text/plain"}).status == 403
    )
    assert served.ask("GET", "/v1/models", headers={"Origin": "null"}).status == 403
    assert served.ask("POST", "/v1/chat/completions", {}, {"Content-Type": "text/plain"}).status == 415


def test_pages_of_this_machine_and_allowed_sites_get_cors_headers(served):
    for origin in ("http://localhost:3000", f"http://127.0.0.1:{served.port}"):
        answer = served.ask("GET", "/v1/models", headers={"Origin": origin})
        assert answer.status == 200 and answer.headers["access-control-allow-origin"] == origin
    asked = {"Origin": "http://localhost:3000", "Access-Control-Request-Headers": "authorization"}
    before = served.ask("OPTIONS", "/v1/chat/completions", headers=asked)
    assert before.status == 204 and before.headers["access-control-allow-headers"] == "authorization"
    with site(Scripted(), rules=Rules(origins=("https://app.example",), api_key=KEY)) as allowing:
        for origin, status in (("https://app.example", 204), ("https://other.example", 403)):
            assert allowing.ask("OPTIONS", "/v1/models", headers={"Origin": origin}).status == status
        refused = allowing.ask("GET", "/v1/models", headers={"Origin": "https://app.example"})
        assert refused.status == 401 and "access-control-allow-origin" in refused.headers


def test_the_page_may_run_its_own_script_and_talk_to_its_own_server_only(served):
    answer = served.ask("GET", "/")
    assert answer.status == 200 and answer.raw == PAGE.read_bytes()
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "unsafe" not in policy
    headers = page_headers("<style>a</style><script>let b = 1</script>")["Content-Security-Policy"]
    for tag, text in (("style-src", b"a"), ("script-src", b"let b = 1")):
        digest = base64.b64encode(hashlib.sha256(text).digest()).decode()
        assert f"{tag} 'sha256-{digest}'" in headers
