"""Settings and presets: each preset loads, each setting does something, each fault is named."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

import finetune.config
from finetune.config import (
    OPTIMIZERS,
    CollationConfig,
    FinetuneConfig,
    StageConfig,
    changed_config,
    describe_settings,
    from_dict,
    preset_about,
    preset_names,
    preset_stages,
    read_preset,
    resolve_config,
    setting_names,
    to_dict,
)
from finetune.display import Display
from finetune.optim import peak_factor
from finetune.run import finetune as run_finetune
from vallex.errors import ConfigError

OTHER_VALUES = {
    "seed": 5,
    "num_buckets": 1,
    "log_every": 2,
    "ar.optimizer": "scaled-adam",
    "ar.lr": 2e-3,
    "ar.weight_decay": 5.0,
    "ar.beta1": 0.2,
    "ar.beta2": 0.2,
    "ar.schedule": "constant",
    "ar.warmup_steps": 0,
    "ar.warmup_share": 1.0,
    "ar.max_epochs": 1,
    "ar.max_steps": 5,
    "ar.max_batch_sec": 2.0,
    "ar.precision": "bf16",
    "ar.accumulate": 1,
    "ar.clip_norm": 0.01,
    "ar.dropout": 0.0,
    "ar.validate_every": 3,
    "ar.label_smoothing": 0.2,
    "ar.train": "heads",
    "ar.lr_factors": "*embedding*=0.1",
    "ar.lora_rank": 2,
    "ar.average": "ema",
    "collation.bos": True,
    "collation.eos": True,
}
"""Of each setting another value than the tests' own runs have."""

ON_TOP_OF = {
    "ar.lora_alpha": ({"lora_rank": 2}, 4.0),
    "ar.lora_dropout": ({"lora_rank": 2}, 0.5),
    "ar.lora_targets": ({"lora_rank": 2}, "linear1"),
    "ar.average_period": ({"average": "running"}, 2),
    "ar.ema_decay": ({"average": "ema"}, 0.2),
    "ar.patience": ({"lr": 0.2, "schedule": "constant", "validate_every": 1}, 1),
}
"""Settings that count only beside others, and another value."""

OF_ANOTHER_TEST = {
    "samples": "test_samples_and_trackers_when_asked_for_then_leave_files",
    "trackers": "test_samples_and_trackers_when_asked_for_then_leave_files",
    "max_faults": "test_max_faults_when_none_then_the_first_fault_ends_the_run",
    "keep": "test_keep_when_set_then_the_newest_steps_stay",
    "untie_heads": "test_untied_heads_when_trained_then_leave_the_embeddings",
    "from_scratch": "test_from_scratch_when_on_then_only_the_sizes_are_the_checkpoints",
    "compile": "test_compile_when_on_then_the_run_is_the_same_and_batches_share_a_few_compilations",
    "evaluation": "test_evaluation_when_chosen_then_the_run_is_scored_so",
    "gradient_checkpointing": "test_gradient_checkpointing_when_on_then_the_run_is_the_same",
}
"""Settings that leave the losses of an AR run as they are, and the tests that see them."""


@pytest.fixture
def write_preset(tmp_path, monkeypatch):
    """Puts one preset in the place of those that are shipped."""

    def write(text: str) -> str:
        (tmp_path / "own.toml").write_text(text, encoding="utf-8")
        monkeypatch.setattr(finetune.config, "PRESETS_FOLDER", tmp_path)
        return "own"

    return write


@pytest.mark.parametrize("name", preset_names())
def test_preset_when_shipped_then_loads_and_says_when_to_take_it(name):
    config = resolve_config(name)
    assert preset_about(name)
    tree = to_dict(config)
    for key, value in read_preset(name).items():
        stage, _, own = key.rpartition(".")
        assert (tree[stage] if stage else tree)[own] == value
    assert from_dict(json.loads(json.dumps(tree))) == config


def test_preset_names_when_listed_then_has_smoke_and_small():
    assert {"smoke", "small"} <= set(preset_names())


def test_preset_smoke_when_resolved_then_thirty_steps_a_stage():
    config = resolve_config("smoke")
    assert (config.ar.max_steps, config.nar.max_steps) == (30, 30)


@pytest.fixture(scope="module")
def train(make_spec, make_config, read_log, tmp_path_factory):
    """Trains the tiny model with other settings than usual, and returns the log."""

    def train_and_read(stages=("ar",), **changes):
        spec = make_spec(tmp_path_factory.mktemp("runs"), config=make_config(**changes), stages=stages)
        run_finetune(spec, Display())
        return read_log(spec.runs_dir / spec.name)

    return train_and_read


@pytest.fixture(scope="module")
def usual_log(train):
    return train()


def test_settings_when_listed_then_each_is_changed_by_a_test():
    tried = {*OTHER_VALUES, *ON_TOP_OF, *OF_ANOTHER_TEST}
    assert tried == {name for name in setting_names() if not name.startswith("nar.")}
    files = ("test_choices.py", "test_compile.py")
    tests = "".join((Path(__file__).parent / name).read_text(encoding="utf-8") for name in files)
    assert all(f"def {test}(" in tests for test in OF_ANOTHER_TEST.values())


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_setting_when_changed_then_the_run_changes(name, train, usual_log):
    group, _, key = name.rpartition(".")
    change = {key: OTHER_VALUES[name]}
    if group == "collation":
        change = CollationConfig(**change)
    assert train(**({group: change} if group else change)) != usual_log


@pytest.mark.parametrize("name", ON_TOP_OF)
def test_setting_when_changed_beside_another_then_the_run_changes(name, train):
    beside, value = ON_TOP_OF[name]
    key = name.removeprefix("ar.")
    assert train(ar=beside | {key: value}) != train(ar=beside)


def test_setting_of_the_nar_when_changed_then_the_ar_is_as_before(train):
    usual, other = train(("ar", "nar")), train(("ar", "nar"), nar={"lr": 5e-3})
    for stage, is_same in (("ar", True), ("nar", False)):
        lines = [[line for line in log if line["stage"] == stage] for log in (usual, other)]
        assert (lines[0] == lines[1]) == is_same


def test_setting_names_when_listed_then_has_every_field_of_both_dataclasses():
    expected = {f.name for f in fields(FinetuneConfig)} - {"ar", "nar", "collation"}
    expected |= {f"collation.{f.name}" for f in fields(CollationConfig)}
    expected |= {f"{stage}.{f.name}" for stage in ("ar", "nar") for f in fields(StageConfig)}
    assert set(setting_names()) == expected


def test_describe_settings_when_listed_then_has_each_once_with_its_default():
    rows = describe_settings()
    names = [row[0] for row in rows]
    assert len(set(names)) == len(names)
    assert set(names) == {name.removeprefix("ar.").removeprefix("nar.") for name in setting_names()}
    assert all(help_text for *_, help_text in rows)
    by_name = {name: (default, allowed) for name, default, allowed, _ in rows}
    assert by_name["lr"] == ("1e-05", "a number of at least 0")
    assert by_name["max_steps"] == ("none", "a whole number of at least 1, or none")
    assert by_name["optimizer"] == ("adamw", ", ".join([*OPTIMIZERS, "torch.NAME"]))
    assert by_name["compile"] == ("false", "true or false")
    assert by_name["collation.bos"] == ("none", "true or false, or none")


def test_readme_when_read_then_its_table_is_the_settings_and_it_names_every_preset():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    rows = [
        f"| `{name}` | {default} | {allowed} | {text} |"
        for name, default, allowed, text in describe_settings()
    ]
    assert "\n| --- | --- | --- | --- |\n" + "\n".join(rows) + "\n\n" in readme
    assert all(f"`{name}`" in readme for name in preset_names())


def test_preset_when_for_one_stage_then_says_so():
    assert preset_stages("run-11") == preset_stages("run-12b") == ("nar",)
    assert preset_stages("small") == ("ar", "nar")


def test_preset_when_small_then_stops_early():
    for name in ("small", "lora-small", "medium"):
        config = resolve_config(name)
        assert config.ar.patience > 0 and config.nar.patience > 0


def test_preset_from_the_record_when_resolved_then_has_its_published_values():
    eleven, twelve, overfits, baker = (resolve_config(n) for n in ("run-11", "run-12", "run-12b", "baker"))
    for stage in (eleven.nar, twelve.ar, twelve.nar, overfits.nar, baker.ar, baker.nar):
        assert (stage.optimizer, stage.schedule) == ("scaled-adam", "eden")
        assert stage.clip_norm == 0  # its optimizer clips by itself
    recorded = {
        "eleven": (eleven.nar, "heads", 1e-6, 200, 20, 1),
        "twelve AR": (twelve.ar, "heads", 1e-4, 0, 40, 2),
        "twelve NAR": (twelve.nar, "heads-untied", 1e-3, 0, 80, 2),
        "12b": (overfits.nar, "heads-untied", 0.04, 200, 80, 2),
        "baker AR": (baker.ar, "all", 0.05, 200, 20, 4),
        "baker NAR": (baker.nar, "all", 0.05, 200, 40, 4),
    }
    for name, (own, *values) in recorded.items():
        has = [own.train, own.lr, own.warmup_steps, own.max_epochs, own.accumulate]
        assert has == values, name
    assert baker.from_scratch
    assert [(own.precision, own.max_batch_sec) for own in (baker.ar, baker.nar)] == [
        ("bf16", 80.0),
        ("fp32", 40.0),
    ]


def test_presets_of_the_kit_when_resolved_then_have_its_own_values():
    small, medium = resolve_config("small"), resolve_config("medium")
    for stage in (small.ar, small.nar, medium.ar, medium.nar):
        assert (stage.optimizer, stage.schedule, stage.train, stage.clip_norm) == (
            "adamw",
            "cosine",
            "all",
            1.0,
        )
        assert (stage.accumulate, stage.precision) == (1, "fp32")  # small sets need frequent updates
    for own, longer in ((small, medium), (medium, small)):
        assert (own.ar.lr, own.nar.lr) == (1e-5, 3e-5) == (longer.ar.lr, longer.nar.lr)
    assert (small.ar.max_epochs, small.nar.max_epochs, small.ar.max_batch_sec) == (20, 40, 20.0)
    assert (medium.ar.max_epochs, medium.nar.max_epochs, medium.ar.max_batch_sec) == (10, 20, 40.0)
    assert (small.ar.average, medium.ar.average, medium.nar.average) == ("none", "ema", "ema")


def test_override_when_both_stages_have_it_then_sets_both():
    config = resolve_config("small", ["dropout=0.25"])
    assert (config.ar.dropout, config.nar.dropout) == (0.25, 0.25)


def test_override_when_dotted_then_sets_one():
    config = resolve_config("small", ["ar.lr=2e-4", "seed=7"])
    assert (config.ar.lr, config.nar.lr, config.seed) == (2e-4, resolve_config("small").nar.lr, 7)


def test_override_when_given_twice_then_the_last_counts():
    assert resolve_config("small", ["seed=1", "seed=2"]).seed == 2


def test_override_when_none_is_allowed_then_takes_it():
    assert resolve_config("smoke", ["ar.max_steps=none"]).ar.max_steps is None


def test_override_with_spaces_around_then_is_the_same():
    assert resolve_config("smoke", [" seed = 3 "]).seed == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lrr=1"], r"^setting 'lrr' is not known\. Did you mean lr\?$"),
        (["ar.dropuot=0"], r"setting 'ar\.dropuot' is not known\. Did you mean ar\.dropout\?"),
        (["xyzzy=1"], r"setting 'xyzzy' is not known\. There are seed, num_buckets, .*, ema_decay\.$"),
        (["lr"], r"--set 'lr' has no '='; write it as key=value, as in lr=1e-5"),
        (["seed=abc"], r"seed is 'abc'; it must be a whole number of at least 0"),
        (["seed=-1"], r"seed is '-1'; it must be a whole number of at least 0"),
        (["seed=1.5"], r"seed is '1\.5'; it must be a whole number"),
        (["ar.dropout=0.95"], r"ar\.dropout is '0\.95'; it must be a number of at least 0, at most 0\.9"),
        (["ar.lr=nan"], r"ar\.lr is 'nan'; it must be a number of at least 0"),
        (["ar.lr=inf"], r"ar\.lr is 'inf'; it must be a number of at least 0"),
        (["ar.max_steps=0"], r"ar\.max_steps is '0'; it must be a whole number of at least 1, or none"),
        (["seed=none"], r"seed is 'none'; it must be a whole number of at least 0$"),
        (["ar.schedule=cosin"], r"ar\.schedule is 'cosin'; it must be one of .*noam.* Did you mean cosine\?"),
        (["precision=int8"], r"precision is 'int8'; it must be one of fp32, bf16, fp16"),
        (["lrr=1", "seed=x", "ar.dropout=2"], r"'lrr' is not known.*; ar\.dropout is '2'.*; seed is 'x'"),
    ],
)
def test_override_when_wrong_then_every_fault_is_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        resolve_config("smoke", overrides)


def test_optimizer_when_another_without_a_rate_then_one_is_proposed():
    with pytest.raises(ConfigError, match=r"nar\.optimizer is scaled-adam and nar\.lr is not given.*1e-4"):
        resolve_config("small", ["nar.optimizer=scaled-adam", "ar.lr=1e-5"])


def test_optimizer_when_another_from_scratch_then_a_rate_for_that_is_proposed():
    with pytest.raises(ConfigError, match=r"Begin with ar\.lr=5e-2; .*Begin with nar\.lr=5e-2$"):
        resolve_config("from-scratch", ["optimizer=scaled-adam"])
    with pytest.raises(ConfigError, match=r"Begin with ar\.lr=5e-2"):
        resolve_config("small", ["optimizer=scaled-adam", "from_scratch=true"])


def test_optimizer_when_another_then_only_stages_that_are_trained_need_a_rate():
    other = ["optimizer=scaled-adam", "nar.lr=1e-3"]
    assert resolve_config("small", other, ("nar",)).nar.optimizer == "scaled-adam"
    assert changed_config(resolve_config("small"), other, ("nar",)).nar.lr == 1e-3
    assert resolve_config("run-11", ["optimizer=adam", "nar.lr=1e-6"]).nar.optimizer == "adam"
    with pytest.raises(ConfigError, match=r"^ar\.optimizer is scaled-adam and ar\.lr is not given"):
        resolve_config("small", other)


def test_schedule_when_noam_without_a_rate_then_one_of_the_same_peak_is_proposed():
    with pytest.raises(ConfigError) as caught:
        resolve_config("small", ["schedule=noam", "warmup_steps=100"])
    proposed = dict(re.findall(r"Begin with (\w+)\.lr=([\d.e-]+\d)", str(caught.value)))
    small = resolve_config("small")
    for stage in ("ar", "nar"):
        peak = float(proposed[stage]) * peak_factor("noam", warmup_steps=100, d_model=1024)
        assert peak == pytest.approx(getattr(small, stage).lr, rel=0.02)
    noam = resolve_config("small", ["schedule=noam", "warmup_steps=100", f"lr={proposed['ar']}"])
    with pytest.raises(ConfigError, match=r"that of adamw with noam\. Begin with ar\.lr=1e-5"):
        changed_config(noam, ["schedule=cosine"])
    assert changed_config(noam, ["warmup_steps=50"]).ar.lr == noam.ar.lr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["ema_decay=0.9"],
            r"^ema_decay is read by nothing: ar\.average is none; set average=ema too, or leave",
        ),
        (
            ["nar.average_period=5", "average=ema"],
            r"^nar\.average_period is read by nothing: nar\.average is ema; set average=running too",
        ),
        (
            ["warmup_steps=5", "warmup_share=0.1"],
            r"^warmup_steps .*: ar\.warmup_share is 0\.1; set warmup_share=0",
        ),
    ],
)
def test_override_when_nothing_reads_it_then_says_what_would(overrides, message):
    with pytest.raises(ConfigError, match=message):
        resolve_config("small", overrides)


def test_override_when_its_stage_is_not_trained_then_is_refused():
    with pytest.raises(ConfigError, match=r"^ar\.lr is read by nothing: the AR is not trained; train it too"):
        resolve_config("small", ["ar.lr=1e-4"], ("nar",))
    with pytest.raises(ConfigError, match=r"the AR is not trained"):
        resolve_config("run-11", ["ar.lr=1e-4"])
    assert resolve_config("small", ["lr=1e-4"], ("nar",)).nar.lr == 1e-4


def test_override_when_one_trained_stage_reads_it_then_is_taken():
    assert resolve_config("small", ["nar.average=ema", "ema_decay=0.9"]).nar.ema_decay == 0.9
    with pytest.raises(ConfigError, match="ema_decay is read by nothing"):
        resolve_config("small", ["nar.average=ema", "ema_decay=0.9"], ("ar",))
    # what a preset brings beside an average is nobody's slip
    assert resolve_config("baker", ["average=none"]).ar.average_period == 100


def test_preset_when_the_stage_is_not_its_own_then_is_refused():
    for stages in (("ar",), ("ar", "nar")):
        with pytest.raises(
            ConfigError, match=r"^preset run-11 is for the NAR and says nothing of the AR; leave"
        ):
            resolve_config("run-11", stages=stages)
    assert resolve_config("run-11", stages=("nar",)) == resolve_config("run-11")


def test_optimizer_when_another_with_a_rate_or_the_same_then_is_taken():
    assert resolve_config("small", ["nar.optimizer=adam", "lr=1e-4"]).nar.optimizer == "adam"
    assert resolve_config("small", ["optimizer=adamw"]) == resolve_config("small")


def test_optimizer_when_unknown_then_no_rate_is_asked_for():
    with pytest.raises(ConfigError) as caught:
        resolve_config("small", ["ar.optimizer=adamx"])
    assert str(caught.value).startswith("ar.optimizer is 'adamx'; it must be one of adamw")
    assert "is not given" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smal", r"preset 'smal' is not known; there are .*small.*\. Did you mean small\?"),
        ("../presets/small", r"preset '\.\./presets/small' is not known"),
        ("", r"preset '' is not known"),
    ],
)
def test_preset_when_unknown_then_lists_them_and_offers_the_nearest(name, message):
    with pytest.raises(ConfigError, match=message):
        resolve_config(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learn = 1", r"preset own: learn is not a setting"),
        ("[na]\nlr = 1", r"preset own: na is not a setting"),
        ("[nar]\nlearn = 1", r"setting 'nar\.learn' is not known"),
        ("lr = true", r"ar\.lr is True; it must be a number"),
        ("max_epochs = inf", r"ar\.max_epochs is inf; it must be a whole number"),
        ("max_epochs = 2.5", r"ar\.max_epochs is 2\.5; it must be a whole number"),
    ],
)
def test_preset_when_its_file_is_wrong_then_says_where(write_preset, text, message):
    name = write_preset(text)
    with pytest.raises(ConfigError, match=message):
        resolve_config(name)


def test_preset_when_a_stage_has_its_own_value_then_it_wins(write_preset):
    config = resolve_config(write_preset("lr = 1e-3\n[nar]\nlr = 1e-4"))
    assert (config.ar.lr, config.nar.lr) == (1e-3, 1e-4)


def test_from_dict_when_an_older_vallex_wrote_one_value_for_both_stages_then_each_has_it():
    tree = to_dict(resolve_config("small", ["ar.precision=bf16"]))
    for stage in ("ar", "nar"):
        del tree[stage]["precision"], tree[stage]["max_batch_sec"]
    tree["ar"]["precision"] = "fp16"
    config = from_dict(tree | {"precision": "bf16", "max_batch_sec": None})
    assert (config.ar.precision, config.nar.precision) == ("fp16", "bf16")
    assert (config.ar.max_batch_sec, config.nar.max_batch_sec) == (None, None)
    with pytest.raises(ConfigError, match="'precison' is not known"):
        from_dict(tree | {"precison": "bf16"})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"seed": "x"}, "seed is 'x'"),
        ({"ar": {"what": 1}}, r"setting 'ar\.what' is not known"),
        ({"ar": {"lr": None}}, r"ar\.lr is None; it must be a number of at least 0"),
    ],
)
def test_from_dict_when_wrong_then_says_where(tree, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(tree)
