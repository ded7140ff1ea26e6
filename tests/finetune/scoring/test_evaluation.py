"""An evaluation from models to verdict, on a few real clips, with toy codes and judges made of arithmetic."""

from dataclasses import asdict

import pytest
import soundfile
import torch
from rich.console import Console

from finetune.data.prepared import load_prepared
from finetune.results import RunResult, read_result, write_result
from finetune.scoring import evaluation, hearing, spoken
from finetune.scoring.evaluation import EvaluationSpec, evaluate_checkpoints
from finetune.scoring.judges import Judges
from finetune.scoring.plan import make_plan
from finetune.scoring.report import evaluation_tables
from finetune.scoring.scores import evaluation_faults, sound_path
from finetune.scoring.spoken import Bench, Take, judge_takes
from vallex.codec.audio import load_audio
from vallex.errors import CheckpointError, DataError
from vallex.inference.asr import Heard
from vallex.text import PhonemeTokenizer

NUM_SENTENCES = 5


@pytest.fixture(scope="module")
def models(make_model):
    """A base and another, both given to stopping: they say something, and not for long."""

    def build(seed: int):
        model = make_model(seed=seed)
        model.provenance = {"toy": True}
        return model

    return {"base": build(0), "nar-best": build(1)}


@pytest.fixture
def make_spec_of(sample_prepared, models, tmp_path):
    def make(**changes) -> EvaluationSpec:
        settings = {
            "base": lambda: models["base"],
            "checkpoints": {"nar-best": lambda: models["nar-best"]},
            "prepared": sample_prepared,
            "cache": tmp_path / "cache",
            "size": "quick",
            "offline_toy": True,
        }
        return EvaluationSpec(**settings | changes)

    return make


@pytest.fixture
def bench(sample_prepared, make_judges, scoring_codec) -> Bench:
    """What sentences are judged with; the codec itself is the vocoder."""
    tokenizer = PhonemeTokenizer()
    plan = make_plan(load_prepared(sample_prepared), tokenizer, "quick")
    return Bench(plan=plan, judges=make_judges(), vocoder=scoring_codec, tokenizer=tokenizer)


def test_evaluation_scores_base_checkpoint_and_ceiling_and_is_whole(make_spec_of, quick_judges, tmp_path):
    said = []
    found = evaluate_checkpoints(
        make_spec_of(sounds=tmp_path / "sounds"), lambda what, done, total: said.append((what, done, total))
    )
    assert found.systems.keys() == {"base", "nar-best", "recordings", "codec copies"}
    assert len(found.sentences) == NUM_SENTENCES and evaluation_faults(found) == []
    for name in ("recordings", "codec copies"):  # a person said these
        assert soundfile.SoundFile(tmp_path / "sounds" / sound_path(name, 0)).comment == ""
    assert found.differences.keys() == {"nar-best"} and found.winner in ("nar-best", None)
    assert found.judges == {
        "error_rate": "a test's hearer",
        "similarity": "a test's ear",
        "naturalness": "a test's taste",
    }
    assert found.teacher_forced.keys() == {"valid", "others"}
    assert found.toy and found.data["path"].endswith("sample")
    # of fixed sentences there are no recordings
    rows = found.systems["recordings"]["rows"]
    assert [row is not None for row in rows] == [True, True, False, False, False]
    assert ("nar-best: speaking", NUM_SENTENCES, NUM_SENTENCES) in said
    for name in ("base", "nar-best"):
        files = [tmp_path / "sounds" / sound_path(name, place) for place in range(NUM_SENTENCES)]
        assert all(len(load_audio(file)) == 60 * 320 for file in files)
        mark = f"synthetic speech by vallex, weights {found.systems[name]['fingerprint'][:12]}"
        assert {soundfile.SoundFile(file).comment for file in files} == {mark}
        assert found.systems[name]["faults"]["runaway"] == 1.0


def test_evaluation_when_written_is_read_back_the_same(make_spec_of, quick_judges, tmp_path):
    found = evaluate_checkpoints(make_spec_of())
    write_result(tmp_path, run_result(found))
    assert asdict(read_result(tmp_path).evaluation) == asdict(found)


def test_evaluation_when_made_again_speaks_and_judges_nothing(
    make_spec_of, quick_judges, hearer, monkeypatch, tmp_path
):
    first = evaluate_checkpoints(make_spec_of())
    num_heard = hearer.num_heard
    assert num_heard == 2 * NUM_SENTENCES + 2 * 2

    def never(*arguments):
        raise AssertionError("the cache has it")

    for name in ("speak_plan", "judge_takes", "teacher_scores", "ceiling_takes"):
        monkeypatch.setattr(evaluation, name, never)
    again = evaluate_checkpoints(make_spec_of(sounds=tmp_path / "sounds"))
    assert hearer.num_heard == num_heard
    same = ("systems", "differences", "teacher_forced", "verdict", "winner", "why", "plan")
    assert [getattr(first, name) for name in same] == [getattr(again, name) for name in same]
    assert (tmp_path / "sounds" / sound_path("base", 0)).is_file()


def test_evaluation_replaces_its_own_sounds_and_leaves_all_else(make_spec_of, quick_judges, tmp_path):
    folder = tmp_path / "sounds"
    old, mine = folder / sound_path("nar-old", 0), folder / "nar-best" / "notes.txt"
    for path in (old, mine):
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    evaluate_checkpoints(make_spec_of(sounds=folder))
    assert mine.read_text() == "mine" and not old.parent.exists()


def test_evaluation_where_the_cache_cannot_be_written_has_its_sounds(make_spec_of, quick_judges, tmp_path):
    (tmp_path / "cache").write_text("a file")
    found = evaluate_checkpoints(make_spec_of(sounds=tmp_path / "sounds"))
    assert (tmp_path / "sounds" / sound_path("nar-best", 0)).is_file() and "sounds" not in found.gaps


def test_evaluation_whose_sounds_cannot_be_written_says_so(make_spec_of, quick_judges, tmp_path):
    (tmp_path / "sounds").write_text("a file")
    found = evaluate_checkpoints(make_spec_of(sounds=tmp_path / "sounds"))
    assert found.gaps["sounds"].startswith(f"they could not be written to {tmp_path / 'sounds'} (")
    assert found.differences["nar-best"]["overall"]["num_pairs"] == NUM_SENTENCES


@pytest.mark.parametrize(
    ("score", "who", "what"),
    [
        ("error_rate", "recognizers", "hear"),
        ("similarity", "speaker", "embed"),
        ("naturalness", "naturalness", "rate"),
    ],
)
def test_evaluation_when_a_judge_fails_has_a_gap_and_asks_it_again_next_time(
    make_spec_of, quick_judges, monkeypatch, score, who, what
):
    def fail(*arguments):
        raise RuntimeError("no more\nroom")

    judge = getattr(quick_judges, who)
    judge = judge["en"] if score == "error_rate" else judge
    with monkeypatch.context() as failing:
        failing.setattr(judge, what, fail)
        found = evaluate_checkpoints(make_spec_of())
    assert found.gaps[score] == "base: the judge failed (RuntimeError: no more room)"
    assert found.systems["base"]["means"][score] is None and evaluation_faults(found) == []
    assert found.systems["base"]["num"]["faulty"] == NUM_SENTENCES
    again = evaluate_checkpoints(make_spec_of())
    assert score not in again.gaps and again.systems["base"]["num"][score] == NUM_SENTENCES


def test_evaluation_of_another_checkpoint_scores_the_base_not_again(
    make_spec_of, quick_judges, hearer, models, make_model
):
    evaluate_checkpoints(make_spec_of())
    before = hearer.num_heard
    other = make_model(seed=7)
    other.provenance = {"toy": True}
    found = evaluate_checkpoints(make_spec_of(checkpoints={"nar-last": lambda: other}))
    assert hearer.num_heard == before + NUM_SENTENCES
    assert found.systems.keys() >= {"base", "nar-last"}


@pytest.mark.parametrize("change", ["seed", "judge"])
def test_evaluation_with_another_seed_or_judge_is_made_anew(
    make_spec_of, quick_judges, hearer, make_judges, monkeypatch, change
):
    evaluate_checkpoints(make_spec_of())
    before = hearer.num_heard
    if change == "judge":
        hearer.name = "another hearer"
    evaluate_checkpoints(make_spec_of(seed=int(change == "seed")))
    assert hearer.num_heard == 2 * before


def test_evaluation_of_the_base_itself_finds_no_difference(make_spec_of, quick_judges, models):
    found = evaluate_checkpoints(make_spec_of(checkpoints={"nar-best": lambda: models["base"]}))
    assert {one["mean"] for one in found.differences["nar-best"].values()} == {0.0}
    assert (found.winner, found.verdict) == ("nar-best", "no difference")
    assert "that 5 sentences can show" in found.why


def test_evaluation_without_judges_has_gaps_and_a_verdict_by_faults_alone(
    make_spec_of, monkeypatch, quick_judges
):
    nobody = Judges(gaps={"error_rate (en)": "nobody hears it", "similarity": "no ear"})
    monkeypatch.setattr(evaluation, "find_judges", lambda *arguments, **settings: nobody)
    found = evaluate_checkpoints(make_spec_of())
    assert found.judges == {"error_rate": None, "similarity": None, "naturalness": None}
    assert found.gaps["similarity"] == "no ear"
    assert found.differences["nar-best"]["error_rate"]["verdict"] == "unknown"
    assert found.differences["nar-best"]["faulty"]["verdict"] == "no difference"


def test_evaluation_of_losses_alone_speaks_nothing(make_spec_of, quick_judges, hearer):
    found = evaluate_checkpoints(make_spec_of(size="losses"))
    assert hearer.num_heard == 0 and found.systems == {} and found.sentences == []
    assert (found.verdict, found.winner, found.why) == (None, None, "nothing was compared by ear")
    assert found.teacher_forced["valid"]["systems"].keys() == {"base", "nar-best"}
    assert evaluation_faults(found) == []


def test_evaluation_of_a_large_validation_split_takes_a_part_of_it_and_says_so(make_spec_of, monkeypatch):
    whole = evaluate_checkpoints(make_spec_of(size="losses"))
    assert "valid" not in whole.gaps
    monkeypatch.setattr("finetune.scoring.evaluation.MAX_VALID", 2)
    part = evaluate_checkpoints(make_spec_of(size="losses"))
    assert part.gaps["valid"] == "losses are of 2 of its 3 recordings, each speaker in turn"
    targets = [
        found.teacher_forced["valid"]["systems"]["base"]["all"]["ar"]["num_targets"]
        for found in (whole, part)
    ]
    assert 0 < targets[1] < targets[0]


def test_evaluation_with_other_voices_of_ones_own(make_spec_of, quick_judges, sample_prepared):
    found = evaluate_checkpoints(make_spec_of(size="losses", others=sample_prepared))
    [figures] = {
        str(groups["all"]["ar"]["num_targets"])
        for groups in found.teacher_forced["others"]["systems"].values()
    }
    frames = sum(
        cut.codes.shape[0] + 1
        for cut in [*load_prepared(sample_prepared).train, *load_prepared(sample_prepared).valid]
    )
    assert int(figures) == frames


def test_evaluation_of_another_number_of_codebooks_has_losses_and_says_why_nothing_is_spoken(
    make_spec_of, quick_judges, make_model
):
    model = make_model(num_quantizers=4)
    model.provenance = {"toy": True}
    found = evaluate_checkpoints(make_spec_of(base=lambda: model, checkpoints={"nar-best": lambda: model}))
    assert found.systems == {} and "speaks 4 codebooks" in found.gaps["spoken"]
    assert evaluation_faults(found) == []
    assert "Nothing was spoken: base: this model speaks 4 codebooks" in shown(found)


def test_evaluation_of_toy_weights_must_be_asked_for(
    make_spec_of, quick_judges, make_prepared, make_utterances, tmp_path
):
    with pytest.raises(DataError, match=r"sample: its codes were made with toy weights; add --offline-toy"):
        evaluate_checkpoints(make_spec_of(offline_toy=False))
    clips = {"train": make_utterances("a", [20]), "valid": make_utterances("b", [20])}
    real = make_prepared(tmp_path / "real", clips)
    with pytest.raises(CheckpointError, match=r"^base: made with toy weights; add --offline-toy to score it"):
        evaluate_checkpoints(make_spec_of(prepared=real, offline_toy=False))


def test_evaluation_of_a_model_of_another_codec_or_language_is_refused(
    make_spec_of, quick_judges, make_model
):
    other = make_model()
    other.provenance = {"toy": True, "codec": {"name": "another codec", "fingerprint": "f" * 64}}
    with pytest.raises(
        CheckpointError, match=r"nar-best: was trained on codes of another codec, .*sample has"
    ):
        evaluate_checkpoints(make_spec_of(checkpoints={"nar-best": lambda: other}))
    mute = make_model(languages=("zh",))
    mute.provenance = {"toy": True}
    with pytest.raises(CheckpointError, match="base: speaks zh, the data are in en too"):
        evaluate_checkpoints(make_spec_of(base=lambda: mute))


def test_evaluation_where_the_codec_is_not_there_has_losses_and_says_so(
    make_spec_of, quick_judges, make_prepared, make_utterances, make_model, tmp_path
):
    clips = {"train": make_utterances("a", [20]), "valid": make_utterances("b", [20, 30])}
    real = make_prepared(tmp_path / "real", clips)
    found = evaluate_checkpoints(
        make_spec_of(
            prepared=real,
            base=make_model,
            checkpoints={"nar-best": make_model},
            checkpoints_dir=tmp_path / "none",
        )
    )
    assert found.gaps["spoken"].startswith("EnCodec 24 kHz is not in ") and not found.toy
    assert found.gaps["others"] == found.gaps["spoken"]
    assert found.teacher_forced.keys() == {"valid"}


def test_evaluation_by_toy_weights_says_so_in_every_title(make_spec_of, quick_judges):
    text = shown(evaluate_checkpoints(make_spec_of()))
    assert "Toy weights: scores, means of 5 sentences" in text
    assert "Toy weights: losses on the validation split" in text
    assert max(map(len, text.splitlines())) <= 80


def test_judge_takes_when_nothing_is_said_gives_the_worst_of_each_score(bench):
    silent = [Take(wav=torch.zeros(0), ended="empty"), Take(wav=torch.zeros(24000), ended="eos")]
    takes = [*silent, *[None] * (len(bench.plan.sentences) - 2)]
    rows = judge_takes(takes, bench)
    for row in rows[:2]:
        assert (row.error_rate, row.similarity, row.naturalness, row.faulty) == (1.0, 0.0, 1.0, 1.0)
        assert row.faults == ["empty"] and row.phonemes_per_sec is None
    assert rows[2:] == [None] * (len(takes) - 2)


def test_judge_takes_when_a_take_cannot_be_read_then_its_error_rate_is_not_known(bench, monkeypatch):
    heard = iter([None, *[Heard(text="", language="en", source="pocketsphinx")] * 11])
    monkeypatch.setattr(
        hearing, "hear_files", lambda paths, *others, **settings: [next(heard) for _ in paths]
    )
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(bench.judges.recognizers["en"], "name", "pocketsphinx")
    assert hearing.hear_all(bench.judges.recognizers["en"], [torch.ones(160)] * 12, "en") == [
        None,
        *[""] * 11,
    ]
    monkeypatch.setattr(spoken, "hear_all", lambda *arguments: [None])
    take = Take(wav=torch.linspace(-0.5, 0.5, 24000), ended="eos")
    row = judge_takes([take, *[None] * (len(bench.plan.sentences) - 1)], bench)[0]
    assert (row.heard, row.error_rate) == (None, None) and "could not be read" in bench.failed["error_rate"]


def test_judge_takes_names_what_is_wrong_with_each(bench, hearer):
    wav = torch.rand(24000, generator=torch.Generator().manual_seed(0)) - 0.5
    hearer.text = "she put the letter she put the letter she put the letter"
    num = len(bench.plan.sentences)
    takes = [Take(wav=wav, ended="budget"), Take(wav=wav, ended="eos", is_looping=True), *[None] * (num - 2)]
    runaway, looping = judge_takes(takes, bench)[:2]
    assert runaway.faults == ["runaway", "repeated"] and looping.faults == ["looping", "repeated"]
    assert runaway.faulty == looping.faulty == 1.0
    assert runaway.phonemes_per_sec == len(bench.plan.sentences[0].encoding.ids)


def test_judge_takes_of_a_recording_of_the_speaker_are_nearer_than_another_sound(bench):
    sentence = bench.plan.sentences[0]
    own = spoken.original_of(bench.plan.cuts[sentence.references[0]])
    swelling = torch.linspace(0, 0.9, 24000) * torch.ones(24000).cumsum(0).cos()
    rest = [None] * (len(bench.plan.sentences) - 1)
    mine, other = (judge_takes([Take(wav=wav, ended="eos"), *rest], bench)[0] for wav in (own, swelling))
    assert mine.similarity > other.similarity
    assert mine.seconds == pytest.approx(bench.plan.cuts[sentence.references[0]].duration, abs=0.01)


def shown(found) -> str:
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(*evaluation_tables(found), sep="\n")
    return capture.get()


def run_result(found) -> RunResult:
    return RunResult(
        name="run",
        status="done",
        created="2025-03-04T05:06:07+00:00",
        seconds=1.0,
        preset="small",
        init={},
        data={},
        versions={},
        toy=True,
        phases=[],
        evaluation=found,
    )
