"""python -m semcorr.app: the page at http://127.0.0.1:7860. It asks nothing of any other machine."""

import logging
import os
import socket
from importlib.util import find_spec
from typing import Annotated

import typer

from semcorr.cli import explaining
from semcorr.errors import UserError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
HERE = ("127.0.0.1", "localhost", "::1")


@app.command()
def command(
    model: Annotated[
        str | None, typer.Option("--model", help="A backbone, a run, or a line: 'backbone=dinov2 localise=argmax'.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Whom to listen to; 0.0.0.0: the whole network.")] = HERE[0],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 7860,
    device: Annotated[str | None, typer.Option("--device", help="cpu or cuda; cuda, if there is one.")] = None,
) -> None:
    """A page to click on: points in the left picture, their matches in the right one. Ends with Ctrl-C."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    with explaining("evaluate"):
        if find_spec("gradio") is None:
            raise UserError("The page needs gradio, which is not installed: pip install 'semcorr[app]'")
        port = free(host, port)
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # it is read when gradio is imported
        from semcorr.app.answers import Models
        from semcorr.app.page import serve
        from semcorr.matcher.restore import DEFAULT

        models = Models(device)
        models.matcher(model or DEFAULT)  # a mistake is known before the page is
        serve(models, model or DEFAULT, host, port, anything=host in HERE)


def free(host: str, port: int) -> int:
    """The port, if nobody has it; for 0 one that nobody has."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind((host, port))
            return int(taken.getsockname()[1])
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port} is not to be had ({error.strerror}). Give --port 0 for any that is free"
        ) from None
