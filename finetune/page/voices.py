"""The saved voices as the page sees them: names from a list, never paths; saved, renamed, deleted."""

from dataclasses import dataclass
from pathlib import Path

from vallex.errors import PromptError
from vallex.inference.prompts import VoicePrompt, list_prompts, load_prompt, prompt_path, save_prompt


@dataclass(frozen=True, kw_only=True)
class VoiceRow:
    """A saved voice; `fault` says why it cannot be used, or is empty."""

    name: str
    seconds: float = 0.0
    language: str = ""
    transcript: str = ""
    is_toy: bool = False
    fault: str = ""


class VoiceShelf:
    """The voices in a folder."""

    def __init__(self, folder: Path, *, toy_codec: bool):
        self.folder = folder
        self._toy_codec = toy_codec

    def names(self) -> list[str]:
        """The names of all voices."""
        return [path.stem for path in list_prompts(self.folder)]

    def rows(self) -> list[VoiceRow]:
        """All voices, those that cannot be used with the reason."""
        return [self._row(name) for name in self.names()]

    def path(self, name: str) -> Path:
        """The file of a voice; PromptError where there is none."""
        return self._known(name)

    def load(self, name: str) -> VoicePrompt:
        """A voice by name; PromptError where there is none, or its codes are a toy's and the codec is not."""
        prompt = load_prompt(self._known(name))
        if prompt.toy and not self._toy_codec:
            raise PromptError(
                f"voice {name!r}: made with toy weights, its codes are noise to the real model. Make it again"
            )
        return prompt

    def save(self, name: str, prompt: VoicePrompt) -> None:
        """Keeps a voice under a new name."""
        save_prompt(self._free(name), prompt)

    def take(self, path: Path, name: str) -> None:
        """Keeps the voice in an `.npz` file that somebody sent, under a new name."""
        try:
            prompt = load_prompt(path)
        except PromptError as error:
            raise PromptError(f"{name}.npz: {str(error).replace(str(path), 'the file')}") from error
        self.save(name, prompt)

    def rename(self, name: str, new_name: str) -> None:
        """Gives a voice another name."""
        old, new = self._known(name), self._free(new_name)
        old.rename(new)

    def delete(self, name: str) -> None:
        """Deletes a voice."""
        self._known(name).unlink()

    def _row(self, name: str) -> VoiceRow:
        try:
            prompt = load_prompt(prompt_path(name, self.folder))
        except PromptError as error:
            return VoiceRow(name=name, fault=str(error))
        return VoiceRow(
            name=name,
            seconds=prompt.seconds,
            language=str(prompt.language),
            transcript=prompt.transcript,
            is_toy=prompt.toy,
        )

    def _known(self, name: str) -> Path:
        if name not in self.names():
            known = ", ".join(self.names()) or "none"
            raise PromptError(f"voice {name!r} is not saved here; there are {known}")
        return prompt_path(name, self.folder)

    def _free(self, name: str) -> Path:
        path = prompt_path(name.strip(), self.folder)
        if path.exists():
            raise PromptError(f"voice {name!r} is there already; take another name, or delete it first")
        return path
