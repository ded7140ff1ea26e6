"""The page as a whole: its tabs in the order in which a person needs them, its look, and words for errors.

Fonts are those of the machine: the page fetches nothing from elsewhere.
"""

import gradio as gr

from finetune.page.engine import Engine
from finetune.page.tabs import clone
from finetune.page.voices import VoiceShelf
from vallex.codec import TOY_NOTICE

FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
THEME = gr.themes.Default(primary_hue="orange", neutral_hue="stone", font=FONT, font_mono=MONO)
HEAD = '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
CSS = """
.gradio-container > main, .gradio-container .app { max-width: 1180px !important; width: 100% !important;
  margin: 0 auto !important; }
.status { min-height: 1.6em; padding: .35em .1em; }
.status .bad { color: #b91c1c; } .dark .status .bad { color: #fca5a5; }
.status .good { color: #15803d; } .dark .status .good { color: #86efac; }
.note { opacity: .85; font-size: .92em; }
.toy { border: 1px solid #ca8a04; border-radius: 8px; padding: .4em .8em; margin: .3em 0; }
.player audio { width: 100%; }
.sound img { width: 100%; border-radius: 8px; display: block; }
.curves { margin: 0 0 1em; } .curves figcaption { font-weight: 600; margin-bottom: .3em; }
.curves svg { width: 100%; height: auto; } .legend { display: flex; flex-wrap: wrap; gap: .2em 1.2em; }
.legend svg { width: 26px; display: inline; vertical-align: middle; }
.empty { border: 1px dashed currentColor; border-radius: 8px; padding: 1em; opacity: .8; }
table.plain { border-collapse: collapse; width: 100%; }
table.plain th, table.plain td { text-align: left; padding: .3em .7em .3em 0; vertical-align: top; }
table.plain td { border-top: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
.scroll { overflow-x: auto; }
:focus-visible { outline: 2px solid #c2410c !important; outline-offset: 2px; }
@media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important; } }
"""


def build_page(engine: Engine, shelf: VoiceShelf) -> gr.Blocks:
    """All tabs. A value chosen in one is passed on to the next."""
    with gr.Blocks(
        title="vallex", delete_cache=(3600, 86400), analytics_enabled=False, fill_width=True
    ) as page:
        gr.Markdown("# vallex\nClone a voice, fine-tune the model on it, and hear whether it got better.")
        if engine.settings.offline_toy:
            gr.HTML(f'<div class="toy" role="note">Started with {TOY_NOTICE}.</div>', padding=False)
        with gr.Tabs(), gr.Tab("Clone", id="clone"):
            clone.build(page, engine, shelf)
    return page
