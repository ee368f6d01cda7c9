"""The page in gradio: its components and the handlers of their events; nothing is computed here.

Events run one at a time, and clicks wait in a queue: none is lost, and none sees a half-changed session.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from semcorr.app import render as pictures
from semcorr.app import session
from semcorr.app.bounded import IDLE
from semcorr.app.handlers import BOXES, Outputs, PageEvents
from semcorr.app.session import Session
from semcorr.core.text_files import JsonObject

if TYPE_CHECKING:
    import gradio as gr
    from gradio.components import Component
    from gradio.events import Dependency

Trigger = Callable[..., "Dependency"]  # `click`, `change`, ... of a component
SERIAL_EVENT: JsonObject = {"concurrency_id": "model", "concurrency_limit": 1, "trigger_mode": "multiple"}
SAVE = """([name, url]) => {
  if (url) { const a = document.createElement('a'); a.href = url; a.download = name; a.click(); }
}"""
# A file dropped on a picture is given to that side's button. Elsewhere it would take the browser away from the page.
DROP = """() => {
  const side = (event) => event.target.closest?.('#a, #b');
  const mark = (event, on) => document.querySelectorAll('#a, #b').forEach(
    (picture) => picture.classList.toggle('over', on && picture === side(event)));
  document.addEventListener('dragover', (event) => { event.preventDefault(); mark(event, true); });
  document.addEventListener('dragleave', (event) => mark(event, false));
  document.addEventListener('drop', (event) => {
    event.preventDefault();
    mark(event, false);
    const picture = side(event), files = event.dataTransfer.files;
    if (!picture || !files.length) { alert('Drop a picture file on the left or right picture.'); return; }
    if (files.length > 1) { alert('Drop one picture at a time.'); return; }
    let input = document.getElementById('open-' + picture.id);
    while (!input.matches('input[type=file]')) input = input.previousElementSibling;
    input.files = files;
    input.dispatchEvent(new Event('change', { bubbles: true }));
  });
}"""
TITLE = "<h1>semcorr</h1><p>Click a point on the left; see where it is on the right. Drop pictures of your own.</p>"
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]


class PageComponents(NamedTuple):
    """The components that events read or write."""

    state: "gr.State"
    model: "gr.Dropdown"
    a: "gr.Image"
    b: "gr.Image"
    hint: "gr.HTML"
    table: "gr.HTML"
    pck: "gr.HTML"
    opacity: "gr.Slider"
    of: "gr.Radio"
    file: "gr.JSON"
    open: "tuple[gr.UploadButton, gr.UploadButton]"  # left, right
    edit: "tuple[gr.Button, gr.Button, gr.Button]"  # mirror, undo, clear
    save: "tuple[gr.Button, gr.Button]"  # JSON, PNG
    pairs: "dict[str, gr.Button]"  # examples

    @property
    def outputs(self) -> "list[Component]":
        """The components that display a session, in the order of `handlers.Outputs`."""
        return [self.state, self.model, self.a, self.b, self.hint, self.table, self.pck]


def build_page(page: PageEvents) -> "gr.Blocks":
    """Build the page."""
    import gradio as gr

    with gr.Blocks(title="semcorr", analytics_enabled=False, fill_width=True) as blocks:
        connect_events(page, build_components(page), blocks)
    return blocks


def build_components(page: PageEvents) -> PageComponents:
    """Lay out the components."""
    import gradio as gr

    image: JsonObject = {"interactive": False, "show_label": False, "buttons": [], "container": False, "format": "jpeg"}
    with gr.Row(elem_id="top"):
        gr.HTML(TITLE, elem_id="title")
        model = gr.Dropdown(
            page.choices.names(),
            value=page.choices.model,
            elem_id="model",
            label="Model: a backbone, or a run",
            allow_custom_value=False,
        )
    with gr.Row(elem_id="pictures"):
        a = gr.Image(**image, elem_id="a", alt_text="left picture: click to ask for a point")
        b = gr.Image(**image, elem_id="b", alt_text="right picture: click where a point truly is")
    hint = gr.HTML(elem_id="hint")
    with gr.Row(elem_id="tools"):
        left, right = (
            gr.UploadButton(f"Open {side}…", size="sm", elem_id=f"open-{picture}")
            for side, picture in (("left", "a"), ("right", "b"))
        )
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


def connect_events(page: PageEvents, on: PageComponents, blocks: "gr.Blocks") -> None:
    """Connect the events of the components to their handlers."""
    connect = _Wires(page, [on.state, on.opacity, on.of], on.outputs)
    connect.load(blocks.load)
    blocks.load(None, None, None, js=DROP)
    for trigger in (on.opacity.release, on.of.change):
        connect(trigger, lambda state: state)
    connect(on.model.input, page.choose, on.model, progress="full")
    connect(on.open[0].upload, lambda state, path: session.open_pictures(state, a=page.load_upload(path)), on.open[0])
    connect(on.open[1].upload, lambda state, path: session.open_pictures(state, b=page.load_upload(path)), on.open[1])
    connect.clicks(
        on.a.select, lambda state, index: session.add_point(state, pictures.click_to_pixel(index, state.a.size))
    )
    connect.clicks(
        on.b.select, lambda state, index: session.annotate_point(state, pictures.click_to_pixel(index, state.b.size))
    )
    for button, change in zip(on.edit, (session.flip_target, session.undo, session.clear_points), strict=True):
        connect(button.click, change)
    for name, button in on.pairs.items():
        connect(button.click, lambda state, name=name: page.open_example(state, name))
    for button, make in zip(on.save, (page.json, page.png), strict=True):
        download = button.click(page.export(make), [on.state, on.of], on.file, api_visibility="private", **SERIAL_EVENT)
        download.then(None, on.file, None, js=SAVE)


class _Wires:
    """Connects gradio's events to handlers of the page, each with the settings as inputs and the displayed outputs."""

    def __init__(self, page: PageEvents, inputs: "list[Component]", outputs: "list[Component]") -> None:
        self.page, self.inputs, self.outputs = page, inputs, outputs

    def __call__(
        self, trigger: Trigger, change: Callable[..., Session], *others: "Component", progress: str = "minimal"
    ) -> None:
        """Connect an event; the values of other components are passed to `change`."""
        handler = self.page.build_handler(change)

        def handle(key: str | None, opacity: float, of: str, *values: object) -> Outputs:
            return handler(key, opacity, of, *values)

        self._connect(trigger, handle, others, progress)

    def load(self, trigger: Trigger) -> None:
        """Connect the loading of the page, which also lists the models that exist now."""
        import gradio as gr

        handler = self.page.build_handler(lambda state: state, begin=True)

        def handle(key: str | None, opacity: float, of: str) -> tuple[object, ...]:
            new_key, model, *others = handler(key, opacity, of)
            return new_key, gr.update(choices=self.page.choices.names(), value=model), *others

        self._connect(trigger, handle, (), "minimal")

    def clicks(self, trigger: Trigger, change: Callable[..., Session]) -> None:
        """Connect clicks on a picture, whose position is passed to `change`."""
        import gradio as gr

        handler = self.page.build_handler(change)

        def handle(key: str | None, opacity: float, of: str, click: gr.SelectData) -> Outputs:
            return handler(key, opacity, of, click.index)

        handle.__annotations__["click"] = gr.SelectData
        self._connect(trigger, handle, (), "minimal")

    def _connect(
        self,
        trigger: Trigger,
        handler: Callable[..., tuple[object, ...]],
        others: "tuple[Component, ...]",
        progress: str,
    ) -> None:
        trigger(
            handler,
            [*self.inputs, *others],
            self.outputs,
            show_progress=progress,
            show_progress_on=self.outputs[4],
            api_visibility="private",
            **SERIAL_EVENT,
        )
