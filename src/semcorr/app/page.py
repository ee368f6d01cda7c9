"""The page, in gradio: what is where, and which function a click calls. All that is computed is computed elsewhere.

Events run one at a time, and clicks wait for their turn: none is lost, and none meets a session in between.
"""

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
from semcorr.cli import conf_dir
from semcorr.data.pictures import Picture, picture
from semcorr.errors import UserError

NO_NAMES = ("tiny", "timm", "transformers")  # random; and two that take more than a name
SAVE = """([name, url]) => {
  if (url) { const a = document.createElement('a'); a.href = url; a.download = name; a.click(); }
}"""
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
BOXES = {"longer side of the picture": IMAGE, "box around the true places": BOX}


def backbones() -> list[str]:
    """Names to choose from."""
    return sorted(path.stem for path in (conf_dir() / "backbone").glob("*.yaml") if path.stem not in NO_NAMES)


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
        text = json.dumps(told(state, answer(self.models, state), BOXES[of]), indent=1) + "\n"
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


def _named(path: str) -> Picture:
    """An uploaded file, by its own name."""
    try:
        return picture(path)._replace(name=Path(path).name)
    except UserError as error:
        raise UserError(str(error).replace(path, Path(path).name)) from None


def _model(state: Session, name: str | None) -> Session:
    return state._replace(model=name) if name else state


def laid_out(page: Page, anything: bool) -> Any:
    """What is where.

    Args:
        page: The events.
        anything: Also runs and config lines may be typed, which can name any code there is.
    """
    import gradio as gr

    image = {"interactive": False, "show_label": False, "buttons": [], "container": False, "format": "jpeg"}
    with gr.Blocks(title="semcorr", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as blocks:
        state = gr.State(None, time_to_live=86400)
        with gr.Row(elem_id="top"):
            gr.HTML("<h1>semcorr</h1><p>Click a point on the left; see where it is on the right.</p>", elem_id="title")
            names = backbones()
            model = gr.Dropdown(
                names if page.model in names else [page.model, *names], value=page.model, elem_id="model",
                label="Model: a backbone, or a run's folder" if anything else "Model", allow_custom_value=anything,
            )  # fmt: skip
        with gr.Row(elem_id="pictures"):
            a = gr.Image(**image, elem_id="a", alt_text="left picture: click to ask for a point")
            b = gr.Image(**image, elem_id="b", alt_text="right picture: click where a point truly is")
        hint = gr.HTML(elem_id="hint")
        with gr.Row(elem_id="tools"):
            left, right = (gr.UploadButton(f"Open {side}…", size="sm") for side in ("left", "right"))
            flip, undo, clear = (gr.Button(text, size="sm") for text in ("Mirror right", "Undo", "Clear"))
            gr.HTML("or an example:", elem_id="or")
            pairs = {name: gr.Button(name, size="sm") for name in page.examples}
        with gr.Row(elem_id="below"):
            with gr.Column(scale=3, min_width=300):
                table = gr.HTML(elem_id="table")
                with gr.Row(elem_id="save"):
                    as_json, as_png = gr.Button("Save JSON", size="sm"), gr.Button("Save PNG", size="sm")
            with gr.Column(scale=2, min_width=300):
                opacity = gr.Slider(0, 100, 40, step=5, label="Similarity map, %", elem_id="opacity")
                of = gr.Radio(
                    list(BOXES), value=next(iter(BOXES)), label="PCK: alpha is a fraction of the", elem_id="of"
                )
                pck = gr.HTML(elem_id="pck")
        file = gr.JSON(visible="hidden")
    with blocks:
        given, seen = [state, opacity, of], [state, model, a, b, hint, table, pck]
        wire = _Wires(page, given, seen)
        wire(blocks.load, lambda old: old)
        for trigger in (opacity.release, of.change):
            wire(trigger, lambda old: old)
        wire(model.input, _model, model, progress="full")
        wire(left.upload, lambda old, path: session.opened(old, a=_named(path)), left)
        wire(right.upload, lambda old, path: session.opened(old, b=_named(path)), right)
        wire.clicks(a.select, lambda old, at: session.asked(old, pictures.clicked(at, old.a.size)))
        wire.clicks(b.select, lambda old, at: session.annotated(old, pictures.clicked(at, old.b.size)))
        for button, change in ((flip, session.flipped), (undo, session.undone), (clear, session.cleared)):
            wire(button.click, change)
        for name, button in pairs.items():
            wire(button.click, lambda old, name=name: page.example(old, name))
        for button, make in ((as_json, page.json), (as_png, page.png)):
            saved = button.click(page.export(make), [state, of], file, api_visibility="private", **ONE)
            saved.then(None, file, None, js=SAVE)
    return blocks


ONE: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "trigger_mode": "multiple"}


class _Wires:
    """From events to the page's."""

    def __init__(self, page: Page, given: list[Any], seen: list[Any]) -> None:
        self.page, self.given, self.seen = page, given, seen

    def __call__(self, trigger: Any, change: Callable[..., Session], *others: Any, progress: str = "minimal") -> None:
        then = self.page.event(change)

        def called(state: Any, opacity: float, of: str, *values: Any) -> tuple[Any, ...]:
            return then(state, opacity, of, *values)

        self._connect(trigger, called, others, progress)

    def clicks(self, trigger: Any, change: Callable[..., Session]) -> None:
        """With the place."""
        import gradio as gr

        then = self.page.event(change)

        def called(state: Any, opacity: float, of: str, at: gr.SelectData) -> tuple[Any, ...]:
            return then(state, opacity, of, at.index)

        called.__annotations__["at"] = gr.SelectData
        self._connect(trigger, called, (), "minimal")

    def _connect(self, trigger: Any, called: Callable[..., Any], others: tuple[Any, ...], progress: str) -> None:
        trigger(
            called, [*self.given, *others], self.seen, show_progress=progress, show_progress_on=self.seen[4],
            api_visibility="private", **ONE,
        )  # fmt: skip


def serve(models: Models, model: str, host: str, port: int, anything: bool) -> None:
    """Until it is ended."""
    import gradio as gr

    theme = gr.themes.Base(
        primary_hue="slate", neutral_hue="slate", font=FONTS, font_mono=["ui-monospace", "monospace"]
    )
    laid_out(Page(models, model), anything).launch(
        server_name=host, server_port=port, share=False, quiet=True, theme=theme, ssr_mode=False, footer_links=[],
        css_paths=Path(__file__).parent / "page.css", max_file_size="200mb", run_history=False,
        prevent_thread_lock=True,
    )  # fmt: skip
    print(f"Open http://{host}:{port} (Ctrl-C ends it)", flush=True)
    from threading import Event

    try:
        Event().wait()
    except KeyboardInterrupt:
        print()
