"""The engine without a browser: streaming, cancelling, the queue, the memory, and what is refused."""

import io
import threading
import zipfile
from dataclasses import replace

import pytest
import soundfile
import torch

from finetune.page import engine as engines
from finetune.page import requests
from finetune.page.checkpoints import Choice, WarmModels, find_choice, list_choices
from finetune.page.engine import Busy, Engine
from finetune.page.memory import Memory
from finetune.page.requests import (
    ContinueRequest,
    ListRequest,
    Part,
    SpeakRequest,
    listed_texts,
    named_voices,
)
from finetune.page.sentences import spoken_sentences
from finetune.page.settings import PageSettings
from finetune.page.tabs.choices import Choices
from finetune.page.tabs.outcome import file_name, outcome_view, stopping_line
from finetune.page.tabs.voice import SAMPLE
from finetune.page.voices import VoiceShelf
from finetune.page.weights import WeightsDesk
from vallex.errors import CheckpointError, ConfigError, ListError, PromptError, TextError, WeightsError
from vallex.inference.synthesizer import SpeakSettings, Synthesizer
from vallex.model.adapter import AdapterSettings, add_adapter, fingerprint_of, save_adapter
from vallex.model.checkpoint import load_model
from vallex.model.network import VALLE
from vallex.model.runs import ADAPTER_FILE
from vallex.text import PhonemeTokenizer

TEXT = "Good morning. How are you today, my friend?"


@pytest.fixture(scope="module")
def engine(settings_of) -> Engine:
    return Engine(settings_of())


def request(text: str = TEXT, checkpoint: str = "toy", **changes) -> SpeakRequest:
    return SpeakRequest(text=text, voice=None, checkpoint=checkpoint, **changes)


def test_job_when_followed_then_each_sentence_is_a_part_and_the_seed_repeats_it(engine):
    jobs = [engine.submit(request(settings=SpeakSettings(seed=3))) for _ in range(2)]
    first, second = (list(job.follow()) for job in jobs)
    assert [part.text for part in first] == [
        "[EN]Good morning.[EN]",
        "[EN]How are you today, my friend?[EN]",
    ]
    assert [part.pcm for part in first] == [part.pcm for part in second]
    assert jobs[0].status == "done"
    assert jobs[0].token != jobs[1].token


def test_job_when_cancelled_in_a_sentence_then_the_model_stops_there(engine, monkeypatch):
    passes, job = [], None
    check = engine._check

    def counted():
        passes.append(1)
        if len(passes) == 50:
            engine.cancel(job)
        check()

    monkeypatch.setattr(engine.models, "_on_forward", counted)
    job = engine.submit(request("word " * 100))
    assert job.wait(10**6, timeout_sec=60)
    assert (job.status, len(passes), job.parts) == ("cancelled", 50, [])
    # the queue goes on
    after = engine.submit(request("Hello, my friend."))
    assert after.wait(10**6, timeout_sec=60)
    assert after.status == "done"


def test_job_when_a_sentence_stays_empty_then_the_text_goes_on_and_it_is_told(engine, monkeypatch):
    speak_many = Synthesizer.speak_many

    def first_is_empty(self, texts, settings):
        [speech] = speak_many(self, texts, settings)
        if "Good" in texts[0][0]:
            # before it ended it made a little sound, which is not the text
            speech = replace(speech, ended="empty", wav=torch.ones(480), codes=speech.codes[:1])
        return [speech]

    monkeypatch.setattr(Synthesizer, "speak_many", first_is_empty)
    job = engine.submit(request())
    assert job.wait(10**6, timeout_sec=60)
    assert (job.status, [part.ended == "empty" for part in job.parts]) == ("done", [True, False])
    assert [len(part.pcm) > 0 for part in job.parts] == [False, True]
    assert "“Good morning.” was not said at all" in outcome_view(job)
    silent = engine.submit(request("Good morning."))
    assert silent.wait(10**6, timeout_sec=60)
    assert silent.status == "failed"
    assert "nothing was said: toy ended at once" in str(silent.error)


def test_job_when_it_has_no_voice_then_only_a_sentence_that_ended_well_becomes_the_voice(engine, monkeypatch):
    voices, endings = [], ["budget", "loop", "eos", "eos"]
    speak_many = Synthesizer.speak_many

    def ended(self, texts, settings):
        [speech] = speak_many(self, texts, settings)
        voices.append(texts[0][1])
        return [replace(speech, ended=endings[len(voices) - 1], codes=speech.codes[: 40 + len(voices)])]

    monkeypatch.setattr(Synthesizer, "speak_many", ended)
    job = engine.submit(request(f"{TEXT} It is a fine day. Let us go for a walk."))
    assert job.wait(10**6, timeout_sec=60)
    assert [voice is None for voice in voices] == [True, True, True, False]
    assert len(voices[3].codes) == 43  # of the third


def test_job_when_it_has_no_voice_then_a_sentence_leaves_room_for_it_as_a_prompt(engine, monkeypatch):
    rooms = []

    def cut(tokenizer, text, room_sec, language):
        rooms.append(room_sec)
        return [text]

    monkeypatch.setattr(requests, "spoken_sentences", cut)
    assert engine.submit(request("Good morning.")).wait(10**6, timeout_sec=60)
    assert rooms == [11.0]


def test_choices_when_they_are_made_then_speaking_follows_them():
    chosen = {
        **{"language": "en", "accent": "zh", "seed": 7, "is_seed_new": False, "best_of": 3.0, "redraws": 2.0},
        **{"temperature": 0.5, "top_p": 0.9, "top_k": 40.0},
        **{"repetition_penalty": 1.2, "repetition_aware": 0.1},
        **{"mode": "fixed", "unknown_words": "keep", "precision": "float32"},
        **{"vocoder": "vocos", "strength": 1.0},
    }
    said = {"language": "en", "accent": "zh", "seed": 7, "best_of": 3, "max_redraws": 2, "temperature": 0.5}
    drawn = {"top_p": 0.9, "top_k": 40, "repetition_penalty": 1.2, "repetition_aware": 0.1}
    assert Choices(**chosen).settings() == SpeakSettings(**said, **drawn)
    off = {"accent": "as written", "is_seed_new": True, "top_k": 0, "repetition_aware": 0}
    settings = Choices(**chosen | off).settings()
    assert (settings.accent, settings.top_k, settings.repetition_aware) == (None, None, None)


def test_queue_when_others_wait_then_the_place_is_told_and_a_waiting_job_can_leave(engine, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(Engine, "_speak", lambda self, job: gate.wait(30))
    monkeypatch.setattr(engines, "MAX_WAITING", 2)
    running = engine.submit(request(), owner="a")
    while engine._running is not running:
        pass
    waiting = [engine.submit(request(), owner="b") for _ in range(2)]
    assert [engine.num_before(job) for job in waiting] == [1, 2]
    with pytest.raises(Busy, match="2 texts are waiting"):
        engine.submit(request())
    assert engine.cancel_all_of("b") == 2
    assert [job.status for job in waiting] == ["cancelled", "cancelled"]
    gate.set()
    assert running.wait(10**6, timeout_sec=30)


def test_queue_when_one_tab_stops_then_the_other_tabs_and_pages_go_on(engine, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(Engine, "_speak", lambda self, job: (gate.wait(30), self._check()))
    jobs = [engine.submit(request(), owner) for owner in ("a/clone", "a/compare", "ab/compare", "")]
    assert engine.cancel_all_of("a/compare") == 1
    assert engine.cancel_all_of("a/compare/x") == 0
    gate.set()
    assert all(job.wait(10**6, timeout_sec=30) for job in jobs)
    assert [job.status for job in jobs] == ["done", "cancelled", "done", "done"]
    gate.clear()
    jobs = [engine.submit(request(), owner) for owner in ("a/clone", "a/compare", "b/clone")]
    assert engine.cancel_all_of("a") == 2
    gate.set()
    assert jobs[2].wait(10**6, timeout_sec=30)
    assert jobs[2].status == "done"


def test_job_when_cancelled_while_its_checkpoint_loads_then_it_says_so_and_nothing_is_spoken(
    settings_of, monkeypatch
):
    engine, begun, gate = Engine(settings_of()), threading.Event(), threading.Event()
    load = engine.models._load

    def loading(*args):
        begun.set()
        gate.wait(30)
        return load(*args)

    monkeypatch.setattr(engine.models, "_load", loading)
    job = engine.submit(request())
    assert begun.wait(30)
    engine.cancel(job)
    assert (job.is_stopping, job.is_over) == (True, False)
    assert stopping_line(job) == "Stopping as soon as toy has been loaded …"
    gate.set()
    assert job.wait(10**6, timeout_sec=30)
    assert (job.status, job.is_stopping, job.num_parts) == ("cancelled", False, 0)
    assert [name for name, _ in engine.memory.loaded] == ["toy"]


def warm_models(settings: PageSettings) -> WarmModels:
    return WarmModels(settings, Memory(settings.memory_gb), lambda: None)


def used(models: WarmModels, choice: Choice, **how) -> VALLE:
    """A model that was used for a moment."""
    with models.lent(choice, **how) as model:
        return model


def test_warm_models_when_the_budget_is_full_then_the_longest_unused_goes(settings_of):
    settings = settings_of(memory_gb=0.03)
    models = warm_models(settings)
    toy = used(models, find_choice("toy", settings))
    assert used(models, find_choice("toy", settings)) is toy
    used(models, find_choice("tiny.pt", settings))
    assert [name for name, _ in models._memory.loaded] == ["toy", "tiny.pt"]
    models._memory.budget_gb = 0.02
    assert used(models, find_choice("toy", settings)) is toy
    models._memory.drop(lambda key: key.name == "tiny.pt")
    used(models, find_choice("tiny.pt", settings))
    assert [name for name, _ in models._memory.loaded] == ["tiny.pt"]
    tight = warm_models(settings_of(memory_gb=0.001))
    with pytest.raises(CheckpointError, match=r"tiny.pt: takes 0.01 GB; all that is loaded may take 0.001"):
        used(tight, find_choice("tiny.pt", settings))


def test_warm_models_when_a_precision_is_chosen_then_they_speak_in_it_and_count_as_they_came(settings_of):
    plain, small = (warm_models(settings_of(precision=name)) for name in ("float32", "int8"))
    tiny = find_choice("tiny.pt", settings_of())
    assert [used(warm, tiny).precision for warm in (plain, small)] == ["float32", "int8"]
    assert plain._memory.loaded == small._memory.loaded
    assert plain._memory.loaded[0][1] > 10**6
    assert used(plain, tiny, precision="int8").precision == "int8"
    assert [name for name, _ in plain._memory.loaded] == ["tiny.pt", "tiny.pt"]
    with pytest.raises(ConfigError, match="precision 'int3' is not known; it is one of float32, bfloat16"):
        settings_of(precision="int3")


def test_warm_models_when_an_adapter_is_chosen_then_room_is_made_for_its_base(settings_of, tmp_path):
    settings = settings_of(memory_gb=0.02)
    base = find_choice("tiny.pt", settings).path
    model = load_model(base)
    record = {"path": str(base), "fingerprint": fingerprint_of(model)}
    add_adapter(model, "ar", AdapterSettings(rank=1, alpha=1.0))
    save_adapter(model, tmp_path / ADAPTER_FILE, base=record)
    models = warm_models(settings)
    used(models, find_choice("toy", settings))
    load, warm = models._load, []

    def loading(*args):
        warm.extend(models._memory.loaded)
        return load(*args)

    models._load = loading
    used(models, Choice(name="anna@best", path=tmp_path / ADAPTER_FILE))
    assert warm == []
    assert [name for name, _ in models._memory.loaded] == ["anna@best"]


def test_memory_when_something_is_in_use_then_it_stays_and_who_finds_no_room_waits(monkeypatch):
    monkeypatch.setattr("finetune.page.memory._WAIT_SEC", 0.01)
    memory, waited, got = Memory(3e-9), threading.Event(), []

    def using(key):
        with memory.lent(key, key, 2, lambda: (key, 2), waited.set) as thing:
            got.append(thing)

    with memory.lent("a", "a", 2, lambda: ("a", 2)):
        thread = threading.Thread(target=using, args=("b",))
        thread.start()
        assert waited.wait(30)
        assert (got, memory.loaded) == ([], [("a", 2)])
    thread.join(30)
    assert (got, memory.loaded) == (["b"], [("b", 2)])

    def giving_up():
        raise KeyError("called off")

    with (
        memory.lent("a", "a", 2, lambda: ("a", 2)),
        pytest.raises(KeyError, match="called off"),
        memory.lent("b", "b", 2, lambda: ("b", 2), giving_up),
    ):
        raise AssertionError("there was no room")


def test_recognizer_when_it_has_heard_then_it_stays_loaded_within_the_budget(settings_of, tmp_path):
    pytest.importorskip("pocketsphinx")
    recording = next(iter(sorted(SAMPLE.rglob("*.wav"))))
    engine = Engine(settings_of(asr="pocketsphinx", memory_gb=0.2))
    heard = engine.hear(recording)
    assert heard.source == "pocketsphinx"
    assert engine.memory.loaded == [("pocketsphinx", 110_000_000)]
    assert engine.hear(recording) == heard
    with pytest.raises(CheckpointError, match=r"takes 0.11 GB; all that is loaded may take 0.1 GB"):
        Engine(settings_of(asr="pocketsphinx", memory_gb=0.1)).hear(recording)
    with pytest.raises(WeightsError, match="nothing can be heard"):
        Engine(settings_of(asr="none")).hear(recording)


def test_choices_when_there_is_no_checkpoint_then_it_says_how_to_get_one(tmp_path):
    empty = PageSettings(checkpoints_dir=tmp_path, runs_dir=tmp_path / "runs")
    assert list_choices(empty) == []
    with pytest.raises(WeightsError, match="vallex download"):
        find_choice("released", empty)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "tiny", ""])
def test_choices_when_a_name_is_not_in_the_list_then_it_is_no_path(settings_of, name):
    with pytest.raises(CheckpointError, match="is not known; there are toy, tiny"):
        find_choice(name, settings_of())


@pytest.mark.parametrize(
    ("host", "said"),
    [("0.0.0.0", "0.0.0.0"), ("192.168.1.7", "--password"), ("::", "--api-key"), ("myhost", "VALLEX_PASS")],
)
def test_settings_when_others_can_reach_the_page_then_it_needs_a_password_and_a_key(host, said):
    with pytest.raises(ConfigError, match=said):
        PageSettings(host=host)
    with pytest.raises(ConfigError, match="needs a key"):
        PageSettings(host=host, password="p")
    PageSettings(host=host, password="p", api_key="k")


def test_request_when_the_text_is_empty_or_endless_then_it_is_refused():
    with pytest.raises(TextError, match="nothing to say"):
        request("   ")
    with pytest.raises(TextError, match="5001 characters; at most 5000"):
        request("a" * 5001)


def test_voice_when_the_transcript_is_endless_then_it_is_refused(engine, tmp_path):
    with pytest.raises(PromptError, match="has 2001 characters; at most 2000 are taken"):
        engine.make_voice(tmp_path / "any.wav", "x" * 2001)


def test_sentences_when_languages_mix_then_a_sentence_goes_on_over_them():
    tokenizer = PhonemeTokenizer()
    text = "[EN]The word is[EN] [ZH]谢谢。你好，朋友。[ZH] [EN]Yes. No. And this is the end of it.[EN]"
    assert spoken_sentences(tokenizer, text, 18, None) == [
        "[EN]The word is[EN][ZH]谢谢。[ZH]",
        "[ZH]你好，朋友。[ZH]",
        "[EN]Yes. No. And this is the end of it.[EN]",
    ]
    assert len(spoken_sentences(tokenizer, "and on " * 200 + ".", 10, "en")) > 3


@pytest.mark.parametrize("name", ["../alan", "a/b", ".hidden", "", "x" + chr(0)])
def test_shelf_when_a_name_would_be_a_path_then_it_is_refused(tmp_path, page_folder, name):
    shelf = VoiceShelf(tmp_path, toy_codec=True)
    with pytest.raises(PromptError):
        shelf.take(page_folder / "prompts" / "alan.npz", name)
    with pytest.raises(PromptError):
        shelf.delete(name)
    assert list(tmp_path.iterdir()) == []


def test_shelf_when_a_file_is_no_voice_then_it_is_refused_without_its_path(tmp_path):
    hostile = tmp_path / "upload.npz"
    hostile.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(PromptError, match=r"^anna\.npz: the file: not an npz file"):
        VoiceShelf(tmp_path / "prompts", toy_codec=True).take(hostile, "anna")


def test_job_when_sentences_follow_each_other_then_each_has_the_one_before_for_its_voice(engine, monkeypatch):
    heard = []
    speak_many = Synthesizer.speak_many

    def listening(self, texts, settings):
        [speech] = speak_many(self, texts, settings)
        assert self.vocoder is engine.codec
        heard.append((self.tokenizer.unknown_words, texts[0][1]))
        return [replace(speech, ended="eos", codes=speech.codes[: 40 + len(heard)])]

    monkeypatch.setattr(Synthesizer, "speak_many", listening)
    voice = VoiceShelf(engine.settings.prompts_dir, toy_codec=True).load("alan")
    asked = replace(
        request(f"{TEXT} Good."), voice=voice, mode="sliding", unknown_words="spell", vocoder="encodec"
    )
    assert engine.submit(asked).wait(10**6, timeout_sec=60)
    assert [way for way, _ in heard] == ["spell", "spell"]
    assert heard[0][1] is voice
    assert len(heard[1][1].codes) == 41
    with pytest.raises(ConfigError, match="long is 'other'"):
        replace(asked, mode="other")


def test_list_when_it_is_spoken_then_the_zip_holds_a_marked_wav_of_each_line(engine):
    shelf = VoiceShelf(engine.settings.prompts_dir, toy_codec=True)
    text = "Good morning, my friend.\n\nHow are you?||alan\n"
    named = named_voices(text, shelf.load)
    assert list(named) == ["alan"]
    asked = ListRequest(text=text, voice=None, voices=named, checkpoint="toy")
    job = engine.submit(asked)
    assert job.wait(10**6, timeout_sec=60)
    while not job.is_over:
        job.wait(len(job.parts), timeout_sec=60)
    assert (job.status, job.num_parts, sorted(part.number for part in job.parts)) == ("done", 2, [1, 3])
    with zipfile.ZipFile(engine.save(job, "zip")) as archive:
        assert archive.namelist() == ["0001.wav", "0003.wav"]
        sound = soundfile.SoundFile(io.BytesIO(archive.read("0003.wav")))
    assert sound.comment == "synthetic speech by vallex, toy (toy weights: what you hear is noise)"
    assert file_name(job, "zip") == "Good-morning-my-friend-How-are-you-alan_toy_seed-0.zip"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "Hi.\nHi.||../alan",
            r"because 1 of 2 lines .* line 2: voice '../alan' is not saved",
        ),
        ("Hi.|Hello.|alan", "line 1: 'Hello.': a saved voice knows what it says"),
        ("a|b|c|d\n||alan", "line 1: it has 4 columns.*line 2: it has no text"),
        ("Hi.\n…\n[EN]Hi.", "line 2: nothing to say in '…'.*line 3: .* is not closed"),
        ("Hi.\n" * 201, "the list has 201 lines; at most 200 are taken"),
        ("a" * 20_001, "20001 characters; at most 20000 are taken"),
        (" \n", "nothing to say yet"),
    ],
)
def test_list_when_lines_are_faulty_then_all_are_told_before_it_waits(engine, text, said):
    shelf = VoiceShelf(engine.settings.prompts_dir, toy_codec=True)
    with pytest.raises((ListError, TextError), match=said):
        engine.submit(
            ListRequest(text=text, voice=None, voices=named_voices(text, shelf.load), checkpoint="toy")
        )


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("a.txt", "\ufeffHi.\r\nHow are you?||alan\n", "Hi.\nHow are you?||alan"),
        ("a.csv", 'Hi.\n\n"One, two,\nthree",,alan\n', "Hi.\nOne, two, three\t\talan"),
    ],
)
def test_list_when_it_comes_as_a_file_then_its_lines_are_those_that_are_typed(tmp_path, name, content, lines):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert listed_texts(str(tmp_path / name)) == lines


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"Gr\xfcezi", "a.txt: not UTF-8 text; save it as UTF-8"),
        ("a.csv", b'"open', "a.csv: not a csv that can be read"),
        ("a.tsv", b"x" * 80_001, "a.tsv: 80001 bytes; at most 80000 are taken"),
    ],
)
def test_list_when_its_file_is_none_then_it_is_refused(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ListError, match=said):
        listed_texts(str(tmp_path / name))


def test_recording_when_it_is_spoken_on_from_then_its_beginning_is_kept(engine):
    recording = next(iter(sorted(SAMPLE.rglob("*.wav"))))
    with pytest.raises(PromptError, match=r"^the recording: its first 9 s .* keep 0.5 to 1.9 s of it$"):
        engine.beginning(recording, 9)
    asked = {"checkpoint": "toy", "beginning": engine.beginning(recording, 1.0)}
    job = engine.submit(ContinueRequest(text="The judge enjoyed a cup of ginger tea.", **asked))
    assert job.wait(10**6, timeout_sec=60)
    assert (job.status, job.num_parts, len(job.parts)) == ("done", 1, 1)
    assert job.seconds > 1.0


def test_speech_when_more_is_kept_than_allowed_then_the_oldest_goes(settings_of, monkeypatch):
    engine = Engine(settings_of())
    monkeypatch.setattr(Engine, "_speak", lambda self, job: None)
    monkeypatch.setattr(engines, "_KEPT_SEC", 3.0)
    jobs = [engine.submit(request()) for _ in range(3)]
    assert jobs[2].wait(10**6, timeout_sec=30)
    for job in jobs:
        job.add(Part(text="", pcm=bytes(2 * 24000 * 2), ended="eos", seed=0, unsaid=()))
    path = engine.save(jobs[0])
    engine.submit(request())
    assert [engine.find(job.token) is not None for job in jobs] == [False, False, True]
    assert not path.exists()


def test_weights_when_they_are_fetched_then_one_download_is_joined_and_can_be_stopped(tmp_path, monkeypatch):
    desk = WeightsDesk(PageSettings(checkpoints_dir=tmp_path))
    asked, gate = [], threading.Event()

    def fetching(files, folder, *, mirror, on_progress):
        asked.append(([file.name for file in files], folder, mirror))
        on_progress(files[0], 10, None)
        gate.wait(30)
        on_progress(files[0], 20, 100)

    monkeypatch.setattr("finetune.page.weights.fetch", fetching)
    task, is_own = desk.task(["checkpoint"], "http://localhost")
    again, is_own_too = desk.task(["codec"])
    assert (again is task, is_own, is_own_too) == (True, True, False)
    desk.stop()
    gate.set()
    assert task.wait(30)
    assert (task.is_stopped, task.error, desk.is_busy) == (True, None, False)
    assert asked == [(["vallex-checkpoint.pt"], tmp_path, "http://localhost")]


def test_weights_when_others_can_reach_the_page_then_they_name_no_address(tmp_path):
    away = PageSettings(host="0.0.0.0", password="p", api_key="k", checkpoints_dir=tmp_path)
    with pytest.raises(ConfigError, match="a mirror can be given on the machine that serves the page"):
        WeightsDesk(away).task(["codec"], "http://10.0.0.1")
    with pytest.raises(ConfigError, match="choose what to fetch; not here are asr, checkpoint, codec, speak"):
        WeightsDesk(away).task(["../codec"])
    assert WeightsDesk(PageSettings(checkpoints_dir=tmp_path, offline_toy=True)).missing() == []
