"""What the page's events call: a session in, and the session and all that is shown of it out."""

import base64
import io
import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from semcorr.app import pictures, session
from semcorr.app.answers import BOX, IMAGE, Models, answer, told
from semcorr.app.session import Session
from semcorr.data.pictures import Picture, picture
from semcorr.errors import UserError

BOXES = {"longer side of the picture": IMAGE, "box around the true places": BOX}


class Page:
    """What the events call: a session, and what is set beside it, to a session and what is shown of it."""

    def __init__(self, models: Models, model: str) -> None:
        self.models, self.model = models, model
        self.examples = pictures.examples()

    def shown(self, state: Session, opacity: float, of: str) -> tuple[Any, ...]:
        """The session, its model, both pictures, the hint, the table and PCK."""
        found = answer(self.models, state, pictures.shown(state.b.size) if state.b else None)
        return (
            state, state.model, pictures.left(state, found), pictures.right(state, found, opacity / 100),
            pictures.hint(state, found), pictures.table(state, found), pictures.accuracy(state, found, BOXES[of]),
        )  # fmt: skip

    def event(self, change: Callable[..., Session]) -> Callable[..., tuple[Any, ...]]:
        """An event that changes the session; a user's mistake becomes a message, and changes nothing."""

        @wraps(change)  # gradio looks at the arguments
        def then(state: Session | None, opacity: float, of: str, *others: Any) -> tuple[Any, ...]:
            import gradio as gr

            before = state or self.first()
            try:
                return self.shown(change(before, *others), opacity, of)
            except UserError as error:
                gr.Warning(str(error), title="That did not work", duration=12)
                return self.shown(before, opacity, of)

        return then

    def first(self) -> Session:
        """What a browser sees at first."""
        return self.example(Session(self.model), next(iter(self.examples)))

    def example(self, state: Session, name: str) -> Session:
        """Another pair."""
        return session.opened(state, *self.examples[name])

    def json(self, state: Session, of: str) -> list[str]:
        """A file's name, and the file."""
        text = json.dumps(told(state, answer(self.models, state), BOXES[of]), indent=1, allow_nan=False) + "\n"
        return ["matches.json", _url("application/json", text.encode())]

    def png(self, state: Session, _: str) -> list[str]:
        """The same."""
        file = io.BytesIO()
        pictures.exported(state, answer(self.models, state)).save(file, format="PNG")
        return ["matches.png", _url("image/png", file.getvalue())]

    def export(self, make: Callable[[Session, str], list[str]]) -> Callable[..., list[str]]:
        """If there is something."""

        def then(state: Session | None, of: str) -> list[str]:
            import gradio as gr

            if state is None or state.a is None or state.b is None or not state.marks.points:
                gr.Warning("Click a point in the left picture first.", title="Nothing to save yet")
                return ["", ""]
            return make(state, of)

        return then


def _url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def named(path: str) -> Picture:
    """An uploaded file, by its own name."""
    try:
        return picture(path)._replace(name=Path(path).name)
    except UserError as error:
        raise UserError(str(error).replace(path, Path(path).name)) from None


def of_model(state: Session, name: str | None) -> Session:
    """Another model, unless the field was emptied."""
    return state._replace(model=name) if name else state
