"""What all tabs share: errors in plain words, lines of status, empty places that say what to do, and how a
tab is brought up to date when it, or the page, is opened.
"""

import functools
import html
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gradio as gr

from finetune.page.jobs import DONE, FAILED, RUNNING, Job
from vallex.errors import VallexError

GOES_ON = ("import", "prepare", "evaluate")
"""The verbs that do not do again what they have done."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What fills a tab when it or the page opens: `function` makes outputs' values of those of inputs."""

    function: Callable[..., Sequence]
    inputs: Sequence[gr.components.Component]
    outputs: Sequence[gr.components.Component]


def connect(event: Callable, function: Callable, inputs=None, outputs=None, js: str | None = None) -> None:
    """Calls `function` at an event of the page, as often at once as it comes, and by no API.

    js: a function that the browser puts the inputs through first

    What is not `told` is quick, does not fail, and goes past Gradio's queue: the stream of answers from the
    queue is closed whenever nothing is left in it, and what is asked for in that instant is never answered.
    """
    event(
        function,
        inputs,
        outputs,
        js=js,
        api_visibility="private",
        show_progress="hidden",
        queue=hasattr(function, "__wrapped__"),
        concurrency_limit=None,
    )


def told(function: Callable) -> Callable:
    """A callback whose VallexErrors are shown on the page, until they are closed."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def stepping(*args):
            try:
                yield from function(*args)
            except VallexError as error:
                raise _shown(error) from error

        return stepping

    @functools.wraps(function)
    def calling(*args):
        try:
            return function(*args)
        except VallexError as error:
            raise _shown(error) from error

    return calling


def owner_of(request: gr.Request, tab: str) -> str:
    """Whose work it is that a tab of a page asks for, so that its Stop ends that and nothing else."""
    return f"{request.session_hash}/{tab}"


def good(text: str) -> str:
    """A line of status that something is done."""
    return f'<div class="status" role="status"><span class="good">{html.escape(text)}</span></div>'


def bad(text: str) -> str:
    """A line of status that something did not work."""
    return f'<div class="status" role="alert"><span class="bad">{html.escape(text)}</span></div>'


def plain(text: str) -> str:
    """A line of status."""
    return f'<div class="status" role="status">{html.escape(text)}</div>'


def job_view(job: Job, doing: dict[str, str], outcome: str) -> str:
    """How a job stands: how far it is, as a bar too, or how it ended; what it printed is folded below.

    doing: what each verb is called while it runs
    outcome: what came of it, where it is done
    """
    if job.status == RUNNING and job.is_stopping:
        return plain(f"{job.name}: stopping …")
    if job.status == RUNNING:
        return _progress_line(f"{job.name}: {doing.get(job.verb, job.verb)}", job)
    if job.status == FAILED:
        line = bad(f"{job.name}: {job.error}")
    elif job.status == DONE:
        line = good(outcome)
    else:
        kept = " What is done is kept; the next time goes on from there." if job.verb in GOES_ON else ""
        line = plain(f"{job.name}: stopped.{kept}")
    printed = f"<pre>{html.escape(job.log_tail)}</pre>"
    return f'{line}<details class="printed"><summary>What it printed</summary>{printed}</details>'


def _progress_line(doing: str, job: Job) -> str:
    of = f" {job.done} of {job.total}" if job.total else ""
    words = f"{doing}: {job.what}{of} …" if job.what else f"{doing} …"
    if not job.total:
        return plain(words)  # a bar without an end would have to move
    bar = f'<progress value="{job.done}" max="{job.total}" aria-label="{html.escape(words)}"></progress>'
    return plain(words) + bar


def empty(text: str) -> str:
    """What stands where there is nothing yet."""
    return f'<div class="empty">{html.escape(text)}</div>'


def listed(names: list[str], chosen: str | None) -> dict:
    """The choices brought up to date; what is chosen stays untouched where it still can be.

    It may have been chosen while this was on its way, and would be lost.
    """
    if chosen in names:
        return gr.update(choices=names)
    return gr.update(choices=names, value=next(iter(names), None))


def _shown(error: VallexError) -> gr.Error:
    message = html.escape(" ".join(str(error).split()))
    return gr.Error(message, duration=None, print_exception=False)
