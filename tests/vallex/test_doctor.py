"""`vallex doctor`: what it shows of a machine, a checkpoint, a prompt and a text, and what it refuses."""

from pathlib import Path

import pytest
import torch
import typer
from rich.console import Console
from typer.testing import CliRunner

from vallex import doctor
from vallex.cli import add_verbs
from vallex.errors import CheckpointError, PromptError
from vallex.inference.prompts import VoicePrompt, save_prompt
from vallex.languages import Language
from vallex.model.checkpoint import save_model
from vallex.model.toy import toy_model
from vallex.sources import COMPONENTS


def run_verb(*words: object):
    app = typer.Typer()
    add_verbs(app, lambda name, runs: Path(name), lambda path, options: False)
    return CliRunner().invoke(app, ["doctor", *map(str, words)], env={"COLUMNS": "140"})


def printed(table) -> str:
    console = Console(width=140)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "toy.safetensors"
    model = toy_model()
    model.provenance |= {"run": "an\x1b[31mna", "data": "d" * 1000}
    save_model(model, path)
    return path


def test_environment_when_no_weights_are_there_then_how_to_get_them(tmp_path):
    environment = doctor.describe_environment(tmp_path / "not" / "there")
    assert environment.free_bytes > 0
    assert environment.versions["torch"].startswith(torch.__version__.partition("+")[0])
    assert {name: len(paths) for name, paths in environment.missing.items()} == {
        name: len(component.files) for name, component in COMPONENTS.items()
    }
    shown = printed(doctor.environment_table(environment))
    assert "not there (1482 MB): vallex download" in shown
    assert "not there (402 MB): vallex download --only speaker" in shown


def test_environment_when_weights_are_there_then_where_and_what_is_missing(tmp_path):
    for path in COMPONENTS["codec"].paths(tmp_path) + COMPONENTS["vocoder"].paths(tmp_path)[:1]:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    environment = doctor.describe_environment(tmp_path)
    assert environment.missing["codec"] == ()
    assert environment.missing["vocoder"] == (tmp_path / "vocos-encodec-24khz" / "pytorch_model.bin",)
    shown = printed(doctor.environment_table(environment))
    assert f"in {tmp_path}/" in shown
    assert "pytorch_model.bin is missing (40 MB): vallex download" in shown


def test_verb_when_nothing_is_named_then_this_machine():
    result = run_verb()
    assert result.exit_code == 0
    assert "This machine" in result.output and "cpu: " in result.output


def test_verb_when_a_checkpoint_is_named_then_its_sizes_and_nothing_that_steers_a_terminal(checkpoint):
    result = run_verb(checkpoint)
    assert result.exit_code == 0
    for part in (
        "128",
        "3 in each decoder",
        "4 (recorded in the file)",
        "en, zh, ja",
        "would load it wrongly",
    ):
        assert part in result.output
    assert "run: an\ufffd[31mna" in result.output
    assert "\x1b" not in result.output
    assert "toy weights: what you hear is noise" in result.output
    assert result.output.count("d" * 50) < 10


def test_verb_when_heads_do_not_fit_then_the_error_of_loading(checkpoint):
    result = run_verb(checkpoint, "--heads", 3)
    assert isinstance(result.exception, CheckpointError)
    assert "num_heads is 3" in str(result.exception)


def test_verb_when_a_prompt_is_named_then_its_length_and_language(tmp_path):
    prompt = VoicePrompt(
        codes=torch.zeros(150, 8, dtype=torch.long),
        text=torch.arange(5, 25),
        language=Language.ZH,
        toy=True,
        transcript="你好\x1b[2J",
    )
    save_prompt(tmp_path / "anna.npz", prompt)
    result = run_verb(tmp_path / "anna.npz")
    assert result.exit_code == 0
    for part in ("2.00 s", "[150, 8]", "20 phonemes, zh", "你好\ufffd[2J", "toy weights"):
        assert part in result.output


def test_verb_when_the_prompt_is_damaged_then_its_error(tmp_path):
    (tmp_path / "anna.npz").write_bytes(b"PK")
    result = run_verb(tmp_path / "anna.npz")
    assert isinstance(result.exception, PromptError)


def test_verb_when_a_text_is_given_then_phonemes_ids_and_what_is_lost():
    result = run_verb("--text", "[EN]☃ Hello xyzzq.[EN]")
    assert result.exit_code == 0
    lines = {
        line.split("│")[1].strip(): line.split("│")[2].strip() for line in result.output.splitlines()[2:-1]
    }
    assert lines["phonemes"] == "hɛˈloʊ xyzzq*."
    assert lines["ids"] == "14: 24 49 62 28 31 58 16 38 39 40 40 0 7 10"
    assert lines["languages"] == "en (14)"
    assert (lines["unknown words"], lines["unknown phonemes"], lines["dropped"]) == ("xyzzq", "q", "☃")


@pytest.mark.parametrize(("blocks", "exit_code"), [(False, 0), (True, 1)])
def test_verb_when_a_folder_of_recordings_is_named_then_it_is_looked_at(tmp_path, blocks, exit_code):
    seen = []
    app = typer.Typer()
    add_verbs(
        app, lambda name, runs: Path(name), lambda path, options: seen.append((path, options.html)) or blocks
    )
    result = CliRunner().invoke(app, ["doctor", str(tmp_path)])
    assert (seen, result.exit_code) == ([(tmp_path, False)], exit_code)
