"""What stands above the Clone tab while weights are missing: what they are, how large, and a download."""

import html
from collections.abc import Callable, Iterator, Sequence

import gradio as gr

from finetune.page.tabs.words import bad, connect, good, plain, told
from finetune.page.tasks import Task
from finetune.page.weights import WeightsDesk
from vallex.errors import WeightsError
from vallex.sources import DEFAULT_COMPONENTS, HUB, Component

_POLL_SEC = 0.5
_NOT_HAD = (
    "Not all of it could be fetched. Is this machine connected to the internet? Try again later: what came "
    "is kept, and gone on from."
)


class WeightsPanel:
    """The widgets, and what they do; made where Gradio's cursor stands."""

    def __init__(self, desk: WeightsDesk):
        self._desk = desk
        missing = desk.missing()
        with gr.Accordion(
            _title(missing), open=is_needed(missing), visible=bool(missing), elem_id="weights"
        ) as self.box:
            self.names = gr.CheckboxGroup(
                _choices(missing), value=_wanted(missing), label="Not here yet", elem_id="missing"
            )
            self._mirror = gr.Textbox(
                label="Another source, if the usual one cannot be reached",
                placeholder=f"an address that stands for {HUB}",
                visible=desk.takes_mirrors,
            )
            with gr.Row():
                self._fetch = gr.Button(
                    "Download", variant="primary" if is_needed(missing) else "secondary", min_width=140
                )
                self._stop = gr.Button("Stop the download", min_width=140, interactive=False)
        self._status = gr.HTML(elem_id="weights-status")

    def connect(self, refreshed: Callable, inputs: list, outputs: list) -> None:
        """refreshed: what else is brought up to date when something has come; its values of inputs."""

        @told
        def fetching(names, mirror, *values) -> Iterator:
            task, is_own = self._desk.task(names, (mirror or "").strip())
            rest = [gr.skip()] * (len(self.outputs) - 1 + len(outputs))
            yield plain("Asking for it …"), gr.update(interactive=is_own), *rest
            while not task.wait(_POLL_SEC):
                yield progress_view(task), gr.skip(), *rest
            yield _ended(task), gr.update(interactive=False), *self.opened(names)[:-1], *refreshed(*values)

        shown = [self._status, self._stop, *self.outputs[:-1], *outputs]
        connect(self._fetch.click, fetching, [self.names, self._mirror, *inputs], shown)
        connect(self._stop.click, self._desk.stop)

    @property
    def outputs(self) -> list[gr.components.Component]:
        """What `opened` fills."""
        return [self.box, self.names, self._fetch, self._status]

    def opened(self, chosen: Sequence[str] = ()) -> tuple:
        """The box as it is now; what was chosen and has not come stays chosen."""
        missing = self._desk.missing()
        left = [component.name for component in missing if component.name in chosen]
        return (
            gr.update(label=_title(missing), open=is_needed(missing), visible=bool(missing)),
            gr.update(choices=_choices(missing), value=left or _wanted(missing)),
            gr.update(variant="primary" if is_needed(missing) else "secondary"),
            plain("A download is under way; press Download to follow it.") if self._desk.is_busy else "",
        )


def is_needed(missing: list[Component]) -> bool:
    """Whether nothing can be spoken without what is missing."""
    return any(component.name in DEFAULT_COMPONENTS for component in missing)


def progress_view(task: Task) -> str:
    """How far a download is."""
    if task.stop.is_set():
        return plain("Stopping …")
    if not task.total:
        return plain("Asking for it …")
    done, total = round(task.done / 1e6), round(task.total / 1e6)
    return plain(f"{task.what}: {done:,} of {total:,} MB") + (
        f'<progress aria-label="{html.escape(task.what)}" value="{task.done}" max="{task.total}"></progress>'
    )


def _ended(task: Task) -> str:
    if task.is_stopped:
        return plain("Stopped. What came is kept, and gone on from.")
    if isinstance(task.error, WeightsError):
        tried = html.escape(str(task.error).partition(". Try again (")[0])
        return bad(_NOT_HAD) + f'<details class="note"><summary>What was tried</summary>{tried}</details>'
    if task.error is not None:
        return bad(str(task.error))
    return good("It is here now.")


def _title(missing: list[Component]) -> str:
    if is_needed(missing):
        return "Download the released weights"
    return "Weights that are not here yet"


def _choices(missing: list[Component]) -> list[tuple[str, str]]:
    said = {one.name: f"{one.what} ({one.about_mb:,} MB, {one.licence})" for one in missing}
    return [(f"{text[0].upper()}{text[1:]}", name) for name, text in said.items()]


def _wanted(missing: list[Component]) -> list[str]:
    return [component.name for component in missing if component.name in DEFAULT_COMPONENTS]
