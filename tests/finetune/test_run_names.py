"""RUN, RUN@best, RUN@chosen, RUN@last and RUN@1200 wherever a checkpoint is asked for."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from finetune.cli import main
from finetune.display import Display
from finetune.page.checkpoints import find_choice, list_choices
from finetune.page.settings import PageSettings
from finetune.results import read_result, write_result
from finetune.run import finetune
from finetune.scoring.run_scores import ScoreSettings, find_target
from vallex.errors import CheckpointError
from vallex.model.checkpoint import load_model

STEPS = {"anna": 2, "anna@chosen": 2, "anna@best": 4, "anna@last": 4, "anna@2": 2, "anna@4": 4}
"""At which step of its NAR each checkpoint of the run was written."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_spec, make_config):
    """A folder with runs/anna, four steps long, whose step 2 is chosen."""
    folder = tmp_path_factory.mktemp("named")
    stage = {"max_steps": 4, "accumulate": 1, "validate_every": 2}
    finetune(make_spec(folder / "runs", "anna", config=make_config(ar=stage, nar=stage)), Display())
    run_dir = folder / "runs" / "anna"
    write_result(run_dir, replace(read_result(run_dir), chosen="nar-step-2.safetensors"))
    return folder


@pytest.fixture
def vallex(folder, monkeypatch, capsys):
    def call(*arguments: object) -> str:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
        monkeypatch.setattr(sys, "argv", ["vallex", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert (ended.value.code, err) == (0, "")
        return out

    return call


@pytest.mark.parametrize("ref", STEPS)
def test_export_and_doctor_of_a_name_take_that_checkpoint(vallex, folder, tmp_path, ref):
    vallex("export", ref, tmp_path / "out.safetensors", "--format", "safetensors")
    exported = load_model(tmp_path / "out.safetensors")
    source = load_model(folder / "runs" / "anna" / "checkpoints" / f"nar-step-{STEPS[ref]}.safetensors")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in exported.state_dict().items())
    assert "anna" in vallex("doctor", ref)


@pytest.mark.parametrize("ref", ["anna", "anna@4", "runs/anna@chosen"])
def test_finetune_begins_with_the_checkpoint_of_a_name(vallex, folder, tiny_prepared, ref):
    name = f"from-{ref.replace('/', '-').replace('@', '-')}"
    settings = ("--set=max_steps=1", "--set=max_batch_sec=1")
    vallex("finetune", tiny_prepared, "--preset=smoke", "--init", ref, "--name", name, *settings)
    init = read_result(folder / "runs" / name).init["path"]
    assert init.endswith(f"runs/anna/checkpoints/nar-step-{STEPS[ref.removeprefix('runs/')]}.safetensors")


@pytest.mark.parametrize("ref", ["anna@last", "anna@2"])
def test_say_speaks_by_the_checkpoint_of_a_name(vallex, tmp_path, ref):
    vallex("say", "Hi.", "--checkpoint", ref, "--offline-toy", "-o", tmp_path / "x.wav")
    assert (tmp_path / "x.wav").stat().st_size > 44


@pytest.mark.parametrize("ref", [ref for ref in STEPS if "@" in ref])
def test_evaluate_scores_the_checkpoint_of_a_name(folder, ref):
    target = find_target(ref, folder / "runs", base=None, prepared=None, settings=ScoreSettings())
    [file] = target.files.values()
    assert file.samefile(folder / "runs" / "anna" / "checkpoints" / f"nar-step-{STEPS[ref]}.safetensors")


def test_page_offers_and_takes_every_checkpoint_of_a_run(folder):
    folders = {f"{name}_dir": folder / name for name in ("runs", "prompts", "data", "checkpoints")}
    settings = PageSettings(offline_toy=True, **folders)
    names = [choice.name for choice in list_choices(settings) if choice.name.startswith("anna@")]
    assert names == ["anna@chosen", "anna@best", "anna@last", "anna@2", "anna@4"]
    for ref, step in STEPS.items():
        wanted = folder / "runs" / "anna" / "checkpoints" / f"nar-step-{step}.safetensors"
        assert find_choice(ref, settings).path.samefile(wanted)
    with pytest.raises(CheckpointError, match=r"'anna@7' is not known; there are toy, .*anna@4"):
        find_choice("anna@7", settings)


def test_list_of_a_run_that_was_begun_with_another_shows_it(vallex, folder):
    rows = json.loads(vallex("runs", "list", "--json", "--columns", "name,init", "--filter", "init~anna"))
    assert all("checkpoints/nar-step" in row["init"] for row in rows)
