"""The page in gradio: its components and the handlers of their events; nothing is computed here.

Events run one at a time, and clicks wait in a queue: none is lost, and none sees a half-changed session.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from semcorr.app import render as pictures
from semcorr.app import session
from semcorr.app.bounded import IDLE
from semcorr.app.handlers import BOXES, PageEvents
from semcorr.app.session import Session
from semcorr.core.text_files import JsonObject

ONE: JsonObject = {"concurrency_id": "model", "concurrency_limit": 1, "trigger_mode": "multiple"}
SAVE = """([name, url]) => {
  if (url) { const a = document.createElement('a'); a.href = url; a.download = name; a.click(); }
}"""
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]


class PageComponents(NamedTuple):
    """The components that events read or write."""

    state: Any
    model: Any
    a: Any
    b: Any
    hint: Any
    table: Any
    pck: Any
    opacity: Any
    of: Any
    file: Any
    open: tuple[object, object]  # left, right
    edit: tuple[object, object, object]  # mirror, undo, clear
    save: tuple[object, object]  # JSON, PNG
    pairs: JsonObject  # examples


def build_page(page: PageEvents) -> object:
    """Build the page."""
    import gradio as gr

    with gr.Blocks(title="semcorr", analytics_enabled=False, fill_width=True) as blocks:
        connect_events(page, build_components(page), blocks)
    return blocks


def build_components(page: PageEvents) -> PageComponents:
    """Lay out the components."""
    import gradio as gr

    image = {"interactive": False, "show_label": False, "buttons": [], "container": False, "format": "jpeg"}
    with gr.Row(elem_id="top"):
        gr.HTML("<h1>semcorr</h1><p>Click a point on the left; see where it is on the right.</p>", elem_id="title")
        model = gr.Dropdown(
            page.choices.names(), value=page.choices.model, elem_id="model", label="Model: a backbone, or a run",
            allow_custom_value=False,
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
                save = gr.Button("Save JSON", size="sm"), gr.Button("Save PNG", size="sm")
        with gr.Column(scale=2, min_width=300):
            opacity = gr.Slider(0, 100, 40, step=5, label="Similarity map, %", elem_id="opacity")
            of = gr.Radio(list(BOXES), value=next(iter(BOXES)), label="PCK: alpha is a fraction of the", elem_id="of")
            pck = gr.HTML(elem_id="pck")
    state, file = gr.State(None, time_to_live=int(IDLE)), gr.JSON(visible="hidden")
    edit = (flip, undo, clear)
    return PageComponents(state, model, a, b, hint, table, pck, opacity, of, file, (left, right), edit, save, pairs)


def connect_events(page: PageEvents, on: PageComponents, blocks: object) -> None:
    """Connect the events of the components to their handlers."""
    connect = _Wires(page, [on.state, on.opacity, on.of], list(on[:7]))
    connect.load(blocks.load)
    for trigger in (on.opacity.release, on.of.change):
        connect(trigger, lambda old: old)
    connect(on.model.input, page.choose, on.model, progress="full")
    connect(on.open[0].upload, lambda old, path: session.open_pictures(old, a=page.uploaded(path)), on.open[0])
    connect(on.open[1].upload, lambda old, path: session.open_pictures(old, b=page.uploaded(path)), on.open[1])
    connect.clicks(on.a.select, lambda old, index: session.add_point(old, pictures.click_to_pixel(index, old.a.size)))
    connect.clicks(
        on.b.select, lambda old, index: session.annotate_point(old, pictures.click_to_pixel(index, old.b.size))
    )
    for button, change in zip(on.edit, (session.flip_target, session.undo, session.clear_points), strict=True):
        connect(button.click, change)
    for name, button in on.pairs.items():
        connect(button.click, lambda old, name=name: page.example(old, name))
    for button, make in zip(on.save, (page.json, page.png), strict=True):
        download = button.click(page.export(make), [on.state, on.of], on.file, api_visibility="private", **ONE)
        download.then(None, on.file, None, js=SAVE)


class _Wires:
    """Connects gradio's events to handlers of the page, each with the settings as inputs and the displayed outputs."""

    def __init__(self, page: PageEvents, inputs: list[object], outputs: list[object]) -> None:
        self.page, self.given, self.seen = page, inputs, outputs

    def __call__(
        self, trigger: object, change: Callable[..., Session], *others: object, progress: str = "minimal"
    ) -> None:
        handler = self.page.event(change)

        def handle(state: object, opacity: float, of: str, *values: object) -> tuple[object, ...]:
            return handler(state, opacity, of, *values)

        self._connect(trigger, handle, others, progress)

    def load(self, trigger: object) -> None:
        """Connect the loading of the page, which also lists the models that exist now."""
        import gradio as gr

        handler = self.page.event(lambda old: old, begin=True)

        def handle(state: object, opacity: float, of: str) -> tuple[object, ...]:
            key, model, *others = handler(state, opacity, of)
            return key, gr.update(choices=self.page.choices.names(), value=model), *others

        self._connect(trigger, handle, (), "minimal")

    def clicks(self, trigger: object, change: Callable[..., Session]) -> None:
        """Connect clicks on a picture, whose position is passed to `change`."""
        import gradio as gr

        handler = self.page.event(change)

        def handle(state: object, opacity: float, of: str, at: gr.SelectData) -> tuple[object, ...]:
            return handler(state, opacity, of, at.index)

        handle.__annotations__["at"] = gr.SelectData
        self._connect(trigger, handle, (), "minimal")

    def _connect(
        self, trigger: object, handler: Callable[..., object], others: tuple[object, ...], progress: str
    ) -> None:
        trigger(
            handler, [*self.given, *others], self.seen, show_progress=progress, show_progress_on=self.seen[4],
            api_visibility="private", **ONE,
        )  # fmt: skip
