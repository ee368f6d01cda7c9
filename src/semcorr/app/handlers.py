"""Handlers of the page's events: a session in, the changed session and everything displayed of it out."""

import base64
import io
import json
import secrets
from collections.abc import Callable
from functools import wraps
from html import escape
from pathlib import Path

from PIL import Image

from semcorr.app import render as pictures
from semcorr.app import session
from semcorr.app.bounded import MIB, BoundedCache
from semcorr.app.choices import ModelChoices
from semcorr.app.inference import BOX, IMAGE, LoadedModel, match_session, session_to_dict
from semcorr.app.routes import is_inside
from semcorr.app.session import Session, reduce_picture, session_bytes
from semcorr.core.errors import UserError
from semcorr.data.pictures import Picture, load_picture

BOXES = {"longer side of the picture": IMAGE, "box around the true places": BOX}
SESSIONS, SESSIONS_BYTES = 64, 512 * MIB
# the session's key, its model, both pictures, the hint, the table and PCK
Outputs = tuple[str, str, Image.Image | None, Image.Image | None, str, str, str]
EXPIRED = "Your pictures and points are gone: they were not used for a while, or others needed the room."


class PageEvents:
    """The event handlers, and the sessions of all browsers.

    A handler maps a session's key and the settings of the page to the key and the outputs displayed of the session.

    Args:
        models: Holder of the loaded model.
        choices: Models that can be chosen.
        folder: Folder of uploaded files.
    """

    def __init__(self, models: LoadedModel, choices: ModelChoices, folder: Path) -> None:
        self.models, self.choices, self.folder = models, choices, folder.resolve()
        self.examples = pictures.draw_examples()
        self.sessions: BoundedCache[str, Session] = BoundedCache(SESSIONS, SESSIONS_BYTES, session_bytes)

    def format_outputs(self, key: str, state: Session, opacity: float, of: str) -> Outputs:
        """Match the points of a session, and return everything that is displayed of it.

        Args:
            key: Key of the session.
            state: The session.
            opacity: Opacity of the similarity map in percent.
            of: Extent of PCK, a key of `BOXES`.
        """
        answer = match_session(self.models, state, pictures.page_image_size(state.b.size) if state.b else None)
        return (
            key,
            self.choices.name(state.model),
            pictures.draw_source(state, answer),
            pictures.draw_target(state, answer, opacity / 100),
            pictures.format_hint(state, answer),
            pictures.format_point_table(state, answer),
            pictures.format_accuracy(state, answer, BOXES[of]),
        )

    def build_handler(self, change: Callable[..., Session], begin: bool = False) -> Callable[..., Outputs]:
        """Make the handler of an event that changes the session; a user's mistake shows a message and changes nothing.

        Args:
            change: Function from the session before, and the values of the event, to the session after.
            begin: Whether the event loads the page, so that there need not be a session yet.
        """

        @wraps(change)  # gradio inspects the signature
        def handle(key: str | None, opacity: float, of: str, *others: object) -> Outputs:
            import gradio as gr

            if of not in BOXES or not isinstance(opacity, int | float) or not 0 <= opacity <= 100:
                raise gr.Error("The page sent a setting that it does not have.", print_exception=False)
            state = self.sessions.get(key) if key else None
            if key is None or state is None:
                key, state = secrets.token_urlsafe(16), self.open_first()
                self.sessions.put(key, state)
                if not begin:
                    gr.Warning(EXPIRED, title="The page starts again", duration=12)
                    return self.format_outputs(key, state, opacity, of)
            try:
                new_state = change(state, *others)
                outputs = self.format_outputs(key, new_state, opacity, of)
            except UserError as error:
                gr.Warning(escape(str(error)), title="That did not work", duration=12)
                return self.format_outputs(key, state, opacity, of)
            self.sessions.put(key, new_state)
            return outputs

        return handle

    def open_first(self) -> Session:
        """Return the session that a browser begins with."""
        return self.open_example(Session(self.choices.line(self.choices.model)), next(iter(self.examples)))

    def open_example(self, state: Session, name: str) -> Session:
        """Open a pair of the examples."""
        return session.open_pictures(state, *self.examples[name])

    def load_upload(self, path: object) -> Picture:
        """Load an uploaded picture, reduced, under its file name; its `size` remains that of the file.

        Raises:
            UserError: The file is not a picture, or was not uploaded.
        """
        if not is_inside(path, self.folder):
            raise UserError("This file is not among the uploaded ones (any more). Open it again")
        try:
            return reduce_picture(load_picture(path)._replace(name=Path(path).name))
        except UserError as error:
            raise UserError(str(error).replace(path, Path(path).name)) from None

    def choose(self, state: Session, name: object) -> Session:
        """Choose another model, unless the field was emptied."""
        return state._replace(model=self.choices.line(name)) if name else state

    def json(self, state: Session, of: str) -> list[str]:
        """Return the name and the data URL of a JSON file with the matches.

        Args:
            state: Session with points.
            of: Extent of PCK, a key of `BOXES`.
        """
        content = session_to_dict(state, match_session(self.models, state), BOXES[of])
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        return ["matches.json", _data_url("application/json", text.encode())]

    def png(self, state: Session, _: str) -> list[str]:
        """Return the name and the data URL of a PNG file with the matches."""
        file = io.BytesIO()
        pictures.draw_export(state, match_session(self.models, state)).save(file, format="PNG")
        return ["matches.png", _data_url("image/png", file.getvalue())]

    def export(self, make: Callable[[Session, str], list[str]]) -> Callable[..., list[str]]:
        """Make the handler of a button that saves a file, if the session has points.

        Args:
            make: Function from a session and a key of `BOXES` to the name and the data URL of the file.
        """

        def handle(key: str | None, of: str) -> list[str]:
            import gradio as gr

            state = self.sessions.get(key) if key else None
            if state is None or state.a is None or state.b is None or not state.marks.points:
                gr.Warning("Click a point in the left picture first.", title="Nothing to save yet")
                return ["", ""]
            return make(state, of)

        return handle


def _data_url(kind: str, content: bytes) -> str:
    """Encode content as a data URL."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
