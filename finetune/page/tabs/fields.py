"""A field for every setting that a run's config knows, made from what the config says of it.

An empty field leaves a setting as the preset has it, so that a run is given only what a person changed.
"""

from collections.abc import Sequence
from dataclasses import Field

import gradio as gr

from finetune.config import STAGES, describe_settings, read_preset, setting_names
from finetune.setting import default_text

_TITLES = {
    "How long": ("max_epochs", "max_steps", "patience", "validate_every", "seed"),
    "How it learns": (
        "lr",
        "schedule",
        "warmup_steps",
        "optimizer",
        "weight_decay",
        "beta1",
        "beta2",
        "clip_norm",
        "lr_factors",
    ),
    "Against learning by heart": ("dropout", "label_smoothing", "average", "average_period", "ema_decay"),
    "Which weights": (
        "train",
        "lora_rank",
        "lora_alpha",
        "lora_dropout",
        "lora_targets",
        "untie_heads",
        "from_scratch",
        "collation.bos",
        "collation.eos",
    ),
    "Memory and speed": (
        "max_batch_sec",
        "accumulate",
        "precision",
        "gradient_checkpointing",
        "compile",
        "num_buckets",
    ),
}
_REST = "What is kept and told"


def setting_groups() -> dict[str, list[str]]:
    """The settings under titles for people; what has no title of its own is under the last."""
    names = [row[0] for row in describe_settings()]
    groups = {title: [name for name in own if name in names] for title, own in _TITLES.items()}
    placed = {name for own in groups.values() for name in own}
    return groups | {_REST: [name for name in names if name not in placed]}


class SettingFields:
    """The fields of all settings; made where Gradio's cursor stands, folded, for a preset."""

    def __init__(self, preset: str):
        self.names: list[str] = []
        self.fields: list[gr.components.Component] = []
        about = {row[0]: f"{_plain(row[3])}; {row[2]}" for row in describe_settings()}
        for title, names in setting_groups().items():
            with gr.Accordion(title, open=False), gr.Row():
                for name in names:
                    self.names.append(name)
                    self.fields.append(_field(name, about[name], preset))

    def changed(self, preset: str) -> list[dict]:
        """What the fields say of another preset; what a person has written stays."""
        return [_shown(name, preset) for name in self.names]

    def overrides(self, values: Sequence[str | None]) -> list[str]:
        """`key=value` of each field that was filled in."""
        given = zip(self.names, values, strict=True)
        return [f"{name}={str(value).strip()}" for name, value in given if str(value or "").strip()]


def _field(name: str, about: str, preset: str) -> gr.components.Component:
    shown = _shown(name, preset)
    common = {"label": name, "info": about, "min_width": 220, "elem_id": f"set-{name.replace('.', '-')}"}
    if "choices" not in shown:
        return gr.Textbox(placeholder=shown["placeholder"], max_lines=1, **common)
    is_open = bool(_field_of(name).metadata["open_prefix"])
    return gr.Dropdown(shown["choices"], value="", allow_custom_value=is_open, **common)


def _plain(markdown: str) -> str:
    """A help text for a field, which takes two stars in a line for emphasis, and shows no line separator."""
    return markdown.replace("`", "").replace("*", "*\u2028")


def _shown(name: str, preset: str) -> dict:
    """What a field shows while it is empty: the value that holds then."""
    field, holds = _field_of(name), f"preset: {_preset_text(name, preset)}"
    words = list(field.metadata["choices"])
    if isinstance(field.default, bool) or "bool" in str(field.type):
        words = ["true", "false", *(["none"] if field.default is None else [])]
    if not words:
        return gr.update(placeholder=holds)
    return gr.update(choices=[(holds, ""), *((word, word) for word in words)])


def _preset_text(name: str, preset: str) -> str:
    """The value of a setting in a preset; of both stages, where they differ."""
    values = read_preset(preset)
    names = [name] if name in setting_names() else [f"{stage}.{name}" for stage in STAGES]
    texts = [_text(values[full]) if full in values else default_text(_field_of(name)) for full in names]
    texts = ["nothing" if text in ("", "''") else text for text in texts]
    return texts[0] if len(set(texts)) == 1 else f"{texts[0]} AR, {texts[1]} NAR"


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _field_of(name: str) -> Field:
    known = setting_names()
    return known[name] if name in known else known[f"{STAGES[0]}.{name}"]
