"""The two folded sections of the Clone tab: how a text is spoken beside its voice and checkpoint."""

import secrets
from dataclasses import dataclass

import gradio as gr

from finetune.page.checkpoints import FULL_STRENGTH, precisions_here
from finetune.page.settings import MAX_BEST_OF, PageSettings
from finetune.page.tabs.voice import LANGUAGES
from vallex.inference.synthesizer import SpeakSettings

AS_WRITTEN = "as written"
ACCENTS = [("As written", AS_WRITTEN), ("English", "en"), ("Chinese", "zh"), ("Japanese", "ja")]
UNKNOWN_WORDS = [("As learned", "keep"), ("Spelled out", "spell")]
MODES = [("The voice", "fixed"), ("The one before", "sliding")]
VOCODERS = [("Vocos", "vocos"), ("EnCodec’s own", "encodec")]
MAX_SEED = 2**31 - 1
MAX_REDRAWS = 10


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What is chosen beside text, voice and checkpoint, as the widgets hold it; in their order."""

    language: str
    accent: str
    seed: float | None
    is_seed_new: bool
    best_of: float
    temperature: float
    top_p: float
    strength: float
    top_k: float
    repetition_penalty: float
    repetition_aware: float
    redraws: float
    mode: str
    unknown_words: str
    precision: str
    vocoder: str

    def settings(self) -> SpeakSettings:
        """How to speak, with a seed that is drawn here where a new one is wanted."""
        return SpeakSettings(
            language=self.language,
            accent=None if self.accent == AS_WRITTEN else self.accent,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=int(self.top_k) or None,
            repetition_penalty=self.repetition_penalty,
            repetition_aware=self.repetition_aware or None,
            best_of=int(self.best_of),
            max_redraws=int(self.redraws),
            seed=secrets.randbelow(MAX_SEED) if self.is_seed_new else int(self.seed or 0),
        )


def choice_widgets(settings: PageSettings) -> dict[str, gr.components.Component]:
    """By the names of Choices, in its order; precision and vocoder begin as the page was started."""
    with gr.Accordion("More choices", open=False):
        often = _often_wanted()
    with gr.Accordion("Rarely needed", open=False):
        return often | _rarely_wanted(settings)


def _often_wanted() -> dict[str, gr.components.Component]:
    w: dict[str, gr.components.Component] = {}
    with gr.Row():
        w["language"] = gr.Dropdown(LANGUAGES, value="auto", label="Text language", min_width=140)
        w["accent"] = gr.Dropdown(ACCENTS, value=AS_WRITTEN, label="Accent", min_width=140)
    with gr.Row():
        w["seed"] = gr.Number(
            0, precision=0, minimum=0, maximum=MAX_SEED, label="Seed", min_width=140, elem_id="seed"
        )
        w["is_seed_new"] = gr.Checkbox(True, label="A new seed each time", min_width=140)
    w["best_of"] = _slider("Best of", 1, MAX_BEST_OF, 1, 1, "Draws of each sentence; the likeliest is kept.")
    w["temperature"] = _slider("Temperature", 0, 2, 1.0, 0.05, "Lower is steadier; 0 is always the same.")
    w["top_p"] = _slider("Top-p", 0.05, 1, 1.0, 0.05, "Only the likeliest that reach this share together.")
    w["strength"] = _slider("Adapter strength", 0, 1.5, FULL_STRENGTH, 0.05, "Of LoRA checkpoints only.")
    return w


def _rarely_wanted(settings: PageSettings) -> dict[str, gr.components.Component]:
    w: dict[str, gr.components.Component] = {}
    w["top_k"] = _slider("Top-k", 0, 1024, 0, 1, "Only so many of the likeliest; 0 is all.")
    w["repetition_penalty"] = _slider(
        "Repetition penalty", 1, 2, 1.0, 0.05, "Against codes of the last second; 1 is none."
    )
    w["repetition_aware"] = _slider(
        "Repetition-aware", 0, 0.5, 0, 0.05, "VALL-E 2 takes 0.1, with a top-p of 0.8 or less; 0 is off."
    )
    w["redraws"] = _slider("Redraws", 0, MAX_REDRAWS, 3, 1, "Of what loops, runs on or says nothing.")
    with gr.Row():
        w["mode"] = gr.Dropdown(MODES, value="fixed", label="Each sentence follows", min_width=140)
        w["unknown_words"] = gr.Dropdown(
            UNKNOWN_WORDS, value="keep", label="Words in no dictionary", min_width=140
        )
    with gr.Row():
        names = precisions_here()
        precision = settings.precision if settings.precision in names else names[0]
        w["precision"] = gr.Dropdown(names, value=precision, label="Precision", min_width=140)
        w["vocoder"] = gr.Dropdown(VOCODERS, value=settings.vocoder, label="Vocoder", min_width=140)
    return w


def _slider(label: str, low: float, high: float, value: float, step: float, info: str) -> gr.Slider:
    return gr.Slider(low, high, value=value, step=step, label=label, info=info)
