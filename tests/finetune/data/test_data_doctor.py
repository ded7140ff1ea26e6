"""The doctor of recordings: every fault with its value, a clean set without any, reports, the page."""

import base64
import csv
import html.parser
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console

from finetune.data import doctor
from finetune.data.doctor import BLOCKS, FAULTS, DoctorSettings, diagnose
from finetune.data.doctor_page import page_of
from finetune.data.doctor_report import CSV_NAME, JSON_NAME, doctor_view, statistics, write_reports
from finetune.data.levels import Levels, find_speech, measure_levels
from vallex.errors import ConfigError, DataError, WeightsError
from vallex.inference.asr import Heard

RATE_HZ = 24000
NO_ASR = DoctorSettings(asr="none")


@pytest.fixture(scope="session")
def speech(shared) -> list[np.ndarray]:
    """Real clips of 2 to 8 s, two of them for each speaker that the tests make."""
    paths = sorted((shared / "data/LibriTTS-mini").rglob("*.wav"))
    clips = [soundfile.read(path, dtype="float32")[0] for path in paths]
    return [clip for clip in clips if 2.2 < len(clip) / RATE_HZ < 8][:8]


@pytest.fixture
def data(tmp_path, speech) -> Path:
    """Eight good clips of two speakers, each with a text of a likely length."""
    root = tmp_path / "data"
    for number, wav in enumerate(speech):
        text = f"Clip number {number}. " + "a good word and " * round(0.8 * len(wav) / RATE_HZ)
        put(
            root, f"good{number}", wav / np.abs(wav).max() * 0.5, text, speaker="ann" if number < 4 else "ben"
        )
    return root


def put(root: Path, name: str, wav, text: str | None, speaker: str = "ann", rate_hz: int = RATE_HZ) -> Path:
    folder = root / "train" / speaker / "1"
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / f"{name}.wav", wav, rate_hz)
    if text is not None:
        (folder / f"{name}.normalized.txt").write_text(text, encoding="utf-8")
    return folder / f"{name}.wav"


def values_of(diagnosis, name: str) -> dict[str, str]:
    """Fault to value, of one clip."""
    return {fault.fault: fault.value for fault in diagnosis.faults if Path(fault.file).stem.startswith(name)}


def test_doctor_of_good_recordings_finds_nothing_that_blocks(data, tokenizer):
    diagnosis = diagnose(data, NO_ASR, tokenizer)
    assert not diagnosis.blocks
    assert {fault.fault for fault in diagnosis.faults} <= {"leading silence", "level"}
    assert len(diagnosis.usable()) == 8


def test_doctor_of_libritts_mini_finds_nothing_that_blocks(shared, tokenizer):
    diagnosis = diagnose(shared / "data/LibriTTS-mini", NO_ASR, tokenizer)
    assert not diagnosis.blocks
    assert len(diagnosis.usable()) == 20
    lonely = [fault.file for fault in diagnosis.faults if fault.fault == "speaker with too little"]
    assert len(lonely) == 12 and "9100" not in lonely
    others = {(fault.fault, fault.value) for fault in diagnosis.faults if fault.file not in lonely}
    assert others == {("leading silence", "1.14 s; at most 1 s")}


WAV_FAULTS = {
    # name: what is done to a good clip, rate, text or None for that of the clip, faults with their values
    "clipped": (lambda w: (w * 8).clip(-0.5, 0.5), 24000, {"clipping": r"\d+ flat peaks at -6.0 dB"}),
    "quiet": (lambda w: w * 0.01, 24000, {"level": r"speech at -\d+\.\d dB; the set's median is -\d+"}),
    "stereo": (lambda w: np.stack([w, 0.3 * w], 1), 24000, {"stereo": "2 channels; they are averaged"}),
    "low": (lambda w: w[::3], 8000, {"low rate": "8000 Hz; what is above 4000 Hz is missing"}),
    "short": (lambda w: w[9600:16800], 24000, {"too short": r"0.30 s; at least 0.5 s"}),
    "long": (lambda w: np.tile(w, 8), 24000, {"too long": r"\d+\.\d\d s; at most 14 s"}),
    "still": (lambda w: np.zeros(48000), 24000, {"no speech": "nothing above the noise floor in 2.00 s"}),
    "early": (
        lambda w: np.concatenate([np.zeros(60000), w[:48000], np.zeros(60000)]),
        24000,
        {
            "mostly silence": r"\d\d%; at most 50%",
            "leading silence": r"2\.\d\d s; at most 1 s",
            "trailing silence": r"2\.\d\d s; at most 1 s",
        },
    ),
}


@pytest.mark.parametrize("name", WAV_FAULTS)
def test_doctor_when_a_sound_is_faulty_says_which_value(data, speech, tokenizer, name):
    change, rate_hz, expected = WAV_FAULTS[name]
    wav = change(speech[0] / np.abs(speech[0]).max() * 0.5)
    put(data, name, wav, "Something else is said here.", rate_hz=rate_hz)
    diagnosis = diagnose(data, NO_ASR, tokenizer)
    found = values_of(diagnosis, name)
    for fault, value in expected.items():
        assert re.search(value, found[fault]), found
    assert diagnosis.blocks == any(FAULTS[fault] == BLOCKS for fault in expected)


TEXT_FAULTS = {
    "fast": ("many words " * 40, {"speaking rate": r"\d+\.\d characters a second; 5 to 26 in en"}),
    "slow": ("Hm.", {"speaking rate": r"0\.\d characters a second; 5 to 26 in en"}),
    "tagged": ("[EN]今天天气很好，我们出去玩。[EN]", {"language differs": "read as en, written in zh"}),
    "kana": ("[ZH]これはペンです。[ZH]", {"language differs": "read as zh, written in ja"}),
    "latin": ("[JA]This is English text.[JA]", {"language differs": "read as ja, written in en"}),
    "words": (
        "The frobnicator and zwulgs are ☃ here today.",
        {"unknown words": "frobnicator zwulgs: in no dictionary", "unknown symbols": "☃: without sound"},
    ),
    "russian": ("Привет, как дела?", {"text not usable": "is in no script of en, zh or ja"}),
    "dots": ("...", {"text not usable": "nothing to say"}),
    "empty": ("", {"empty text": "nothing is in it"}),
    "none": (None, {"audio without text": "looked for none.normalized.txt"}),
}


@pytest.mark.parametrize("name", TEXT_FAULTS)
def test_doctor_when_a_text_is_faulty_says_which_value(data, speech, tokenizer, name):
    text, expected = TEXT_FAULTS[name]
    put(data, name, speech[1][::-1] * 0.5, text)
    diagnosis = diagnose(data, NO_ASR, tokenizer)
    found = values_of(diagnosis, name)
    for fault, value in expected.items():
        assert re.search(value, found[fault]), found
    assert diagnosis.blocks == any(FAULTS[fault] == BLOCKS for fault in expected)


@pytest.mark.parametrize(
    "text",
    ["[ZH]今天天气很好。[ZH]", "[JA]東京大学[JA]", "[JA]iPhoneを買った。[JA]", "[EN]Good.[EN][ZH]你好。[ZH]"],
)
def test_doctor_when_tags_match_their_scripts_says_nothing(data, speech, tokenizer, text):
    put(data, "right", speech[1][::-1] * 0.5, text)
    assert "language differs" not in values_of(diagnose(data, NO_ASR, tokenizer), "right")


def test_doctor_when_files_are_damaged_tells_each(data, speech, tokenizer):
    whole = (data / "train/ann/1/good0.wav").read_bytes()
    for name, content in {
        "nothing": b"",
        "half": whole[: len(whole) // 2],
        "letters": b"no sound " * 99,
    }.items():
        put(data, name, np.zeros(10), f"A text for {name}.").write_bytes(content)
    (data / "train/ann/1/lonely.normalized.txt").write_text("Nobody.")
    (data / "loose.wav").write_bytes(whole)
    put(data, "latin", speech[2][::-1], "").with_name("latin.normalized.txt").write_bytes(
        "Schön".encode("latin-1")
    )
    diagnosis = diagnose(data, NO_ASR, tokenizer)
    assert values_of(diagnosis, "nothing")["audio unreadable"].startswith("is empty (0 bytes)")
    assert values_of(diagnosis, "half")["audio unreadable"].startswith("is truncated")
    assert values_of(diagnosis, "letters")["audio unreadable"].startswith("cannot be read as audio")
    assert values_of(diagnosis, "lonely") == {"text without audio": "lonely"}
    assert "vallex import" in values_of(diagnosis, "loose")["not in LibriTTS layout"]
    assert values_of(diagnosis, "latin") == {"text unreadable": "latin.normalized.txt is not UTF-8"}
    assert diagnosis.blocks and len(diagnosis.usable()) == 8


def test_doctor_when_sound_or_text_is_there_twice_says_of_which(data, speech, tokenizer):
    put(
        data,
        "zz-sound",
        soundfile.read(data / "train/ann/1/good1.wav")[0],
        "Other words than those of the first.",
    )
    put(data, "zz-text", speech[3][::-1] * 0.5, "  CLIP number 2 " + "a good, word and " * 99)
    first = (data / "train/ann/1/good2.normalized.txt").read_text()
    (data / "train/ann/1/zz-text.normalized.txt").write_text(first.upper().replace(".", "!"))
    diagnosis = diagnose(data, NO_ASR, tokenizer)
    assert values_of(diagnosis, "zz-sound")["duplicate audio"] == "the same as good1"
    assert values_of(diagnosis, "zz-text")["duplicate text"] == "the same as good2"
    assert values_of(diagnosis, "good1") == {}


def test_doctor_when_a_speaker_has_one_clip_says_so(data, speech, tokenizer):
    put(data, "alone", speech[0][::-1] * 0.5, "I am the only clip of this speaker.", speaker="cid")
    diagnosis = diagnose(data, NO_ASR, tokenizer)
    [fault] = [fault for fault in diagnosis.faults if fault.fault == "speaker with too little"]
    assert (fault.file, fault.value) == ("cid", "usable clips: 1; at least 2 for a split")


def test_doctor_when_one_clip_is_left_blocks(tmp_path, speech, tokenizer):
    put(tmp_path, "only", speech[0] * 0.5, "This is the only clip that there is.")
    diagnosis = diagnose(tmp_path, NO_ASR, tokenizer)
    assert diagnosis.blocks
    assert ("too few clips", "usable clips: 1; at least 2, to train and to validate") in {
        (fault.fault, fault.value) for fault in diagnosis.faults
    }


@pytest.fixture
def recognizer(monkeypatch):
    """Hears every clip's own text, but "nonsense" in those whose name begins so, and Chinese in "foreign"."""
    asked = []

    def hear_files(paths, *choice):
        for path in paths:
            asked.append(path.stem)
            text = path.with_name(f"{path.stem}.normalized.txt").read_text()
            heard = "what is heard is another thing" if path.stem.startswith("nonsense") else text
            yield Heard(text=heard, language="zh" if path.stem == "foreign" else "en", source="whisper-test")

    monkeypatch.setattr(
        doctor, "find_recognizer", lambda asr, *choice: None if asr == "none" else "whisper-test"
    )
    monkeypatch.setattr(doctor, "hear_files", hear_files)
    return asked


def test_doctor_when_it_can_hear_ranks_clips_by_word_error_rate(data, speech, tokenizer, recognizer):
    put(data, "nonsense", speech[0][::-1] * 0.5, "A text of eight words that nobody says.")
    put(data, "foreign", speech[1][::-1] * 0.5, "A text which somebody else says here.")
    diagnosis = diagnose(data, DoctorSettings(), tokenizer)
    assert values_of(diagnosis, "nonsense") == {
        "words differ": "word error rate 1.00; heard: what is heard is another thing"
    }
    assert values_of(diagnosis, "foreign") == {"language differs": "read as en, heard as zh"}
    assert diagnosis.faults[0].fault == "words differ"
    assert {report.error_rate for report in diagnosis.reports if report.clip.id.startswith("good")} == {0.0}
    assert diagnosis.num_heard == 10
    assert statistics(diagnosis)["mean_error_rate"] == pytest.approx(0.1)


def test_doctor_when_a_text_was_heard_by_the_same_ears_then_it_is_a_draft_and_no_measure(
    data, tokenizer, recognizer
):
    sources = {"good0": "whisper-test", "good1": "pocketsphinx", "good2": "reviewed", "good3": "given"}
    for report in diagnose(data, NO_ASR, tokenizer).reports:
        if source := sources.get(report.clip.id):
            report.clip.path.with_suffix(".source.txt").write_text(f"{source}\n")
    diagnosis = diagnose(data, DoctorSettings(), tokenizer)
    assert [report.clip.id for report in diagnosis.reports if report.error_rate is None] == ["good0"]
    assert [report.clip.id for report in diagnosis.drafts] == ["good0", "good1"]
    assert statistics(diagnosis)["num_drafts"] == 2
    shown = Console(width=200, record=True, file=io.StringIO())
    shown.print(doctor_view(diagnosis))
    text = shown.export_text()
    assert "2 texts are what a recognizer heard, and nobody has read them" in text
    assert "7 of 8 clips were heard against their texts by whisper-test (not its own drafts" in text


def test_doctor_when_hearing_is_limited_spreads_it_over_the_set(data, tokenizer, recognizer):
    total_sec = sum(report.sound.seconds for report in diagnose(data, NO_ASR, tokenizer).reports)
    diagnosis = diagnose(data, DoctorSettings(asr_max_sec=total_sec / 2), tokenizer)
    assert recognizer == ["good0", "good2", "good4", "good6"]
    assert diagnosis.num_heard == 4
    assert diagnose(data, DoctorSettings(asr_max_sec=0), tokenizer).num_heard == 0


def test_doctor_when_nothing_can_hear_says_why(data, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "find_recognizer", lambda *choice: None)
    diagnosis = diagnose(data, DoctorSettings(checkpoints_dir=tmp_path), tokenizer)
    assert "Whisper is not in" in diagnosis.deaf
    with pytest.raises(WeightsError, match="nothing can be heard: Whisper is not in"):
        diagnose(data, DoctorSettings(asr="whisper", checkpoints_dir=tmp_path), tokenizer)


def test_doctor_when_settings_or_folders_are_wrong_says_so(tmp_path, tokenizer):
    with pytest.raises(ConfigError, match="language 'xx' is not one of auto, en, zh, ja"):
        DoctorSettings(language="xx")
    with pytest.raises(DataError, match="holds no recording"):
        diagnose(tmp_path, NO_ASR, tokenizer)


def test_reports_hold_every_fault_and_the_statistics(data, speech, tokenizer, tmp_path):
    put(data, "short", speech[0][:6000], 'Too short, with, commas and "quotes".')
    diagnosis = diagnose(data, NO_ASR, tokenizer)
    write_reports(diagnosis, tmp_path / "out")
    with (tmp_path / "out" / CSV_NAME).open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(diagnosis.faults)
    assert rows[0] == {
        "level": "blocks",
        "fault": "too short",
        "file": "train/ann/1/short.wav",
        "value": "0.25 s; at least 0.5 s",
    }
    report = json.loads((tmp_path / "out" / JSON_NAME).read_text(encoding="utf-8"))
    assert report["blocks"] is True
    assert len(report["clips"]) == 9
    numbers = report["statistics"]
    usable = [clip for clip in report["clips"] if "too short" not in clip["faults"]]
    total_sec = sum(clip["sound"]["seconds"] for clip in usable)
    assert (numbers["num_usable"], numbers["num_found"]) == (8, 9)
    assert numbers["lengths"]["hours"] * 3600 == pytest.approx(total_sec)
    assert numbers["speech_share"] + numbers["silence_share"] == pytest.approx(1)
    assert numbers["num_phonemes"] == sum(clip["phonemes"]["num_phonemes"] for clip in usable)
    assert sum(speaker["seconds"] for speaker in numbers["speakers"].values()) == pytest.approx(total_sec)


class _Page(html.parser.HTMLParser):
    """What a page holds: sounds, how many bars there are, and whether anything is fetched."""

    def __init__(self):
        super().__init__()
        self.sounds, self.num_charts, self.fetched, self.text = [], 0, [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.num_charts += tag == "svg"
        if tag == "audio":
            self.sounds.append(values["src"])
        self.fetched += [values[key] for key in ("src", "href") if key in values and tag != "audio"]

    def handle_data(self, data):
        self.text.append(data)


def test_page_holds_players_and_histograms_and_fetches_nothing(data, speech, tokenizer, recognizer):
    put(data, "nonsense", speech[0][::-1] * 0.5, "<script>alert(1)</script> is a text & no more.")
    diagnosis = diagnose(data, DoctorSettings(), tokenizer)
    page = _Page()
    source = page_of(diagnosis)
    page.feed(source)
    assert page.fetched == [] and "http" not in source
    assert "<script" not in source
    assert page.num_charts >= 6
    assert "<script>alert(1)</script> is a text & no more." in page.text
    assert "what is heard is another thing" in page.text
    assert len(page.sounds) == 9
    kind, _, data64 = page.sounds[0].partition(";base64,")
    wav, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(data64)))
    assert kind == "data:audio/mpeg" and rate_hz == RATE_HZ
    assert len(wav) == pytest.approx(len(speech[0]), abs=3000)


def test_find_speech_when_noise_lies_under_it_finds_the_same_words(speech):
    """Speech in a quiet room and over a phone's hiss: the frames agree but for weak edges."""
    generator = np.random.default_rng(0)
    pause = np.zeros(RATE_HZ, dtype=np.float32)
    wav = np.concatenate([pause, speech[0], pause, speech[1], pause])
    wav = wav / np.sqrt((wav**2).mean()) * 0.05
    clean = find_speech(measure_levels([(wav, RATE_HZ)]))
    for snr_db in (30, 20, 10):
        noise = generator.standard_normal(len(wav)).astype(np.float32) * 0.05 * 10 ** (-snr_db / 20)
        noisy = find_speech(measure_levels([(wav + noise, RATE_HZ)]))
        assert (clean != noisy).mean() < 0.2
        assert not noisy[:80].any()  # the pause before it


def test_find_speech_when_all_is_one_level_is_all_or_nothing():
    assert not find_speech(Levels(level_db=np.full(300, -90.0), frame_sec=0.01)).any()
    assert find_speech(Levels(level_db=np.full(300, -20.0), frame_sec=0.01)).all()


def test_levels_when_a_recording_comes_in_blocks_are_those_of_the_whole(speech):
    wav = np.concatenate(speech[:3])
    whole = measure_levels([(wav, RATE_HZ)]).level_db
    pieces = measure_levels([(wav[start : start + 7001], RATE_HZ) for start in range(0, len(wav), 7001)])
    np.testing.assert_allclose(pieces.level_db, whole, atol=1e-3)
    assert pieces.seconds == pytest.approx(len(wav) / RATE_HZ, abs=0.02)
    full_scale = np.sin(np.arange(RATE_HZ) * 2 * np.pi * 1000 / RATE_HZ).astype(np.float32)
    assert measure_levels([(full_scale, RATE_HZ)]).level_db[50] == pytest.approx(-3.01, abs=0.05)
