"""What a run lets one hear and watch while it trains: samples, TensorBoard, other trackers."""

import errno
import json
import re
from dataclasses import replace

import pytest
import soundfile
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils import tensorboard

from finetune.data.prepare import PrepareSettings, prepare
from finetune.data.prepared import load_prepared
from finetune.display import Display
from finetune.quickstart import sample_folder
from finetune.run import finetune
from finetune.samples import Speaker, make_speaker
from vallex.codec import load_codec
from vallex.codec.audio import load_audio
from vallex.errors import AudioError, ConfigError
from vallex.model.toy import toy_model
from vallex.text import PhonemeTokenizer


@pytest.fixture(scope="module")
def toy_set(tmp_path_factory):
    """The shipped sample, prepared with the toy codec."""
    folder = tmp_path_factory.mktemp("toy") / "prepared"
    prepare(sample_folder(), folder, PrepareSettings(), load_codec(toy=True), PhonemeTokenizer())
    return folder


@pytest.fixture
def spec(make_spec, make_config, toy_set, tmp_path):
    config = make_config(ar={"max_steps": 2}, samples=2, trackers="tensorboard", max_batch_sec=4.0)
    return make_spec(tmp_path, prepared=toy_set, init=None, offline_toy=True, config=config, stages=("ar",))


def test_run_when_validated_then_the_same_sentences_are_spoken_each_time(spec, tmp_path):
    finetune(spec, Display())
    samples = tmp_path / "run/samples"
    assert {path.name for path in samples.iterdir()} == {
        "reference",
        "sentences.txt",
        "ar-step-0",
        "ar-step-2",
    }
    lines = [line.split("\t") for line in (samples / "sentences.txt").read_text().splitlines()]
    names = {name for name, _ in lines}
    assert len(names) == 2
    for step in (0, 2):
        wavs = {path.stem: load_audio(path) for path in (samples / f"ar-step-{step}").iterdir()}
        assert wavs.keys() == names
        assert all(len(wav) > 1000 and wav.abs().max() > 0 for wav in wavs.values())
        marks = {soundfile.SoundFile(path).comment for path in (samples / f"ar-step-{step}").iterdir()}
        assert marks == {f"synthetic speech by vallex, run ar-step-{step}"}
    [reference] = (samples / "reference").iterdir()
    assert soundfile.SoundFile(reference).comment == ""  # a person said it
    assert reference.stem in names
    assert len(load_audio(reference)) > 24000


def test_run_when_tracked_by_tensorboard_then_it_has_the_figures_and_the_sounds(spec, tmp_path):
    finetune(spec, Display())
    events = EventAccumulator(str(tmp_path / "run/logs/ar/vallex")).Reload()
    log = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    logged = {line["step"]: line["loss"] for line in log if line["kind"] == "valid"}
    shown = {event.step: event.value for event in events.Scalars("valid/loss")}
    assert shown == pytest.approx(logged)
    assert {"train/lr", "train/loss", "valid/top1"} <= set(events.Tags()["scalars"])
    assert len(events.Tags()["audio"]) == 2
    assert [event.step for event in events.Audio(events.Tags()["audio"][0])] == [0, 2]


class KillAt(Display):
    """Ends a run at a validation or after a step, without a last word."""

    def __init__(self, moment):
        self.moment = moment

    def validated(self, stage, step, score, base):
        if self.moment == f"validation {step}":
            raise KeyboardInterrupt

    def stepped(self, step):
        if self.moment == step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["validation 0", 1, "validation 2", 3])
def test_run_when_killed_and_resumed_then_tensorboard_shows_no_point_twice(
    make_spec, make_config, monkeypatch, tmp_path, moment
):
    config = make_config(ar={"max_steps": 4}, trackers="tensorboard")
    spec = make_spec(tmp_path, config=config, stages=("ar",))
    writers, folder = [], tmp_path / "run/logs/ar/vallex"
    make_writer = tensorboard.SummaryWriter
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            tensorboard, "SummaryWriter", lambda *a, **k: writers.append(make_writer(*a, **k)) or writers[-1]
        )
        finetune(spec, KillAt(moment))
    writers[0].close()  # as if it had been killed after its figures reached the disk, and some time ago
    for file in folder.glob("events.*"):
        file.rename(folder / re.sub(r"\d{10}", "1000000000", file.name, count=1))
    finetune(spec, Display(), resume=True)
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("valid/loss")] == [0, 2, 4]
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]


def test_run_when_speaking_then_trains_as_a_silent_one(spec, tmp_path, read_weights):
    finetune(spec, Display())
    finetune(replace(spec, name="silent", config=replace(spec.config, samples=0, trackers="none")), Display())
    assert not (tmp_path / "silent/samples").exists()
    assert not (tmp_path / "silent/logs").exists()
    spoken, silent = (
        read_weights(tmp_path / name / "checkpoints/ar-last.safetensors") for name in ("run", "silent")
    )
    assert all(torch.equal(spoken[name], silent[name]) for name in silent)


class Mute:
    """A speaker whose sounds are empty files."""

    def __init__(self, folder):
        self.folder = folder

    def speak(self, model, name):
        (self.folder / name).mkdir(parents=True)
        (self.folder / name / "one.wav").touch()
        return []


@pytest.mark.parametrize(("keep", "newest"), [(0, {6}), (1, {6}), (2, {5, 6})])
def test_run_when_validated_often_then_keeps_the_samples_of_base_best_and_the_newest(
    make_spec, make_config, monkeypatch, tmp_path, keep, newest
):
    monkeypatch.setattr("finetune.tracking.make_speaker", lambda folder, *_: Mute(folder))
    # the learning rate is so high that the best comes early
    ar = {"lr": 0.3, "schedule": "constant", "validate_every": 1}
    config = make_config(ar=ar, samples=1, keep=keep)
    [phase] = finetune(make_spec(tmp_path, config=config, stages=("ar",)), Display()).phases
    best = phase.best["step"]
    assert best not in newest
    names = {path.name for path in (tmp_path / "run/samples").iterdir()}
    assert names == {f"ar-step-{step}" for step in {0, best, *newest}}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (AudioError("run/one.wav: cannot be written (No space left on device)"), "No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"), "out of memory. Tried to"),
    ],
)
def test_run_when_a_sample_cannot_be_made_then_says_so_and_trains_on(
    make_spec, make_config, monkeypatch, notes, tmp_path, error, reason
):
    class Broken(Mute):
        def speak(self, model, name):
            if name == "ar-step-2":
                raise error
            return super().speak(model, name)

    monkeypatch.setattr("finetune.tracking.make_speaker", lambda folder, *_: Broken(folder))
    spec = make_spec(tmp_path, config=make_config(samples=1), stages=("ar",))
    assert finetune(spec, notes).status == "done"
    [told] = [line for line in notes.lines if "samples" in line]
    assert told.startswith("AR: samples of step 2 are missing, and training goes on: ") and reason in told
    assert {path.name for path in (tmp_path / "run/samples").iterdir()} >= {"ar-step-0", "ar-step-6"}


def test_speaker_when_it_speaks_twice_then_says_the_same_and_leaves_the_model(toy_set, tmp_path):
    speaker = Speaker(
        tmp_path, load_prepared(toy_set, tokenizer_fingerprint=PhonemeTokenizer().fingerprint), 1, 0
    )
    model = toy_model()
    model.ar.train()
    model.nar.eval()
    state = torch.get_rng_state()
    first, second = (speaker.speak(model, name)[0] for name in ("first", "second"))
    assert torch.equal(first.wav, second.wav)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.ar.training
    assert not model.nar.training


def test_run_when_nothing_can_speak_then_says_why_and_trains(make_spec, make_config, tmp_path, notes):
    spec = make_spec(tmp_path, config=make_config(ar={"max_steps": 1}, samples=1), stages=("ar",))
    assert finetune(spec, notes).status == "done"
    [told] = [line for line in notes.lines if line.startswith("No samples are spoken: ")]
    assert "encodec" in told.lower()


def test_speaker_when_the_codec_is_another_then_says_so(tiny_prepared, tmp_path):
    data = load_prepared(tiny_prepared)
    data = replace(data, info=replace(data.info, is_toy=True))
    assert make_speaker(tmp_path, data, 1, 0).startswith(
        "the set has codes of a test's codec, here is another"
    )


def test_trackers_when_one_is_not_installed_then_the_run_does_not_begin(make_spec, make_config, tmp_path):
    spec = make_spec(tmp_path, config=make_config(trackers="tensorboard, wndb"))
    with pytest.raises(ConfigError, match=r"trackers has 'wndb'; installed here are .*tensorboard"):
        finetune(spec, Display())
    assert not (tmp_path / "run").exists()


def test_run_when_loading_what_speaks_draws_then_the_run_draws_as_without(
    spec, tmp_path, read_weights, monkeypatch
):
    from finetune import samples

    original = samples.load_codec

    def load_and_draw(**settings):
        torch.rand(7)
        return original(**settings)

    dropout = replace(spec.config, ar=replace(spec.config.ar, dropout=0.3), trackers="none")
    finetune(replace(spec, name="silent", config=replace(dropout, samples=0)), Display())
    monkeypatch.setattr(samples, "load_codec", load_and_draw)
    finetune(replace(spec, config=dropout), Display())
    spoken, silent = (
        read_weights(tmp_path / name / "checkpoints/ar-last.safetensors") for name in ("run", "silent")
    )
    assert all(torch.equal(spoken[name], silent[name]) for name in silent)
