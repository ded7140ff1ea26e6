"""A run whose data or checkpoint lie elsewhere now goes on with them, if they are what they were."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from stopping import StopAt

from finetune.cli import run_command
from finetune.config import resolve_config
from finetune.display import Display
from finetune.results import read_result
from finetune.run import finetune
from finetune.scoring.run_scores import ScoreSettings, find_target
from vallex.errors import ConfigError, RunError
from vallex.model.checkpoint import load_model


@pytest.fixture
def places(tiny_prepared, tiny_checkpoint, tmp_path):
    """A prepared set and a checkpoint that can be moved."""
    data = Path(shutil.copytree(tiny_prepared, tmp_path / "old/set"))
    return data, Path(shutil.copy(tiny_checkpoint, tmp_path / "old/init.safetensors"))


@pytest.fixture
def stopped(make_spec, make_config, places, tmp_path):
    """Begins a run with them and stops it; they are moved, and told where."""

    def begin(config=None):
        data, init = places
        finetune(
            make_spec(tmp_path / "runs", prepared=data, init=init, config=config or make_config()),
            StopAt("ar", 3),
        )
        (tmp_path / "old").rename(tmp_path / "new")
        return tmp_path / "new/set", tmp_path / "new/init.safetensors"

    return begin


def go_on(*arguments) -> int:
    return run_command(["finetune", *map(str, arguments)])


def recorded(run_dir: Path) -> dict:
    config, result = json.loads((run_dir / "config.json").read_text()), read_result(run_dir)
    assert (config["prepared"], config["init"]) == (result.data["path"], result.init["path"])
    return {name: Path(config[name]) for name in ("prepared", "init")}


@pytest.mark.parametrize("how", ["--resume", "--resume-from"])
def test_run_when_data_and_checkpoint_were_moved_then_goes_on_where_they_are_and_records_it(
    make_spec, make_config, stopped, assert_same_outcome, tmp_path, how
):
    data, init = stopped()
    runs = tmp_path / "runs"
    finetune(make_spec(runs, "whole", prepared=data, init=init, config=make_config()), Display())
    if how == "--resume":
        assert go_on(data, "--init", init, "--resume", "--name", "run", "--runs", runs) == 0
        name = "run"
    else:
        assert go_on(data, "--init", init, how, "run", "--name", "other", "--runs", runs) == 0
        name = "other"
    assert_same_outcome(runs / name, runs / "whole")
    assert recorded(runs / name) == {"prepared": data, "init": init}
    target = find_target(name, runs, base=None, prepared=None, settings=ScoreSettings())
    assert target.prepared == data and target.base() is not None


def test_run_when_moved_and_nothing_is_said_then_says_what_is_gone(stopped, tmp_path):
    stopped()
    with pytest.raises(RunError) as caught:
        go_on("--resume", "--name", "run", "--runs", tmp_path / "runs")
    old = tmp_path / "old"
    assert str(caught.value) == (
        f"run 'run': what it was begun with is not there any more: {old / 'set'} and "
        f"{old / 'init.safetensors'}. Put it back, or say where it lies now: PREPARED and --init CHECKPOINT"
    )


def test_run_when_other_things_lie_where_it_is_told_then_is_refused(
    make_prepared, make_utterances, make_model, stopped, tmp_path
):
    from vallex.model.checkpoint import save_model

    data, init = stopped()
    clips = {"train": make_utterances("a", [30, 40]), "valid": make_utterances("b", [20])}
    other_set = make_prepared(tmp_path / "other-set", clips)
    save_model(make_model(seed=5), tmp_path / "other.safetensors")
    options = ("--name", "run", "--runs", tmp_path / "runs")
    before = (tmp_path / "runs/run/config.json").read_bytes()
    with pytest.raises(ConfigError, match=r"prepared is .*old/set, not .*other-set\. Leave them out"):
        go_on(other_set, "--init", init, "--resume", *options)
    with pytest.raises(ConfigError, match=r"init is .*old/init\.safetensors, not .*other\.safetensors"):
        go_on(data, "--init", tmp_path / "other.safetensors", "--resume", *options)
    assert (tmp_path / "runs/run/config.json").read_bytes() == before


def test_run_of_adapters_when_its_checkpoint_was_moved_then_they_find_their_base(stopped, tmp_path):
    overrides = ["max_steps=5", "max_batch_sec=1", "lr=1e-2", "validate_every=2", "evaluation=none"]
    data, init = stopped(resolve_config("lora-small", [*overrides, "samples=0", "trackers=none"]))
    assert go_on(data, "--init", init, "--resume", "--name", "run", "--runs", tmp_path / "runs") == 0
    adapters = sorted((tmp_path / "runs/run/checkpoints").glob("*/adapter_model.safetensors"))
    assert {path.parent.name for path in adapters} >= {"ar-best", "ar-last", "nar-best", "nar-last"}
    for path in adapters:
        with safe_open(path, framework="pt") as opened:
            assert json.loads(opened.metadata()["vallex_base"])["path"] == str(init)
        assert json.loads((path.parent / "adapter_config.json").read_text())[
            "base_model_name_or_path"
        ] == str(init)
        load_model(path)
