"""Who reaches the page: foreign hosts, foreign pages and those without this start's token do not."""

import pytest
from page_requests import OWN, TOKEN, Behind, Reply, request

from semcorr.app.access import CLOSED, Access, AccessRules

ROUTES = ("/", "/config", "/gradio_api/queue/data?session_hash=x", "/gradio_api/file=/tmp/x", "/assets/index.js")


def reply(*args, rules: AccessRules = AccessRules("127.0.0.1", 7860, (), TOKEN), **options) -> Reply:  # noqa: B008
    behind = Behind()
    return request(Access(behind, rules), behind, *args, **options)


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "[::1]:7860", "LocalHost:7860"])
def test_the_page_answers_to_its_own_names(host):
    assert reply(headers={**OWN, "host": host}).status == 200


FOREIGN = {
    "another name": [("host", "evil.example:7860")],
    "a name that points here": [("host", "127.0.0.1.evil.example:7860")],
    "another port": [("host", "127.0.0.1:7861")],
    "no port": [("host", "127.0.0.1")],
    "none": [],
    "empty": [("host", "")],
    "two": [("host", "127.0.0.1:7860"), ("host", "evil.example")],
    "two alike": [("host", "127.0.0.1:7860"), ("host", "127.0.0.1:7860")],
    "a user": [("host", "127.0.0.1:7860@evil.example")],
    "a list": [("host", "127.0.0.1:7860, evil.example")],
    "any address": [("host", "0.0.0.0:7860")],
    "another address of this machine": [("host", "192.168.1.5:7860")],
    "a dot at the end": [("host", "localhost.:7860")],
    "not ASCII": [("host", "127.0.0.1:7860\xe9")],
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("hosts", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_host_is_refused_whatever_it_knows(hosts, route):
    refused = reply(route, [*hosts, ("cookie", OWN["cookie"])])
    assert refused.status == 403
    assert refused.reached == []
    assert "the Host header is" in refused.body.replace("The", "the")


STRANGE = {
    "another site": {"origin": "http://evil.example"},
    "null": {"origin": "null"},
    "empty": {"origin": ""},
    "another port": {"origin": "http://127.0.0.1:7861"},
    "another name of this machine": {"origin": "http://localhost:7860"},
    "a prefix": {"origin": "http://127.0.0.1:78600"},
    "a user": {"origin": "http://127.0.0.1:7860@evil.example"},
    "a file": {"origin": "file://127.0.0.1:7860"},
    "no URL": {"origin": "http://[:::"},
    "forwarded": {"x-forwarded-host": "evil.example"},
    "forwarded twice": {"x-forwarded-host": "127.0.0.1:7860, evil.example"},
    "gradio's own": {"x-gradio-server": "http://evil.example"},
    "another site's picture": {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
    "another port's script": {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
}


@pytest.mark.parametrize("headers", STRANGE.values(), ids=STRANGE)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_another_page_of_the_same_browser_is_refused_although_the_browser_sends_the_cookie(headers, method):
    refused = reply("/gradio_api/queue/join", {**OWN, **headers}, method)
    assert refused.status == 403
    assert refused.reached == []


def test_own_pages_and_a_link_from_elsewhere_are_answered():
    assert reply(headers={**OWN, "origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"}).status == 200
    link = {"host": OWN["host"], "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert reply(f"/?token={TOKEN}", link).status == 200


WRONG = {
    "none": {},
    "wrong": {"cookie": "semcorr_7860=another"},
    "a prefix": {"cookie": f"semcorr_7860={TOKEN[:-1]}"},
    "longer": {"cookie": f"semcorr_7860={TOKEN}x"},
    "empty": {"cookie": "semcorr_7860="},
    "of a page on another port": {"cookie": f"semcorr_7861={TOKEN}"},
    "in another header": {"authorization": f"Bearer {TOKEN}"},
    "in the value": {"cookie": f"x=semcorr_7860={TOKEN}"},
    "not ASCII": {"cookie": "semcorr_7860=\xe9\xff"},
    "upper case": {"cookie": f"semcorr_7860={TOKEN.upper()}"},
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("headers", WRONG.values(), ids=WRONG)
def test_without_this_starts_token_every_route_says_where_to_find_it(headers, route):
    assert reply(route, {"host": OWN["host"], **headers})[::2] == (403, CLOSED + "\n")


@pytest.mark.parametrize(
    "url",
    [
        "/?token=", "/?token=wrong", f"/?token={TOKEN[:5]}", f"/?token={TOKEN}&token=x", f"/?Token={TOKEN}",
        f"/config?token={TOKEN}", f"/gradio_api/queue/data?token={TOKEN}", "/?token=%00", f"/?token=%20{TOKEN}",
    ],
)  # fmt: skip
def test_a_token_in_the_url_is_this_starts_and_of_the_page(url):
    refused = reply(url, {"host": OWN["host"]})
    assert (refused.status, refused.reached) == (403, [])


def test_the_printed_url_gives_a_cookie_that_no_script_and_no_other_site_has():
    first = reply(f"/?token={TOKEN}", {"host": OWN["host"]})
    assert first.status == 200
    assert first.headers["set-cookie"] == f"semcorr_7860={TOKEN}; Path=/; HttpOnly; SameSite=Strict"
    assert first.reached[0]["query_string"] == b""
    assert reply("/config", {**OWN, "cookie": f"other=1; semcorr_7860={TOKEN}"}).status == 200


def test_without_a_token_every_request_is_refused():
    assert reply(f"/?token={TOKEN}", rules=AccessRules("127.0.0.1", 7860)).status == 403
    assert reply("/?token=", {"host": OWN["host"]}, rules=AccessRules("127.0.0.1", 7860)).status == 403


@pytest.mark.parametrize("headers", [{}, {"host": "evil.example"}, {**OWN, "origin": "http://evil.example"}])
def test_a_websocket_passes_the_same_checks(headers):
    assert reply("/gradio_api/queue/join", headers, kind="websocket").status == 403


@pytest.mark.parametrize("headers", [OWN, {}], ids=["answered", "refused"])
def test_every_answer_forbids_frames_sniffing_and_other_machines(headers):
    output = reply(headers=headers).headers
    assert output["x-frame-options"] == "DENY"
    assert output["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in output["content-security-policy"]
    assert "default-src 'self'" in output["content-security-policy"]
    assert "http" not in output["content-security-policy"]


@pytest.mark.parametrize(
    ("rules", "host", "status"),
    [
        (AccessRules("0.0.0.0", 7860, (), TOKEN), "192.168.1.5:7860", 200),  # the address that the request came to
        (AccessRules("0.0.0.0", 7860, (), TOKEN), "192.168.1.6:7860", 403),
        (AccessRules("0.0.0.0", 7860, (), TOKEN), "evil.example:7860", 403),
        (AccessRules("192.168.1.5", 7860, (), TOKEN), "192.168.1.5:7860", 200),
        (AccessRules("192.168.1.5", 7860, (), TOKEN), "localhost:7860", 403),
        (AccessRules("127.0.0.1", 80, (), TOKEN), "127.0.0.1", 200),
        (AccessRules("127.0.0.1", 7860, ("page.example",), TOKEN), "page.example", 200),
        (AccessRules("127.0.0.1", 7860, ("page.example",), TOKEN), "page.example:7860", 403),
        (AccessRules("127.0.0.1", 7860, ("page.example",), TOKEN), "sub.page.example", 403),
    ],
)
def test_a_host_is_an_address_that_was_listened_on_or_a_name_that_was_allowed(rules, host, status):
    cookie = f"{rules.cookie}={TOKEN}"
    assert reply(headers={"host": host, "cookie": cookie}, rules=rules, server=("192.168.1.5", 7860)).status == status
