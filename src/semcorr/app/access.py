"""Access rules of the page: requests to its own address, from its own pages, that hold the token of this start.

Pure ASGI, around all that gradio serves: pages, its API, event streams, uploads, files, websockets.
"""

import secrets
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from ipaddress import ip_address
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
WILDCARDS = ("0.0.0.0", "::", "")
CLOSED = "Open the URL that `python -m semcorr.app` printed when it started: it holds this page's token."
HEADERS = {
    # gradio's frontend writes scripts and styles into the page; nothing is loaded from, or sent to, another machine
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class Refusal(NamedTuple):
    """The status and the sentence that a refused request is answered with."""

    status: int
    sentence: str


class AccessRules(NamedTuple):
    """The properties that a request must have.

    Attributes:
        host: Address that the page listens on, as in `--host`.
        port: Port that the page listens on.
        named: Further values that a Host header may have, as a browser writes them (`--allow-host`): `page.example`.
        token: Token of this start.
    """

    host: str
    port: int
    named: tuple[str, ...] = ()
    token: str = ""

    @property
    def cookie(self) -> str:
        """The cookie's name; it holds the port, since ports share cookies and two pages must not mix theirs up."""
        return f"semcorr_{self.port}"

    def hosts(self, server: Sequence[str | int | None] | None) -> set[str]:
        """List the allowed values of a Host header, in lower case.

        Args:
            server: Address and port of this machine that the request arrived at, as in the ASGI scope.
        """
        names = [format_host(self.host)] if self.host not in WILDCARDS else []
        if self.host in WILDCARDS and server:
            names.append(format_host(str(server[0])))
        if not names or set(names) & set(LOOPBACK) or self.host in WILDCARDS:
            names += LOOPBACK
        ports = [f":{self.port}", ""] if self.port == 80 else [f":{self.port}"]
        return {f"{name}{port}".lower() for name in names for port in ports} | {name.lower() for name in self.named}


class Access:
    """The page behind its access rules.

    Args:
        app: Application to protect.
        rules: Rules that every request must meet.
    """

    def __init__(self, app: App, rules: AccessRules) -> None:
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif (refusal := find_access_refusal(scope, self.rules)) is not None:
            await refuse(scope, send, refusal)
        else:
            token = read_query_token(scope)
            scope_without_token = {**scope, "query_string": b""} if token else scope  # the application cannot log it
            cookie = f"{self.rules.cookie}={self.rules.token}; Path=/; HttpOnly; SameSite=Strict" if token else None
            await self.app(scope_without_token, receive, _add_headers(send, cookie))


def find_access_refusal(scope: Scope, rules: AccessRules) -> Refusal | None:
    """Return why a request is refused; None if it is allowed.

    A foreign Host reveals a name that was pointed at this address (DNS rebinding); a foreign Origin is another page
    that a visitor's browser has open.
    """
    hosts, allowed = list_header_values(scope, b"host"), rules.hosts(scope.get("server"))
    if len(hosts) != 1 or hosts[0].lower() not in allowed:
        host_name = repr(hosts[0][:100]) if hosts else "none"
        return Refusal(
            403,
            f"The Host header is {host_name}, not the address of this page. If that is a proxy's, start the page with "
            "--allow-host.",
        )
    own_hosts = {hosts[0].lower(), *(name.lower() for name in rules.named)}
    forwarded_hosts = [
        part.strip().lower() for value in list_header_values(scope, b"x-forwarded-host") for part in value.split(",")
    ]
    if list_header_values(scope, b"x-gradio-server") or not set(forwarded_hosts) <= own_hosts:
        return Refusal(403, "The request was forwarded for another host. Start the page with --allow-host.")
    if not all(_parse_authority(origin) in own_hosts for origin in list_header_values(scope, b"origin")):
        return Refusal(403, "The request comes from another page.")
    sites, modes = list_header_values(scope, b"sec-fetch-site"), list_header_values(scope, b"sec-fetch-mode")
    if not {*sites} <= {"same-origin", "none"} and modes != ["navigate"]:
        return Refusal(403, "The request comes from another page.")
    return None if _holds_token(scope, rules) else Refusal(403, CLOSED)


def _holds_token(scope: Scope, rules: AccessRules) -> bool:
    """Tell whether a request holds the token, in the URL or in the cookie."""
    tokens = [read_query_token(scope) or ""]
    for value in list_header_values(scope, b"cookie"):
        pairs = (part.strip().partition("=") for part in value.split(";"))
        tokens += [token for name, _, token in pairs if name == rules.cookie]
    return bool(rules.token) and any(
        secrets.compare_digest(candidate.encode(), rules.token.encode()) for candidate in tokens
    )


def read_query_token(scope: Scope) -> str | None:
    """Read the token in the URL of the page; no other route takes one in its URL."""
    if scope["type"] != "http" or scope["path"] != "/":
        return None
    tokens = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [])
    return tokens[0] if len(tokens) == 1 else None


def list_header_values(scope: Scope, name: bytes) -> list[str]:
    """List the values of a header, one per occurrence."""
    return [value.decode("latin-1").strip() for key, value in scope["headers"] if key.lower() == name]


def format_host(host: str) -> str:
    """Format an address as part of a URL.

    >>> format_host("::1"), format_host("::ffff:10.0.0.1"), format_host("localhost")
    ('[::1]', '10.0.0.1', 'localhost')
    """
    try:
        address = ip_address(host)
    except ValueError:
        return host
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address) if mapped or address.version == 4 else f"[{address}]"


def _parse_authority(origin: str) -> str | None:
    """Return host and port of an origin; None if it is not a web address."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    return parts.netloc.lower() if parts.scheme in ("http", "https") else None


async def refuse(scope: Scope, send: Send, refusal: Refusal) -> None:
    """Answer a request with a status and a sentence; a websocket is closed without them.

    Args:
        scope: ASGI scope of the request.
        send: ASGI's function that sends a message.
        refusal: Status and sentence.
    """
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    body = refusal.sentence.encode() + b"\n"
    length = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await _add_headers(send, None)({"type": "http.response.start", "status": refusal.status, "headers": length})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _add_headers(send: Send, cookie: str | None) -> Send:
    """Wrap `send` to set the security headers, and a cookie if one is given."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [(key, value) for key, value in message.get("headers", []) if key.lower().decode() not in HEADERS]
            cookies = [("set-cookie", cookie)] if cookie else []
            headers += [(key.encode(), value.encode()) for key, value in (*HEADERS.items(), *cookies)]
            message = {**message, "headers": headers}
        await send(message)

    return send_with_headers
