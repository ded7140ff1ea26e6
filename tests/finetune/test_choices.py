"""What a run can choose, seen in its files: adapters, averages, early stopping, collation, kept steps."""

import io
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from stopping import StopAt

from finetune.config import CollationConfig, preset_names, preset_stages, resolve_config
from finetune.data.dataset import BatchSettings, CodesDataset, valid_batches
from finetune.data.prepared import load_prepared
from finetune.display import Display
from finetune.evaluate import evaluate
from finetune.log.tables import run_tables
from finetune.results import read_result, resolve_checkpoint
from finetune.run import finetune
from vallex.errors import CheckpointError, ConfigError, TrainingError
from vallex.model.checkpoint import load_model, save_model
from vallex.text import TextCollator

LORA = {"lora_rank": 2, "lora_alpha": 4.0, "lr": 1e-2}
RISING = {"lr": 0.2, "schedule": "constant", "validate_every": 1}
"""A rate so high that the validation loss soon rises."""


class Notes(Display):
    """Keeps what is told."""

    def __init__(self):
        self.lines: list[str] = []

    def note(self, text):
        self.lines.append(text)

    def stage_started(self, stage, step, total_steps, groups):
        self.lines.append(groups)


@pytest.fixture
def run(make_spec, make_config, tmp_path):
    """Runs with other settings than usual; returns the run's folder."""

    def run_with(name="run", *, stages=("ar",), display=None, resume=False, init=None, **changes):
        spec = make_spec(tmp_path / "runs", name, config=make_config(**changes), stages=stages)
        spec = spec if init is None else replace(spec, init=init)
        finetune(spec, display or Display(), resume=resume)
        return spec.runs_dir / spec.name

    return run_with


@pytest.fixture
def score(tiny_prepared):
    """The validation loss of a checkpoint."""

    def loss_of(path, stage):
        collator = TextCollator()
        dataset = CodesDataset(load_prepared(tiny_prepared).valid, collator)
        return evaluate(
            load_model(path), valid_batches(dataset, BatchSettings(max_duration_sec=1.0)), stage
        ).loss

    return loss_of


def phase(run_dir, stage):
    return next(phase for phase in read_result(run_dir).phases if phase.phase == stage)


def checkpoints(run_dir) -> set[str]:
    return {path.name for path in (run_dir / "checkpoints").iterdir()}


def test_adapter_run_of_both_stages_saves_adapters_alone_that_stand_for_the_model(
    run, score, tiny_checkpoint
):
    run_dir = run(stages=("ar", "nar"), ar=LORA, nar=LORA | {"lora_targets": "linear1"})
    assert checkpoints(run_dir) == {
        f"{s}-{n}" for s in ("ar", "nar") for n in ("best", "last", "step-4", "step-6")
    }
    for stage in ("ar", "nar"):
        best = phase(run_dir, stage).best
        assert best["loss"] < phase(run_dir, stage).base["loss"]
        assert score(run_dir / "checkpoints" / best["checkpoint"], stage) == pytest.approx(
            best["loss"], rel=1e-5
        )
    # the NAR's files hold the AR's best adapter too
    assert score(run_dir, "ar") == pytest.approx(phase(run_dir, "ar").best["loss"], rel=1e-5)
    assert resolve_checkpoint("run@best", run_dir.parent).parent.name == "nar-best"
    assert resolve_checkpoint("run@6", run_dir.parent).parent.name == "nar-step-6"
    both = load_file(run_dir / "checkpoints/nar-best/adapter_model.safetensors")
    assert {name.split(".")[2] for name in both} == {"ar", "nar"}
    assert sum(v.numel() for v in both.values()) < 0.1 * sum(
        v.numel() for v in load_file(tiny_checkpoint).values()
    )
    config = json.loads((run_dir / "checkpoints/nar-best/adapter_config.json").read_text())
    assert (config["peft_type"], config["base_model_name_or_path"]) == ("LORA", str(tiny_checkpoint))


def test_adapter_run_stopped_and_resumed_is_as_one_never_stopped(run):
    settings = {
        "stages": ("ar", "nar"),
        "ar": LORA | {"average": "ema"},
        "nar": LORA | {"average": "running", "average_period": 2},
    }
    unbroken = run("unbroken", **settings)
    stopped = run("stopped", display=StopAt("ar", 3), **settings)
    assert read_result(stopped).status == "stopped"
    run("stopped", resume=True, **settings)
    for stage in ("ar", "nar"):
        assert phase(stopped, stage).best == phase(unbroken, stage).best
        for name in ("best", "last"):
            files = [
                load_file(d / f"checkpoints/{stage}-{name}/adapter_model.safetensors")
                for d in (unbroken, stopped)
            ]
            assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])


def test_adapter_after_a_whole_ar_is_beside_it_and_moves_with_the_run(run, score, tmp_path):
    run_dir = run(stages=("ar", "nar"), nar=LORA)
    assert {"ar-best.safetensors", "nar-best"} <= checkpoints(run_dir)
    moved = run_dir.rename(tmp_path / "moved")
    assert score(moved, "ar") == pytest.approx(phase(moved, "ar").best["loss"], rel=1e-6)
    assert score(moved, "nar") == pytest.approx(phase(moved, "nar").best["loss"], rel=1e-5)


def test_whole_nar_after_an_adapter_of_the_ar_holds_both(run, score):
    run_dir = run(stages=("ar", "nar"), ar=LORA)
    assert {"ar-best", "nar-best.safetensors"} <= checkpoints(run_dir)
    assert score(run_dir, "ar") == pytest.approx(phase(run_dir, "ar").best["loss"], rel=1e-5)


def test_adapter_of_a_model_with_a_prenet_scores_as_was_recorded(run, score, make_model, tmp_path):
    save_model(make_model(add_prenet=True), tmp_path / "prenet.safetensors")
    # its file holds no statistics: those of the base must not have moved beneath it
    run_dir = run(ar=LORA, init=tmp_path / "prenet.safetensors")
    assert score(run_dir, "ar") == pytest.approx(phase(run_dir, "ar").best["loss"], rel=1e-5)


def test_adapter_run_begun_from_an_adapter_is_refused_before_a_folder_is_made(run, tmp_path):
    first = run("first", ar=LORA)
    with pytest.raises(
        ConfigError, match=r"ar-best/adapter_model\.safetensors is an adapter, and adapters are not stacked"
    ):
        run("second", ar=LORA, init=resolve_checkpoint("first", first.parent))
    assert not (first.parent / "second").exists()
    # but training whole weights may go on from it
    assert phase(run("third", init=first), "ar").base["loss"] == pytest.approx(
        phase(first, "ar").best["loss"], rel=1e-5
    )


def test_average_when_lower_is_best_and_its_weights_are_saved(run, score, read_log):
    run_dir = run(ar=RISING | {"average": "running", "average_period": 1})
    best = phase(run_dir, "ar").best
    assert best["weights"] == "running"
    assert score(run_dir / "checkpoints/ar-best.safetensors", "ar") == best["loss"]
    last = phase(run_dir, "ar").last
    assert (last["weights"], last["step"]) == ("raw", 6)
    assert score(run_dir / "checkpoints/ar-last.safetensors", "ar") == last["loss"]
    lines = [line for line in read_log(run_dir) if line["kind"] == "valid-average"]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert best["loss"] == min(line["loss"] for line in lines)


def test_average_when_higher_then_raw_weights_are_best(run):
    best = phase(run(ar={"lr": 5e-3, "average": "running", "average_period": 2}), "ar").best
    assert (best["weights"], best["step"]) == ("raw", 6)


def test_patience_when_out_then_the_stage_ends_as_done_and_says_so(run):
    display = Notes()
    run_dir = run(ar=RISING | {"patience": 2, "max_steps": 30}, display=display)
    result = phase(run_dir, "ar")
    assert (result.status, read_result(run_dir).status) == ("done", "done")
    assert result.steps == result.best["step"] + 2 < 30
    assert f"AR: ended at step {result.steps}, 2 validations after its best" in display.lines


def test_patience_when_stopped_and_resumed_then_goes_on_counting(run, read_log):
    settings = {"ar": RISING | {"patience": 3, "max_steps": 30}}
    unbroken = run("unbroken", **settings)
    best, ended = phase(unbroken, "ar").best["step"], phase(unbroken, "ar").steps
    assert ended == best + 3
    for num_since_best in (1, 2):
        name = f"after-{num_since_best}"
        stopped = run(name, display=StopAt("ar", best + num_since_best), **settings)
        assert phase(stopped, "ar").status == "stopped"
        run(name, resume=True, **settings)
        assert phase(stopped, "ar").steps == ended
        assert read_log(stopped) == read_log(unbroken)


def test_keep_when_set_then_the_newest_steps_stay(run):
    every = {"validate_every": 1}
    assert checkpoints(run("none", keep=0, ar=every)) == {"ar-best.safetensors", "ar-last.safetensors"}
    kept = checkpoints(run("three", keep=3, ar=every))
    assert {name for name in kept if "step" in name} == {f"ar-step-{n}.safetensors" for n in (4, 5, 6)}


def test_untied_heads_when_trained_then_leave_the_embeddings(run, read_weights, tiny_checkpoint):
    before = read_weights(tiny_checkpoint)
    for name, changes in (
        ("set", {"untie_heads": True}),
        ("heads", {"nar": {"train": "heads-untied", "lr": 1e-2}}),
    ):
        run_dir = run(name, stages=("nar",), **changes)
        model = load_model(run_dir)
        assert not model.config.share_embedding
        with pytest.raises(CheckpointError, match="its NAR heads are untied"):
            save_model(model, run_dir / "export.pt", format="released")
        assert (
            phase(run_dir, "nar").base["loss"]
            == phase(run("plain" + name, stages=("nar",)), "nar").base["loss"]
        )
    after = read_weights(run_dir / "checkpoints/nar-last.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith("nar.predict_layers.") for name in moved)


def test_heads_when_trained_then_the_table_says_what_is_tied(run):
    display = Notes()
    run(stages=("nar",), display=display, nar={"train": "heads"})
    assert "nar.audio_embeddings.2.weight = nar.predict_layers.0.weight" in display.lines[0]
    assert any(line.split()[:3] == ["heads", "7", "229,376"] for line in display.lines[0].splitlines())


def test_head_that_a_step_does_not_draw_when_alone_then_trains_all_the_same(
    run, read_weights, tiny_checkpoint
):
    run_dir = run(
        stages=("nar",),
        nar={"train": "nar.predict_layers.6.weight", "lr": 1e-2, "accumulate": 1, "max_steps": 12},
    )
    before, after = read_weights(tiny_checkpoint), read_weights(run_dir / "checkpoints/nar-last.safetensors")
    assert [name for name in before if not torch.equal(before[name], after[name])] == [
        "nar.predict_layers.6.weight"
    ]


def test_lr_factors_when_an_adapter_is_trained_then_are_of_its_tensors(run):
    display = Notes()
    factors = LORA | {"lr": 1e-3, "lr_factors": "*.lora_B.*=16"}
    one = run("one", ar=factors, display=display)
    assert {line.split()[-1] for line in display.lines[0].splitlines() if "lora" in line} == {
        "0.001",
        "0.016",
    }
    assert phase(one, "ar").best["loss"] != phase(run("plain", ar=LORA | {"lr": 1e-3}), "ar").best["loss"]
    with pytest.raises(ConfigError, match=r"ar\.lr_factors has '\*norm\*', which matches no name of what is"):
        run("wrong", ar=LORA | {"lr_factors": "*norm*=0.5"})


def test_schedule_when_noam_then_the_table_has_its_true_peak(run, read_log):
    display = Notes()
    noam = {"schedule": "noam", "lr": 0.01, "warmup_steps": 2, "lr_factors": "*embedding*=0.5"}
    log = read_log(run(ar=noam, display=display))
    peak = max(line["lr"] for line in log if line["kind"] == "train")
    assert peak == pytest.approx(0.01 * (32 * 2) ** -0.5)
    assert f"adamw at lr {peak:g}," in display.lines[0]
    assert {line.split()[-1] for line in display.lines[0].splitlines()[2:-1]} == {
        f"{peak:g}",
        f"{peak / 2:g}",
    }


def test_lr_factors_when_given_then_move_less(run, read_weights, tiny_checkpoint):
    before = read_weights(tiny_checkpoint)
    name = "ar.text_embedding.weight"
    common = {"optimizer": "torch.SGD", "clip_norm": 0.0, "max_steps": 1, "warmup_steps": 0, "lr": 1e-2}
    moved = [
        (read_weights(run(str(i), ar=common | {"lr_factors": factors}))[name] - before[name]).norm().item()
        for i, factors in enumerate(("", "ar.text_embedding.*=0.25"))
    ]
    assert moved[1] == pytest.approx(0.25 * moved[0], rel=1e-2)


def test_gradient_checkpointing_when_on_then_the_run_is_the_same(run, read_weights, monkeypatch):
    import vallex.model.layers

    calls, original = [], vallex.model.layers.checkpoint
    monkeypatch.setattr(
        vallex.model.layers, "checkpoint", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    with_it = read_weights(run("with", gradient_checkpointing=True))
    assert len(calls) == 13  # of one layer, in two batches a step, and once to see what it takes
    without = read_weights(run("without"))
    assert len(calls) == 13
    assert all(torch.equal(with_it[name], without[name]) for name in without)


@pytest.mark.parametrize("adapter", [{}, LORA], ids=["whole", "adapter"])
def test_gradient_checkpointing_when_on_then_both_stages_and_their_adapters_are_the_same(
    run, read_log, read_weights, adapter
):
    own = adapter | {"max_steps": 4}
    with_it, without = (
        run(str(is_on), stages=("ar", "nar"), gradient_checkpointing=is_on, ar=own, nar=own)
        for is_on in (True, False)
    )
    assert read_log(with_it) == read_log(without)
    weights, other = read_weights(with_it), read_weights(without)
    assert all(torch.equal(weights[name], other[name]) for name in other)


def test_from_scratch_when_on_then_only_the_sizes_are_the_checkpoints(run, tiny_checkpoint):
    plain, scratch = run("plain"), run("scratch", from_scratch=True, seed=3)
    assert phase(plain, "ar").base["loss"] != phase(scratch, "ar").base["loss"]
    assert load_model(scratch).config.d_model == load_model(tiny_checkpoint).config.d_model
    assert not read_result(scratch).toy


def test_collation_when_set_then_recorded_and_kept_by_what_goes_on(run):
    first = run("first", collation=CollationConfig(bos=True))
    model = load_model(first)
    assert (model.config.text_bos, model.config.text_eos) == (True, False)
    second = run("second", init=first, collation=CollationConfig(eos=True))
    assert (load_model(second).config.text_bos, load_model(second).config.text_eos) == (True, True)
    assert phase(second, "ar").base["loss"] == phase(first, "ar").best["loss"]
    with pytest.raises(
        ConfigError, match=r"collation\.bos is false, but the checkpoint was trained with BOS"
    ):
        run("third", init=first, collation=CollationConfig(bos=False))
    assert not (first.parent / "third").exists()


def test_collation_when_set_then_the_base_is_scored_as_it_was_trained(run):
    bos = {"collation": CollationConfig(bos=True)}
    plain, taught = run("plain", stages=("ar", "nar")), run("taught", stages=("ar", "nar"), **bos)
    stopped = run("stopped", stages=("ar", "nar"), display=StopAt("ar", 3), **bos)
    run("stopped", stages=("ar", "nar"), resume=True, **bos)
    for stage in ("ar", "nar"):
        assert phase(stopped, stage).best == phase(taught, stage).best != phase(plain, stage).best
    # that of the NAR has its own half untouched, whatever the AR was taught
    assert phase(taught, "ar").base == phase(plain, "ar").base
    assert phase(taught, "nar").base == phase(plain, "nar").base
    for run_dir in (taught, stopped):
        for path in (run_dir / "checkpoints").iterdir():
            assert load_model(path).config.text_bos, path


@pytest.mark.parametrize(("stage", "other"), [("ar", "NAR"), ("nar", "AR")])
def test_collation_when_one_stage_is_taught_it_then_the_other_is_named(run, notes, stage, other):
    first = run("first", stages=(stage,), display=notes, collation=CollationConfig(eos=True))
    assert len([line for line in notes.lines if f"the {other} will read it too" in line]) == 1
    notes.lines.clear()
    run("second", stages=(stage,), display=notes, init=first, collation=CollationConfig(eos=True))
    assert not [line for line in notes.lines if "will read it too" in line]


def test_untouched_model_whose_loss_is_not_finite_fails_at_once(run, make_model, tmp_path, read_log):
    model = make_model()
    with torch.no_grad():
        model.ar.predict_layer.weight[0, 0] = float("nan")
    save_model(model, tmp_path / "damaged.safetensors")
    with pytest.raises(TrainingError, match="validation loss of the untouched model is nan"):
        run("damaged", init=tmp_path / "damaged.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ar": {"lora_rank": 2, "train": "heads"}}, r"ar\.train is 'heads' and ar\.lora_rank 2"),
        (
            {"ar": {"lora_rank": 2, "lora_targets": "heads"}},
            r"lora_targets has 'heads'; there are in_proj, out_",
        ),
        ({"ar": {"lora_rank": 2, "lora_alpha": 0.0}}, r"ar\.lora_alpha is 0"),
        (
            {"ar": {"lora_alpha": 32.0}},
            r"ar\.lora_alpha is 32\.0 and lora_rank 0: there is no adapter; set lora_r",
        ),
        (
            {"ar": {"optimizer": "torch.SGD", "beta1": 0.5, "weight_decay": 0.1}},
            r"optimizer 'torch\.SGD' has no use for beta1=0\.5; leave that out",
        ),
        (
            {"ar": {"optimizer": "scaled-adam", "weight_decay": 0.1}},
            r"optimizer 'scaled-adam' has no use for weight_decay=0\.1",
        ),
        (
            {"ar": {"lora_rank": 2, "optimizer": "scaled-adam"}},
            r"ar\.optimizer is scaled-adam and ar\.lora_rank 2: .* an adapter begins at zero; take adamw",
        ),
        (
            {"ar": {"optimizer": "eve", "weight_decay": 0.5}},
            r"^eve: weight_decay is 0\.5; it is of one step, and must lie in 0\.\.0\.1$",
        ),
        (
            {"ar": {"optimizer": "torch.Muon"}},
            r"optimizer 'torch\.Muon' cannot train this: .* 2D parameters .*\. Choose by `train` what it can",
        ),
        ({"ar": {"lora_rank": 2}, "from_scratch": True}, r"from_scratch and ar\.lora_rank"),
        ({"ar": {"train": "heads"}, "from_scratch": True}, r"from_scratch and ar\.train=heads"),
        ({"untie_heads": True}, r"untie_heads is true, but only the AR is trained"),
        ({"ar": {"train": "ar.decoder.layer.*"}}, r"'ar\.decoder\.layer\.\*', which matches no name"),
        (
            {"ar": {"optimizer": "torch.Nadam"}},
            r"optimizer 'torch\.Nadam' is not known; .* Did you mean torch\.NAdam",
        ),
    ],
)
def test_settings_that_exclude_each_other_are_refused_before_a_folder_is_made(
    run, tmp_path, changes, message
):
    with pytest.raises(ConfigError, match=message):
        run("refused", **changes)
    assert not (tmp_path / "runs/refused").exists()


@pytest.mark.parametrize("name", preset_names())
def test_preset_when_run_then_trains_what_it_is_for(make_spec, tmp_path, name):
    few = ["max_steps=2", "validate_every=1", "max_batch_sec=2", "log_every=1", "evaluation=none"]
    spec = make_spec(tmp_path, config=resolve_config(name, few), stages=preset_stages(name), preset=name)
    result = finetune(spec, Display())
    assert [(phase.phase, phase.status, phase.steps) for phase in result.phases] == [
        (stage, "done", 2) for stage in preset_stages(name)
    ]


@pytest.mark.parametrize("size", ["losses", "quick"])
def test_evaluation_when_chosen_then_the_run_is_scored_so(run, size):
    result = read_result(run(evaluation=size))
    assert (result.status, result.evaluation.size, result.evaluation_note) == ("done", size, None)
    assert result.evaluation.teacher_forced["valid"]["systems"].keys() == {"base", "ar-best"}


def test_untied_heads_with_an_adapter_are_refused(run):
    with pytest.raises(ConfigError, match=r"untied heads and nar\.lora_rank"):
        run("refused", stages=("nar",), untie_heads=True, nar=LORA)


def test_average_when_best_then_the_tables_say_so(run):
    run_dir = run(ar=RISING | {"average": "running", "average_period": 1})
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(run_tables(read_result(run_dir)))
    assert "best (running)" in console.export_text()


def test_max_faults_when_none_then_the_first_fault_ends_the_run(run, monkeypatch):
    from finetune import stepping

    normalize = stepping._normalize
    monkeypatch.setattr(stepping, "_normalize", lambda *of: (normalize(*of)[0], False))
    with pytest.raises(TrainingError, match=r"at step 1: first in the sum of the losses\."):
        run("none", max_faults=0)
    with pytest.raises(TrainingError, match=r"at step 3: "):
        run("two", max_faults=2)


def test_samples_and_trackers_when_asked_for_then_leave_files(run, tmp_path, monkeypatch):
    from finetune import tracking

    asked = []
    monkeypatch.setattr(tracking, "make_speaker", lambda *of: asked.append(of[2]) or "nobody speaks")
    path = run("run", samples=3, trackers="tensorboard", stages=("ar",))
    assert asked == [3]
    assert list((path / "logs/ar/vallex").iterdir())
