"""The end of a run, and `vallex evaluate`: what is scored against what, and where it is written."""

import json
import shutil
from dataclasses import replace

import pytest

from finetune.cli import run_command
from finetune.display import Display
from finetune.results import read_result, resolve_checkpoint, write_result
from finetune.run import finetune
from finetune.scoring import evaluation, run_scores
from finetune.scoring.run_scores import scored_files
from finetune.scoring.scores import SOUNDS_FOLDER, sound_path
from vallex.errors import ConfigError, DataError, RunError, WeightsError


class Notes(Display):
    """Keeps what a run says."""

    def __init__(self):
        self.lines: list[str] = []
        self.scored: list[str] = []
        self.is_over = False

    def note(self, text):
        self.lines.append(text)

    def scoring(self, what, done, total):
        self.scored.append(what)

    def scoring_ended(self):
        self.is_over = True


@pytest.fixture
def display() -> Notes:
    return Notes()


@pytest.fixture
def train(make_spec, make_config, sample_prepared, tmp_path, display):
    """Trains the tiny model for two steps on the sample; returns the run's folder."""

    def run(name="anna", *, stages=("ar",), **changes):
        few = {"max_steps": 2, "validate_every": 1}
        usual = {"ar": few, "nar": few, "max_batch_sec": 3.0, "evaluation": "quick"}
        config = make_config(**usual | changes)
        settings = {"prepared": sample_prepared, "offline_toy": True, "stages": stages, "config": config}
        finetune(make_spec(tmp_path / "runs", name, **settings), display)
        return tmp_path / "runs" / name

    return run


def test_run_when_done_then_is_scored_and_says_what_won(train, quick_judges, display):
    run_dir = train(stages=("ar", "nar"))
    result = read_result(run_dir)
    assert (result.status, result.evaluation_note, result.evaluation.size) == ("done", None, "quick")
    assert result.evaluation.systems.keys() == {"base", "nar-best", "recordings", "codec copies"}
    won = result.evaluation.winner is not None
    assert result.chosen == ("nar-best.safetensors" if won else None)
    assert (run_dir / SOUNDS_FOLDER / sound_path("nar-best", 0)).is_file()
    assert (run_dir.parent / ".evaluation").is_dir()
    assert display.lines[-1].startswith("Scoring it against") and display.is_over
    assert "nar-best: speaking" in display.scored


def test_run_when_its_winner_is_another_than_the_best_then_its_name_means_the_winner(
    train, quick_judges, monkeypatch
):
    score = run_scores.evaluate_checkpoints

    def last_wins(*arguments):
        return replace(score(*arguments), winner="ar-last", verdict="better")

    monkeypatch.setattr(run_scores, "evaluate_checkpoints", last_wins)
    monkeypatch.setattr(run_scores, "scored_files", lambda run_dir, every: scored_files(run_dir, every=True))
    run_dir = train(keep=2, ar={"max_steps": 2, "validate_every": 1, "lr": 1.0})
    assert read_result(run_dir).chosen == "ar-last.safetensors"
    for ref in ("anna", "anna@chosen"):
        assert resolve_checkpoint(ref, run_dir.parent).name == "ar-last.safetensors"
    assert resolve_checkpoint("anna@best", run_dir.parent).name == "ar-best.safetensors"


def test_run_of_an_adapter_is_scored_as_base_and_adapter_together(train, quick_judges):
    run_dir = train(ar={"max_steps": 2, "validate_every": 1, "lora_rank": 2, "lr": 1e-2})
    result = read_result(run_dir)
    assert result.evaluation_note is None and result.evaluation.systems.keys() >= {"base", "ar-best"}
    systems = result.evaluation.teacher_forced["valid"]["systems"]
    assert systems["ar-best"]["all"]["ar"]["loss"] < systems["base"]["all"]["ar"]["loss"]
    if result.chosen:
        assert resolve_checkpoint("anna", run_dir.parent).parent.name == "ar-best"


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (KeyboardInterrupt(), "the evaluation was interrupted. Make it: vallex evaluate "),
        (RuntimeError("a judge\nbroke"), "the evaluation failed: RuntimeError: a judge broke. Make it again"),
        (WeightsError("no codec"), "the evaluation failed: no codec. Make it again: vallex evaluate "),
    ],
)
def test_run_whose_evaluation_ends_early_is_done_all_the_same(train, display, monkeypatch, error, note):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(run_scores, "evaluate_checkpoints", fail)
    result = read_result(train())
    assert (result.status, result.error, result.evaluation, result.chosen) == ("done", None, None, None)
    assert result.evaluation_note.startswith(note)
    assert display.lines[-1] == result.evaluation_note and display.is_over


def test_run_when_evaluation_is_none_or_it_was_stopped_then_nothing_is_scored(train, monkeypatch):
    def never(*arguments):
        raise AssertionError("not asked for")

    monkeypatch.setattr(run_scores, "evaluate_checkpoints", never)
    assert read_result(train(evaluation="none")).evaluation_note is None
    monkeypatch.setattr("finetune.run._train_stages", lambda *arguments: "stopped")
    assert read_result(train("other")).evaluation_note is None


def test_scored_files_of_a_run_are_its_best_or_every_kept_one_once(train):
    run_dir = train(evaluation="none", stages=("ar", "nar"), keep=2)
    assert [*scored_files(run_dir, every=False)] == ["nar-best"]
    every = scored_files(run_dir, every=True)
    assert next(iter(every)) == "nar-best" and {"ar-best", "ar-step-1"} <= every.keys()
    inodes = [path.stat().st_ino for path in every.values()]
    assert len(set(inodes)) == len(inodes)


def test_evaluate_a_run_writes_into_its_result_and_prints_the_verdict(train, quick_judges, capsys):
    run_dir = train(evaluation="none")
    runs = run_dir.parent
    capsys.readouterr()
    run_command(["evaluate", "anna", "--quick", "--runs", str(runs), "--offline-toy"])
    out = capsys.readouterr().out
    assert (
        "Toy weights: scores" in out and "Verdict: " in out and "toy weights: what you hear is noise" in out
    )
    result = read_result(run_dir)
    assert result.evaluation.size == "quick" and result.status == "done"
    run_command(["evaluate", "anna", "--full", "--json", "--runs", str(runs), "--offline-toy"])
    found = json.loads(capsys.readouterr().out)
    assert found["size"] == "full" and {"base", "ar-best", "ar-step-1"} <= found["systems"].keys()
    assert read_result(run_dir).evaluation.size == "full"


def test_evaluate_when_nothing_can_be_spoken_keeps_the_scores_that_there_are(
    train, quick_judges, capsys, monkeypatch
):
    run_dir = train()
    before = read_result(run_dir)
    monkeypatch.setattr(
        evaluation, "_bench", lambda spec, data, tokenizer, codec, gaps: gaps.update(spoken="no")
    )
    run_command(["evaluate", str(run_dir), "--runs", str(run_dir.parent), "--offline-toy"])
    note = f"nothing was spoken (no); the scores of {before.evaluation.created} are kept"
    assert read_result(run_dir) == replace(before, evaluation_note=note)
    assert note in capsys.readouterr().out
    assert (run_dir / SOUNDS_FOLDER / sound_path("ar-best", 0)).is_file()


def test_evaluate_a_run_otherwise_than_it_was_trained_needs_a_file_for_the_scores(
    train, quick_judges, make_prepared, make_utterances, sample_prepared, tmp_path
):
    run_dir = train(evaluation="none")
    clips = {"train": make_utterances("a", [20]), "valid": make_utterances("b", [20])}
    other = make_prepared(tmp_path / "other", clips)
    best = run_dir / "checkpoints/ar-best.safetensors"
    before = (run_dir / "result.json").read_text()
    common = ["evaluate", str(run_dir), "--quick", "--runs", str(run_dir.parent), "--offline-toy"]
    for arguments, message in (
        ([str(other)], r"other: another prepared set than that of run 'anna', .*: -o anna.json"),
        (["--base", str(best)], r"--base .*ar-best.safetensors: result.json of run 'anna' .*: -o anna.json"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_command([*common, *arguments])
    run_command([*common, "--base", str(best), "-o", str(tmp_path / "anna.json")])
    assert (run_dir / "result.json").read_text() == before and (tmp_path / "anna.json").is_file()
    run_command([*common, str(shutil.copytree(sample_prepared, tmp_path / "moved"))])
    assert read_result(run_dir).evaluation.size == "quick"


def test_evaluate_keeps_what_a_newer_vallex_wrote_and_replaces_what_is_damaged(train, quick_judges, capsys):
    run_dir = train(evaluation="none")
    path = run_dir / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"invented": 1, "evaluation": {"version": 9}}))
    assert "the evaluation cannot be read" in read_result(run_dir).evaluation_note
    run_command(["evaluate", str(run_dir), "--quick", "--runs", str(run_dir.parent), "--offline-toy"])
    assert json.loads(path.read_text())["invented"] == 1
    assert read_result(run_dir).evaluation is not None and read_result(run_dir).evaluation_note is None


def test_evaluate_a_checkpoint_of_a_run_compares_with_what_the_run_began_with(train, quick_judges, capsys):
    run_dir = train(evaluation="none")
    before = (run_dir / "result.json").read_text()
    run_command(["evaluate", "anna@last", "--quick", "--runs", str(run_dir.parent), "--offline-toy"])
    written = json.loads((run_dir / "checkpoints/ar-last.evaluation.json").read_text())
    assert written["systems"].keys() >= {"base", "ar-last"}
    assert (run_dir / "checkpoints/ar-last.evaluation.sounds/base/001.wav").is_file()
    assert (run_dir / "result.json").read_text() == before


def test_evaluate_a_file_against_another_writes_beside_it_or_where_it_is_told(
    train, quick_judges, capsys, tiny_checkpoint, sample_prepared, tmp_path
):
    best = train(evaluation="none") / "checkpoints/ar-best.safetensors"
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(best.read_bytes())
    common = ["--quick", "--base", str(tiny_checkpoint), "--offline-toy", "--runs", str(tmp_path / "runs")]
    run_command(["evaluate", str(mine), str(sample_prepared), *common])
    assert json.loads((tmp_path / "mine.evaluation.json").read_text())["systems"].keys() >= {"base", "mine"}
    run_command(["evaluate", str(mine), str(sample_prepared), *common, "-o", str(tmp_path / "out/mine.json")])
    assert (tmp_path / "out/mine.json").is_file()
    assert (tmp_path / "out/mine.sounds/base/001.wav").is_file()


def test_evaluate_into_a_file_named_as_a_folder_leaves_the_folder(train, quick_judges):
    run_dir = train(evaluation="none")
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    common = ["--quick", "--runs", str(run_dir.parent), "--offline-toy"]
    run_command(["evaluate", "anna", *common, "-o", f"{run_dir}.json"])
    assert before == {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


@pytest.mark.parametrize("stem", ["base", "recordings", "codec copies", "codec-copies"])
def test_evaluate_a_file_named_as_the_base_or_the_ceiling_is_scored_beside_it(
    train, quick_judges, sample_prepared, tmp_path, stem
):
    best = train(evaluation="none") / "checkpoints/ar-best.safetensors"
    mine = tmp_path / f"{stem}.safetensors"
    mine.write_bytes(best.read_bytes())
    common = ["--base", str(best), "--quick", "--runs", str(tmp_path / "runs"), "--offline-toy"]
    run_command(["evaluate", str(mine), str(sample_prepared), *common])
    found = json.loads((tmp_path / f"{stem}.evaluation.json").read_text())
    assert found["systems"].keys() == {"base", f"checkpoint {stem}", "recordings", "codec copies"}
    sounds = tmp_path / f"{stem}.evaluation.sounds"
    assert len([*sounds.iterdir()]) == len(found["systems"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["anna", "--quick", "--full"], ConfigError, "--quick and --full: one of them"),
        (["anna", "-o", "scores.txt"], ConfigError, r"-o scores.txt: not the name .* write -o scores.json"),
        (["nobody"], RunError, "checkpoint 'nobody': no such file, and no such run"),
        (["anna"], DataError, "sample: its codes were made with toy weights; add --offline-toy to score"),
        (
            ["mine.safetensors", "--offline-toy"],
            ConfigError,
            r"missing: PREPARED, a prepared set to score mine",
        ),
        (["mine.safetensors"], WeightsError, "the released model is not there"),
        (["anna", "nothing", "--offline-toy"], DataError, "nothing: no such folder; give a prepared set"),
    ],
)
def test_evaluate_when_something_does_not_fit_says_so_and_changes_nothing(
    train, quick_judges, monkeypatch, arguments, error, message
):
    run_dir = train(evaluation="none")
    monkeypatch.chdir(run_dir.parents[1])
    (run_dir.parents[1] / "mine.safetensors").write_bytes(
        (run_dir / "checkpoints/ar-best.safetensors").read_bytes()
    )
    before = {path: path.read_bytes() for path in run_dir.parents[1].rglob("*") if path.is_file()}
    with pytest.raises(error, match=message) as caught:
        run_command(["evaluate", *arguments])
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    assert before == {path: path.read_bytes() for path in run_dir.parents[1].rglob("*") if path.is_file()}


def test_evaluate_a_run_that_goes_on_or_has_nothing_is_refused(train, tmp_path):
    run_dir = train(evaluation="none")
    result = read_result(run_dir)
    write_result(run_dir, replace(result, status="running"))
    with pytest.raises(RunError, match="run 'anna': it is running; score it when it is done"):
        run_command(["evaluate", str(run_dir), "--offline-toy"])
    write_result(run_dir, result)
    for file in (run_dir / "checkpoints").iterdir():
        file.unlink()
    with pytest.raises(RunError, match="run 'anna': it has no checkpoint to score yet"):
        run_command(["evaluate", str(run_dir), "--offline-toy"])


def test_evaluate_a_run_whose_beginning_was_changed_is_refused(train, make_spec, make_model, tmp_path):
    run_dir = train(evaluation="none")
    result = read_result(run_dir)
    write_result(run_dir, replace(result, init=result.init | {"fingerprint": "0" * 64}))
    with pytest.raises(RunError, match=r"its checkpoint .*tiny.safetensors was changed since it began"):
        run_command(["evaluate", str(run_dir), "--offline-toy"])
