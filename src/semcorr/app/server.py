"""The server of the page: gradio behind access rules and allowed routes, until it is interrupted."""

import os
import secrets
import socket
import sys
import threading
from pathlib import Path

from semcorr.app.access import LOOPBACK, WILDCARDS, Access, AccessRules, App, format_host
from semcorr.app.choices import ModelChoices
from semcorr.app.folder import evict_files, make_private_folder
from semcorr.app.handlers import SESSIONS, PageEvents
from semcorr.app.inference import LoadedModel
from semcorr.app.layout import FONTS, build_page
from semcorr.app.routes import MAX_UPLOAD_BYTES, AllowedRoutes
from semcorr.core.interrupt import advise_on_interrupt
from semcorr.core.text_files import JsonObject

CONNECTIONS = 256  # at the same time
WAITING = 64  # events in the queue
SWEEP = 60.0  # seconds between two removals of idle entries
EXPOSED = (
    "Warning: this page listens beyond this machine. Whoever has the URL can use it, and what is sent is not encrypted."
)


def serve_page(
    models: LoadedModel, choices: ModelChoices, listening: socket.socket, host: str, named: tuple[str, ...]
) -> None:
    """Serve the page until it is interrupted.

    Args:
        models: Holder of the loaded model.
        choices: Models that can be chosen.
        listening: Bound socket.
        host: Address that the socket was bound to.
        named: Further allowed values of a Host header.
    """
    import uvicorn

    rules = AccessRules(host, listening.getsockname()[1], named, secrets.token_urlsafe(32))
    with make_private_folder() as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        page = PageEvents(models, choices, folder)
        routes = AllowedRoutes(build_application(page, folder), folder, lambda size: evict_files(folder, size))
        config = uvicorn.Config(
            Access(routes, rules),
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            ws="none",
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        stop = threading.Event()
        threading.Thread(target=_drop_idle_entries, args=(page, folder, stop), daemon=True).start()
        if format_host(host) not in LOOPBACK:
            print(EXPOSED, file=sys.stderr, flush=True)
        listening.listen()
        print(f"Open {format_url(rules)} (Ctrl-C ends it)", flush=True)
        try:
            with advise_on_interrupt(lambda: "The page is closed"):
                uvicorn.Server(config).run(sockets=[listening])
        finally:
            stop.set()


def build_application(page: PageEvents, folder: Path) -> App:
    """Build gradio's application of the page, without the features that the page does not need."""
    import gradio as gr
    from fastapi import FastAPI

    theme = gr.themes.Base(
        primary_hue="slate", neutral_hue="slate", font=FONTS, font_mono=["ui-monospace", "monospace"]
    )
    blocks = build_page(page)
    blocks.queue(max_size=WAITING, api_open=False)
    blocks.state_session_capacity = SESSIONS
    unused: JsonObject = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    app = gr.mount_gradio_app(
        FastAPI(**unused),
        blocks,
        path="/",
        app_kwargs=unused,
        show_error=False,
        footer_links=[],
        run_history=False,
        max_file_size=MAX_UPLOAD_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme,
        css_paths=Path(__file__).parent / "page.css",
    )
    blocks.has_launched = True  # otherwise gradio reads any file that an event names
    return app


def format_url(rules: AccessRules) -> str:
    """Format the URL to open, with the token."""
    host = socket.gethostname() if rules.host in WILDCARDS else format_host(rules.host)
    return f"http://{host}:{rules.port}/?token={rules.token}"


def _drop_idle_entries(page: PageEvents, folder: Path, stop: threading.Event) -> None:
    """Drop idle sessions, features and files at intervals, until the server ends."""
    while not stop.wait(SWEEP):
        page.sessions.drop_idle()
        page.models.known.drop_idle()
        evict_files(folder)
