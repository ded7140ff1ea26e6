"""The weights that vallex uses: what each file is, where it comes from and lies, its licence.

A table and nothing more; `vallex.download` fetches. A SHA-256 stands here where one was published; for files
of the hub it comes with the hub's answer.
"""

import os
from dataclasses import dataclass
from pathlib import Path

CHECKPOINTS_VARIABLE = "VALLEX_CHECKPOINTS"
CHECKPOINTS_DIR = Path(os.environ.get(CHECKPOINTS_VARIABLE) or "checkpoints")
"""The folder of weights, where no other is asked for."""
HUB = "https://huggingface.co"
ENCODEC_HOST = "https://dl.fbaipublicfiles.com"
DEFAULT_COMPONENTS = ("checkpoint", "codec", "vocoder")
"""What speaking and fine-tuning need; the others only judge."""


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """One file: `name` under the checkpoints folder, `path` under its host."""

    name: str
    path: str
    host: str = HUB
    sha256: str | None = None

    def urls(self, mirror: str | None = None) -> list[str]:
        """Where to ask for it, in order: a mirror stands for the hub, and comes before any other host."""
        if self.host == HUB:
            hosts = [mirror or os.environ.get("HF_ENDPOINT") or HUB]
        else:
            hosts = [mirror, self.host] if mirror else [self.host]
        return [f"{host.rstrip('/')}/{self.path}" for host in hosts]


@dataclass(frozen=True, kw_only=True)
class Component:
    """What is fetched together, under the name that `vallex download --only` takes."""

    name: str
    what: str
    source: str
    licence: str
    about_mb: int
    files: tuple[WeightFile, ...]

    def paths(self, folder: Path | str = CHECKPOINTS_DIR) -> list[Path]:
        """Its files under a checkpoints folder."""
        return [Path(folder) / file.name for file in self.files]

    def is_present(self, folder: Path | str = CHECKPOINTS_DIR) -> bool:
        """Whether every file is there; what is in them is not looked at."""
        return all(path.is_file() for path in self.paths(folder))


def _hub_files(repository: str, names: tuple[str, ...], folder: str) -> tuple[WeightFile, ...]:
    return tuple(
        WeightFile(name=f"{folder}{name}", path=f"{repository}/resolve/main/{name}") for name in names
    )


_WHISPER_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "normalizer.json",
    "model.safetensors",
)

COMPONENTS = {
    component.name: component
    for component in (
        Component(
            name="checkpoint",
            what="the released VALL-E X model",
            source="hub: Plachta/VALL-E-X",
            licence="MIT",
            about_mb=1482,
            files=_hub_files("Plachta/VALL-E-X", ("vallex-checkpoint.pt",), ""),
        ),
        Component(
            name="codec",
            what="EnCodec 24 kHz: sound to codes and back",
            source="facebookresearch/encodec, as its own loader fetches it",
            licence="MIT (of its repository)",
            about_mb=93,
            files=(
                WeightFile(
                    name="encodec_24khz-d7cc33bc.th",
                    path="encodec/v0/encodec_24khz-d7cc33bc.th",
                    host=ENCODEC_HOST,
                    sha256="d7cc33bcf1aad7f2dad9836f36431530744abeace3ca033005e3290ed4fa47bf",
                ),
            ),
        ),
        Component(
            name="vocoder",
            what="Vocos: codes to better sound than the codec's own",
            source="hub: charactr/vocos-encodec-24khz",
            licence="MIT",
            about_mb=40,
            files=_hub_files(
                "charactr/vocos-encodec-24khz", ("config.yaml", "pytorch_model.bin"), "vocos-encodec-24khz/"
            ),
        ),
        Component(
            name="asr",
            what="Whisper small: what is said in a recording",
            source="hub: openai/whisper-small",
            licence="Apache-2.0",
            about_mb=967,
            files=_hub_files("openai/whisper-small", _WHISPER_FILES, "whisper-small/"),
        ),
        Component(
            name="speaker",
            what="WavLM for speaker verification: whether two recordings are of one voice",
            source="hub: microsoft/wavlm-base-plus-sv",
            licence="CC BY-SA 3.0 (of microsoft/UniSpeech)",
            about_mb=402,
            files=_hub_files(
                "microsoft/wavlm-base-plus-sv",
                ("config.json", "preprocessor_config.json", "pytorch_model.bin"),
                "wavlm-base-plus-sv/",
            ),
        ),
    )
}
