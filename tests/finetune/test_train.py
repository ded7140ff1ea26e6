"""What a stage trains, what it leaves alone, what it saves, and that a step does not depend on batching."""

import math

import pytest
import torch

from finetune import model_setup, stepping
from finetune.data.dataset import BatchSettings, CodesDataset, count_batches, valid_batches
from finetune.data.prepared import load_prepared
from finetune.display import Display
from finetune.evaluate import evaluate
from finetune.freezing import choose_parameters, freeze_all_but, optimizer_groups
from finetune.results import read_result
from finetune.run import finetune
from vallex.errors import TrainingError
from vallex.model.checkpoint import load_model, save_model
from vallex.text import TextCollator

FILES = {
    "config.json",
    "metrics.jsonl",
    "result.json",
    "state-nar.pt",
    "checkpoints",
    "checkpoints/ar-best.safetensors",
    "checkpoints/ar-last.safetensors",
    "checkpoints/ar-step-5.safetensors",
    "checkpoints/ar-step-6.safetensors",
    "checkpoints/nar-best.safetensors",
    "checkpoints/nar-last.safetensors",
    "checkpoints/nar-step-4.safetensors",
    "checkpoints/nar-step-6.safetensors",
}


@pytest.fixture(scope="module")
def run_dir(make_spec, make_config, tmp_path_factory):
    """A run of both stages, whose learning rate is so high that the AR's best is not its last."""
    config = make_config(ar={"lr": 0.3, "schedule": "constant", "validate_every": 1})
    spec = make_spec(tmp_path_factory.mktemp("runs"), config=config)
    assert finetune(spec, Display()).status == "done"
    return spec.runs_dir / spec.name


@pytest.fixture(scope="module")
def score(tiny_prepared):
    """Evaluates a checkpoint on the tiny validation set."""

    def evaluate_file(path, stage):
        batches = valid_batches(
            CodesDataset(load_prepared(tiny_prepared).valid, TextCollator()),
            BatchSettings(max_duration_sec=1.0),
        )
        return evaluate(load_model(path), batches, stage)

    return evaluate_file


def phase(run_dir, stage):
    [found] = [phase for phase in read_result(run_dir).phases if phase.phase == stage]
    return found


def half(weights, stage):
    return {name: value for name, value in weights.items() if name.startswith(f"{stage}.")}


def differing(weights, others):
    assert weights.keys() == others.keys()
    return [name for name in weights if not torch.equal(weights[name], others[name])]


def test_run_when_done_then_leaves_these_files_and_no_others(run_dir):
    assert {str(path.relative_to(run_dir)) for path in run_dir.rglob("*")} == FILES


def test_run_when_done_then_its_result_is_complete(run_dir):
    result = read_result(run_dir)
    assert (result.status, result.error, result.toy) == ("done", None, False)
    assert [(p.phase, p.status, p.steps) for p in result.phases] == [("ar", "done", 6), ("nar", "done", 6)]
    assert result.seconds > 0
    assert result.data["num_cuts"] == 10
    assert len(result.init["fingerprint"]) == 64
    assert {"vallex", "torch", "python", "device"} <= set(result.versions)


@pytest.mark.parametrize("stage", ["ar", "nar"])
def test_base_when_recorded_then_is_the_untouched_model(run_dir, score, tiny_checkpoint, stage):
    untouched = score(tiny_checkpoint, stage)
    assert phase(run_dir, stage).base == {"loss": untouched.loss, "top10": untouched.top10}


@pytest.mark.parametrize("stage", ["ar", "nar"])
@pytest.mark.parametrize("which", ["best", "last"])
def test_checkpoint_when_loaded_then_scores_as_was_recorded(run_dir, score, stage, which):
    recorded = getattr(phase(run_dir, stage), which)
    loaded = score(run_dir / "checkpoints" / recorded["checkpoint"], stage)
    assert (loaded.loss, loaded.top10) == (recorded["loss"], recorded["top10"])


def test_best_when_recorded_then_is_the_lowest_of_the_log(run_dir, read_log):
    for stage in ("ar", "nar"):
        log = [line for line in read_log(run_dir) if line["stage"] == stage and line["kind"] == "valid"]
        lowest = min(log[1:], key=lambda line: line["loss"])
        best, last = phase(run_dir, stage).best, phase(run_dir, stage).last
        assert (best["step"], best["loss"]) == (lowest["step"], lowest["loss"])
        assert (last["step"], last["loss"]) == (6, log[-1]["loss"])
    assert phase(run_dir, "ar").best["step"] < 6


def test_nar_when_after_the_ar_then_goes_on_from_its_best(run_dir, read_weights):
    best, last = (read_weights(run_dir / f"checkpoints/ar-{which}.safetensors") for which in ("best", "last"))
    assert differing(half(best, "ar"), half(last, "ar"))
    for which in ("best", "last"):
        nar = read_weights(run_dir / f"checkpoints/nar-{which}.safetensors")
        assert not differing(half(nar, "ar"), half(best, "ar"))


def test_ar_when_trained_then_moves_all_of_its_own_and_nothing_else(run_dir, read_weights, tiny_checkpoint):
    before, after = read_weights(tiny_checkpoint), read_weights(run_dir / "checkpoints/ar-last.safetensors")
    moved = differing(before, after)
    assert sorted(moved) == sorted(half(before, "ar"))


def test_nar_when_trained_then_moves_all_but_the_alphas(run_dir, read_weights, tiny_checkpoint):
    before, after = read_weights(tiny_checkpoint), read_weights(run_dir / "checkpoints/nar-last.safetensors")
    moved = set(differing(half(before, "nar"), half(after, "nar")))
    # a step draws one stage, and six steps of two batches need not draw all seven
    unmoved = half(before, "nar").keys() - moved
    assert {"nar.text_position.alpha", "nar.audio_position.alpha"} <= unmoved
    by_stage = ("nar.stage_embeddings.", "nar.predict_layers.", "nar.audio_embeddings.")
    assert all(name.endswith(".alpha") or name.startswith(by_stage) for name in unmoved)


def test_checkpoint_when_written_then_records_what_it_was_made_with(run_dir, tiny_checkpoint):
    model = load_model(run_dir)
    assert model.provenance["stage"] == "nar"
    assert model.provenance["run"] == "run"
    assert model.provenance["step"] == phase(run_dir, "nar").best["step"]
    assert model.provenance["codec"] == {"name": "a test's codec", "fingerprint": "0" * 64, "toy": False}
    assert model.provenance["init"] == str(tiny_checkpoint)


@pytest.mark.parametrize("stage", ["ar", "nar"])
@pytest.mark.parametrize("add_prenet", [False, True])
def test_decay_groups_then_hold_each_parameter_once_and_none_of_one_dimension(make_model, stage, add_prenet):
    model = make_model(add_prenet=add_prenet)
    chosen = choose_parameters(model, stage, "all")
    freeze_all_but(model, chosen)
    decayed, exempt = optimizer_groups(chosen, 1e-3, 0.25)
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.25, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim <= 1 for p in exempt["params"])
    both = [id(p) for p in decayed["params"] + exempt["params"]]
    assert len(set(both)) == len(both)
    assert set(both) == {id(p) for p in model.parameters() if p.requires_grad}


def test_run_when_epochs_are_its_limit_then_goes_through_the_data_as_often(
    make_spec, make_config, tiny_prepared, read_log, tmp_path
):
    config = make_config(ar={"max_epochs": 3, "max_steps": None, "accumulate": 4, "validate_every": 100})
    finetune(make_spec(tmp_path, config=config, stages=("ar",)), Display())
    train_set = load_prepared(tiny_prepared).train
    num_batches = count_batches(train_set, BatchSettings(max_duration_sec=1.0, num_buckets=2), 3)
    steps = [line["step"] for line in read_log(tmp_path / "run") if line["kind"] == "train"]
    # an epoch has 5 batches or so: counted one by one, each would take two steps of four batches
    assert steps == list(range(1, math.ceil(num_batches / 4) + 1))


@pytest.fixture
def plain_gradient_descent(monkeypatch):
    """Steps proportional to gradients: AdamW's first one is little more than their signs."""

    def build(name, groups, lr, betas, weight_decay):
        return torch.optim.SGD([{**group, "weight_decay": 0.0} for group in groups], lr=lr)

    monkeypatch.setattr(model_setup, "build_optimizer", build)


@pytest.mark.parametrize("stage", ["ar", "nar"])
@pytest.mark.parametrize("clip_norm", [0.0, 0.1])
def test_step_when_two_half_batches_are_accumulated_then_equals_one_batch(
    plain_gradient_descent,
    make_prepared,
    make_utterances,
    make_model,
    make_spec,
    make_config,
    read_log,
    read_weights,
    tmp_path,
    stage,
    clip_norm,
):
    init = tmp_path / "init.safetensors"
    # one stage and no prefix: nothing of the NAR's is drawn
    save_model(make_model(num_quantizers=2, prefix_mode=0), init)
    clips = make_utterances("anna", [40, 75])
    prepared = make_prepared(tmp_path / "set", {"train": clips, "valid": make_utterances("dora", [20])})
    weights, logs = [], []
    for name, max_batch_sec, accumulate in (("halves", 1.0, 2), ("whole", 2.0, 1)):
        step = {
            "lr": 1.0,
            "schedule": "constant",
            "warmup_steps": 0,
            "max_steps": 1,
            "accumulate": accumulate,
            "dropout": 0.0,
            "clip_norm": clip_norm,
        }
        config = make_config(**{stage: step}, max_batch_sec=max_batch_sec, num_buckets=1)
        spec = make_spec(tmp_path, name, prepared=prepared, init=init, config=config, stages=(stage,))
        finetune(spec, Display())
        weights.append(half(read_weights(tmp_path / name), stage))
        [log] = [line for line in read_log(tmp_path / name) if line["kind"] == "train"]
        logs.append(log)
    assert logs[0]["loss"] == pytest.approx(logs[1]["loss"], rel=1e-5)
    assert logs[0]["top10"] == logs[1]["top10"]
    assert logs[0]["grad_norm"] == pytest.approx(logs[1]["grad_norm"], rel=1e-4)
    assert len(differing(weights[0], half(read_weights(init), stage))) > 10
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("validate_every", "max_faults", "message"),
    [
        (2, 3, r"the AR validation loss is (nan|inf) at step 4: the learning rate 0\.001 is too high"),
        (3, 0, r"the AR is not finite at step 5: first in the output of ar\..*lower ar\.lr or set precision"),
    ],
)
def test_loss_when_not_finite_then_the_run_fails_and_what_was_saved_is_whole(
    monkeypatch, make_spec, make_config, read_log, score, tmp_path, validate_every, max_faults, message
):
    def explode_at_the_fourth_step(kind, step, **_):
        return 1.0 if step != 3 else 1e30

    monkeypatch.setattr(stepping, "schedule_factor", explode_at_the_fourth_step)
    spec = make_spec(
        tmp_path, config=make_config(ar={"validate_every": validate_every}, max_faults=max_faults)
    )
    with pytest.raises(TrainingError, match=message) as caught:
        finetune(spec, Display())
    result = read_result(tmp_path / "run")
    assert result.status == "failed"
    assert result.error == str(caught.value)
    assert [p.status for p in result.phases] == ["failed", "failed"]
    ar = phase(tmp_path / "run", "ar")
    assert ar.last["step"] == validate_every
    for which in (ar.best, ar.last):
        assert score(tmp_path / "run" / "checkpoints" / which["checkpoint"], "ar").loss == which["loss"]
    assert all(math.isfinite(line.get("loss", 0.0)) for line in read_log(tmp_path / "run"))

    monkeypatch.undo()
    assert finetune(spec, Display(), resume=True).status == "done"
    assert read_result(tmp_path / "run").error is None


@pytest.mark.parametrize("prefix_mode", [0, 2, 4])
@pytest.mark.parametrize("optimizer", ["adamw", "scaled-adam"])
def test_nar_in_other_prefix_modes_when_trained_then_learns(
    make_model, make_spec, make_config, tmp_path, prefix_mode, optimizer
):
    save_model(make_model(prefix_mode=prefix_mode), tmp_path / "init.safetensors")
    config = make_config(nar={"optimizer": optimizer, "lr": 1e-2, "max_steps": 10, "validate_every": 10})
    spec = make_spec(tmp_path, init=tmp_path / "init.safetensors", config=config, stages=("nar",))
    [nar] = finetune(spec, Display()).phases
    assert nar.best["loss"] < nar.base["loss"] - 0.1
    assert load_model(tmp_path / "run").config.prefix_mode == prefix_mode
