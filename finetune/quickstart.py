"""The whole job on the shipped sample, as the commands a user would type: what is shown is what is run."""

from importlib.resources import files
from pathlib import Path

PRESET = "smoke"
SENTENCE = "The kettle is singing, and the whole house smells of bread."


def sample_folder() -> Path:
    """The shipped sample, in LibriTTS layout."""
    return Path(str(files("finetune"))) / "sample" / "LibriTTS-sample"


def sample_voice() -> Path:
    """The clip whose voice is cloned: the longest of the sample's validation part."""
    clips = sorted((sample_folder() / "dev-clean").rglob("*.wav"))
    return max(clips, key=lambda path: path.stat().st_size)


def quickstart_commands(out: Path, run_name: str, *, is_toy: bool) -> list[list[str]]:
    """The arguments of `vallex`, command by command: prepare, fine-tune, list, speak.

    out: the folder that everything is made in
    is_toy: run on toy weights, because there are no others
    """
    prepared, runs = str(out / "prepared"), str(out / "runs")
    toy = ["--offline-toy"] if is_toy else []
    speak = ["say", SENTENCE, "--voice", str(sample_voice()), "--checkpoint", run_name, "--runs", runs]
    return [
        ["prepare", str(sample_folder()), prepared, *toy],
        ["finetune", prepared, "--preset", PRESET, "--name", run_name, "--runs", runs, *toy],
        ["runs", "list", "--runs", runs],
        [*speak, *toy, "-o", str(out / f"{run_name}.wav")],
    ]
