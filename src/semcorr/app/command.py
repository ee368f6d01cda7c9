"""The command `python -m semcorr.app`: the page at http://127.0.0.1:7860, which contacts no other machine."""

import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from semcorr.cli.errors import report_user_errors
from semcorr.cli.verb_line import DEVICE
from semcorr.core.errors import UserError
from semcorr.core.extras import require_extra
from semcorr.core.ranges import Pattern, Range

HOST = Pattern(r"[\w.:\[\]-]{1,253}", "a name or an address, as page.example or 127.0.0.1")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def start_page(
    model: Annotated[
        str | None, typer.Option("--model", help="Backbone, run_dir, or settings: 'backbone=dinov2 localise=argmax'.")
    ] = None,
    runs: Annotated[
        Path | None,
        typer.Option("--runs", help="Folder of run directories to choose from; default: runs/, if it exists."),
    ] = None,
    host: Annotated[
        str, HOST, typer.Option("--host", help="Address to listen on; 0.0.0.0 for all networks.")
    ] = "127.0.0.1",
    port: Annotated[
        int, Range(least=0, most=65535), typer.Option("--port", min=0, max=65535, help="Port; 0 picks a free one.")
    ] = 7860,
    allow_host: Annotated[
        list[str] | None,
        HOST,
        typer.Option("--allow-host", help="Additional host name, such as page.example behind a proxy; repeatable."),
    ] = None,
    device: Annotated[
        str | None, DEVICE, typer.Option("--device", help="cpu or cuda; default: cuda if available.")
    ] = None,
) -> None:
    """Show a page to click on: points in the left picture, their matches in the right one. Ends with Ctrl-C."""
    with report_user_errors("evaluate"):
        require_extra("The page", "app", "gradio")
        if runs is not None and not runs.is_dir():
            raise UserError(f"--runs {runs} is not a folder. Give one that holds run directories")
        from semcorr.inference.load import DEFAULT, format_overrides

        format_overrides(model)
        listening = bind_socket(host, port)
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported
        from semcorr.app.choices import ModelChoices
        from semcorr.app.inference import LoadedModel
        from semcorr.app.server import serve_page

        models, choices = LoadedModel(device), ModelChoices(model or DEFAULT, runs or Path("runs"))
        models.matcher(choices.model)  # reports a mistake before the page is served
        serve_page(models, choices, listening, host, tuple(allow_host or ()))


def bind_socket(host: str, port: int) -> socket.socket:
    """Bind an address, so that no other program can.

    Args:
        host: Name or address of this machine; `0.0.0.0` for all its networks.
        port: Port; 0 for any that is free.

    Raises:
        UserError: The address is in use, or does not belong to this machine.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except (OSError, UnicodeError) as error:
        listening.close()
        is_name = isinstance(error, UnicodeError | socket.gaierror)
        raise UserError(
            f"--host {host} --port {port} is not available ({getattr(error, 'strerror', None) or 'no such name'}). "
            f"Give {'--host 127.0.0.1, or 0.0.0.0 for the network' if is_name else '--port 0 for any that is free'}"
        ) from None
    return listening
