"""The page as a whole: its tabs in the order in which a person needs them, its look, and words for errors.

Fonts are those of the machine: the page fetches nothing from elsewhere.
"""

from collections.abc import Callable

import gradio as gr

from finetune.page.datasets import DataDesk
from finetune.page.engine import Engine
from finetune.page.published import Published
from finetune.page.tabs import clone, compare, data, train
from finetune.page.tabs.results import ResultsPanel
from finetune.page.tabs.words import Opening, connect
from finetune.page.training import TrainingDesk
from finetune.page.voices import VoiceShelf
from vallex.codec import TOY_NOTICE

FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
THEME = gr.themes.Default(primary_hue="orange", neutral_hue="stone", font=FONT, font_mono=MONO).set(
    # an empty box must be seen on a dark page too
    checkbox_border_color_dark="*neutral_400",
    # what explains, and what stands on the button of the screen, at 4.5 to 1 or more
    block_info_text_color="*neutral_500",
    body_text_color_subdued="*neutral_500",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_800",
    link_text_color_dark="#93c5fd",
    link_text_color_hover_dark="#bfdbfe",
    link_text_color_visited_dark="#93c5fd",
    button_cancel_background_fill="#b91c1c",
    button_cancel_background_fill_hover="#991b1b",
)
HEAD = """<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">
<script>
  // Ctrl+Enter speaks; Escape stops what is under way, unless it closes a list
  const press = (buttons) => {
    [...document.querySelectorAll(buttons)].find((b) => b.offsetParent && !b.disabled)?.click();
  };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) press("button.begins-work");
    if (event.key !== "Escape" || event.target.matches("[aria-expanded=true], [role=listbox] *")) return;
    press("button.ends-work");
  }, true);
  // a file of a folder is sent under its place in the folder, which only its name can tell
  document.addEventListener("change", (event) => {
    if (!event.target.matches?.("#data-folder input[type=file]")) return;
    const named = new DataTransfer();
    for (const file of event.target.files)
      named.items.add(new File([file], file.webkitRelativePath || file.name, { type: file.type }));
    event.target.files = named.files;
  }, true);
</script>"""
READY = "() => { document.documentElement.dataset.ready = 'yes' }"
CSS = """
html:not([data-ready]) .gradio-container { cursor: progress; }
.gradio-container > main, .gradio-container .app { max-width: 1180px !important; width: 100% !important;
  margin: 0 auto !important; }
.status { min-height: 1.6em; padding: .35em .1em; }
.status .bad { color: #b91c1c; } .dark .status .bad { color: #fca5a5; }
.status .good { color: #15803d; } .dark .status .good { color: #86efac; }
.note { opacity: .85; font-size: .92em; }
.toy { border: 1px solid #ca8a04; border-radius: 8px; padding: .4em .8em; margin: .3em 0; }
progress { display: block; width: 100%; height: .7em; appearance: none; border: 0; border-radius: 4px;
  background: #8884; }
progress::-webkit-progress-bar { background: #8884; border-radius: 4px; }
progress::-webkit-progress-value { background: #c2410c; border-radius: 4px; }
progress::-moz-progress-bar { background: #c2410c; border-radius: 4px; }
.printed pre { overflow-x: auto; font-size: .85em; }
#data-folder .wrap { font-size: 0; line-height: 0; }
#data-folder .wrap::after { content: "Click to choose a folder"; font-size: 1rem; line-height: 2; }
summary { cursor: pointer; }
.player audio { width: 100%; }
.downloads { display: flex; flex-wrap: wrap; align-items: center; gap: .6em; }
.downloads a { padding: .45em 1.1em; border-radius: 8px; font-weight: 600; text-decoration: none;
  color: var(--button-secondary-text-color) !important; background: var(--button-secondary-background-fill); }
.downloads a:hover { background: var(--button-secondary-background-fill-hover); }
.sound img { width: 100%; border-radius: 8px; display: block; }
.curves { margin: 0 0 1em; max-width: 760px; } .curves figcaption { font-weight: 600; margin-bottom: .3em; }
.curves svg { width: 100%; height: auto; } .legend { display: flex; flex-wrap: wrap; gap: .2em 1.2em; }
.legend svg { width: 26px; display: inline; vertical-align: middle; }
@media (max-width: 600px) { .curves svg[role] text { font-size: 21px; }
  .curves svg .axis { display: none; } }
.empty { border: 1px dashed currentColor; border-radius: 8px; padding: 1em; opacity: .8; }
.middle { align-items: center; }
.gradio-container input[type=range]::-webkit-slider-thumb { box-shadow: 0 0 0 1px #78716c; }
.gradio-container input[type=range]::-moz-range-thumb { box-shadow: 0 0 0 1px #78716c; }
.side { display: flex; flex-wrap: wrap; gap: 1em; } .side > div { flex: 1 1 260px; }
iframe.report { width: 100%; height: min(80vh, 900px); border: 1px solid #8884; border-radius: 8px; }
.gradio-container .html-container { padding: 0 !important; }
.block:has(> .html-container > .prose:empty) { display: none; } /* what is empty leaves no gap */
.gradio-container table.plain { border-collapse: collapse; width: 100%; margin: 0; border: 0 !important; }
.gradio-container table.plain :is(th, td) { text-align: left; padding: .35em .8em .35em 0 !important;
  vertical-align: top; border: 0 !important; background: none !important; }
.gradio-container table.plain tr { border: 0 !important; }
.gradio-container .prose:has(table.plain) table { border: 0 !important; }
.gradio-container table.plain td { overflow-wrap: break-word; }
.gradio-container table.plain :is(td, th[scope=row]) { border-top: 1px solid #8885 !important; }
.scroll { overflow-x: auto; }
:focus-visible { outline: 2px solid #c2410c !important; outline-offset: 2px; }
@media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important; } }
"""


def build_page(engine: Engine, shelf: VoiceShelf, published: Published) -> gr.Blocks:
    """All tabs. A value chosen in one is passed on to the next."""
    with gr.Blocks(
        title="vallex", delete_cache=(3600, 86400), analytics_enabled=False, fill_width=True
    ) as page:
        gr.Markdown("# vallex\nClone a voice, fine-tune the model on it, and hear whether it got better.")
        if engine.settings.offline_toy:
            gr.HTML(f'<div class="toy" role="note">Started with {TOY_NOTICE}.</div>', padding=False)
        with gr.Tabs():
            with gr.Tab("Clone", id="clone") as clone_tab:
                openings = {clone_tab: clone.build(page, engine, shelf, published)}
            with gr.Tab("Compare", id="compare") as compare_tab:
                openings[compare_tab] = compare.build(engine, shelf)
            with gr.Tab("Data", id="data") as data_tab:
                # made before its place: what is prepared in one tab is chosen in the next
                data_place = gr.Column()
            with gr.Tab("Train", id="train") as train_tab:
                desk = TrainingDesk(engine.settings)
                prepared, openings[train_tab] = train.build(page, engine, desk, published)
            with data_place:
                openings[data_tab] = data.build(engine, DataDesk(engine.settings), published, prepared)
            with gr.Tab("Results", id="results") as results_tab:
                ResultsPanel(results_tab, engine, published)
        _bring_up_to_date(page, list(openings.values()))
        for tab, opening in openings.items():  # what was made in another tab can be chosen here
            connect(tab.select, _function_of(opening), opening.inputs, opening.outputs)
    return page


def _function_of(opening: Opening) -> Callable:
    """What Gradio calls: of a function with one output it takes a list for the value."""
    return opening.function if len(opening.outputs) > 1 else lambda *values: opening.function(*values)[0]


def _bring_up_to_date(page: gr.Blocks, openings: list[Opening]) -> None:
    """Fills all tabs by one request, then says that the page is ready: what is done to it now is heard."""

    def opened(*values):
        filled = []
        for opening in openings:
            own, values = values[: len(opening.inputs)], values[len(opening.inputs) :]
            filled += opening.function(*own)
        return filled

    page.load(
        opened,
        [widget for opening in openings for widget in opening.inputs],
        [widget for opening in openings for widget in opening.outputs],
        api_visibility="private",
        show_progress="hidden",
        queue=False,
    ).then(None, js=READY, api_visibility="private")
