"""vallex import, doctor DATA, export of a prepared set, voice make without a text; workers of prepare."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from finetune.cli import main
from finetune.data.cli import choose_workers
from finetune.data.transcribe import hear_files
from vallex.errors import ConfigError, PromptError, WeightsError
from vallex.inference import voices
from vallex.inference.asr import Heard

RATE_HZ = 24000
needs_pocketsphinx = pytest.mark.skipif(
    importlib.util.find_spec("pocketsphinx") is None, reason="pocketsphinx is not installed (extra judges)"
)


@pytest.fixture
def vallex(tmp_path, monkeypatch, capfd):
    """Runs a command line in this process and an empty folder; gives its code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vallex", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capfd.readouterr()

    return call


@pytest.fixture
def recordings(shared, tmp_path) -> Path:
    """Four real clips of one reader, as mp3 with their texts."""
    folder = tmp_path / "phone"
    folder.mkdir()
    for number, path in enumerate(sorted((shared / "data/LibriTTS-mini").rglob("9100_49_*.wav"))):
        soundfile.write(folder / f"{number}.mp3", soundfile.read(path)[0], RATE_HZ)
        (folder / f"{number}.txt").write_text(path.with_suffix("").with_suffix(".normalized.txt").read_text())
    return folder


def test_import_doctor_prepare_export_and_import_in_one_go(vallex, recordings):
    code, out, err = vallex("import", recordings, "data", "--speaker", "anna")
    assert (code, err) == (0, "")
    assert "4, 4 of them new" in out and "4 given" in out and "Then: vallex doctor data" in out
    assert "4, 0 of them new" in vallex("import", recordings, "data", "--speaker", "anna")[1]
    code, out, err = vallex("doctor", "data", "--asr", "none", "--html", "-o", "found")
    assert (code, err) == (0, "")
    assert "4 of 4" in out and "Written to found: faults.csv, report.json, report.html" in out
    assert {path.name for path in Path("found").iterdir()} == {"faults.csv", "report.json", "report.html"}
    assert vallex("prepare", "data", "set", "--offline-toy")[0] == 0
    code, out, err = vallex("export", "set", "files", "--format", "hdf5")
    assert (code, err) == (0, "") and "files/train: audio_sum.hdf5 and audio_ann_sum.txt, 3 utterances" in out
    code, out, err = vallex("import", "files", "again")
    assert (code, err) == (0, "") and "toy weights" in out and "codes without recordings" in out


def test_doctor_when_a_clip_cannot_be_used_ends_with_code_1(vallex, recordings):
    vallex("import", recordings, "data", "--speaker", "anna", "--asr", "none")
    wav = next(Path("data").rglob("*.wav"))
    wav.write_bytes(wav.read_bytes()[:1000])
    code, out, err = vallex("doctor", "data", "--asr", "none")
    assert (code, err) == (1, "")
    assert "audio unreadable" in out and "1 faults block" in out
    assert Path("doctor/faults.csv").is_file() and not Path("doctor/report.html").exists()


@needs_pocketsphinx
def test_import_of_a_long_recording_hears_it_and_takes_the_review_back(vallex, recordings):
    wavs = [soundfile.read(path)[0] for path in sorted(recordings.glob("[123].mp3"))]
    pause = np.random.default_rng(0).standard_normal(RATE_HZ) * 3e-4
    long = np.concatenate([part for wav in wavs for part in (pause, wav)])
    Path("talks").mkdir()
    soundfile.write("talks/talk.mp3", long, RATE_HZ)
    code, out, err = vallex("import", "talks", "data", "--speaker", "anna")
    assert (code, err) == (0, "")  # libmpg123 complains where somebody seeks
    assert "pocketsphinx" in out and "--review data/review.csv" in " ".join(out.split())
    text = next(Path("data").rglob("*.normalized.txt"))
    assert text.with_name(text.name.replace("normalized", "source")).read_text() == "pocketsphinx\n"
    review = Path("data/review.csv")
    review.write_text(review.read_text(encoding="utf-8-sig").replace(text.read_text().strip(), "As I said."))
    assert vallex("import", "talks", "data", "--speaker", "anna")[0] == 2
    code, out, err = vallex("import", "talks", "data", "--speaker", "anna", "--review", review)
    assert code == 0 and "1 clips changed" in out
    assert text.read_text() == "As I said.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("import", "phone", "data"), "whose recordings are these? Name the speaker: --speaker NAME"),
        (("import", "none", "data", "--speaker", "a"), "none: no such file or folder"),
        (("import", "phone", "data", "--speaker", "a/b"), "speaker 'a/b': use letters, digits"),
        (
            ("import", "phone", "data", "--speaker", "a", "--corpus", "x"),
            "corpus 'x' is not one of auto, none",
        ),
        (("import", "phone", "data", "--speaker", "a", "--asr", "x"), "asr 'x' is not known"),
        (("import", "phone", "data", "--speaker", "a", "--asr", "whisper"), "Whisper is not in checkpoints"),
        (
            ("import", "phone", "data", "--speaker", "a", "--language", "German"),
            "language 'German' is not auto",
        ),
        (
            ("import", "phone", "data", "--speaker", "a", "--max-clip-sec", "1"),
            "max_clip_sec 1: the first must",
        ),
        (
            ("import", "phone", "data", "--speaker", "a", "--edge-sec", "5"),
            "edge_sec 5 is not between 0 and 1",
        ),
        (("import", "phone", "phone/data", "--speaker", "a"), "lies in"),
        (("import", "phone", "data", "--speaker", "a", "--review", "x.csv"), "x.csv: cannot be read"),
        (("doctor", "phone", "--asr", "none", "--min-clip-sec", "20"), "min_clip_sec 20 and max_clip_sec 14"),
        (("doctor", "phone", "--asr", "x"), "asr 'x' is not known"),
        (("doctor", "phone", "--asr", "whisper"), "Whisper is not in checkpoints"),
        (("export", "phone", "out", "--format", "hdf5"), "phone: is not a prepared set"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(vallex, recordings, arguments, message):
    before = sorted(Path().rglob("*"))
    code, _, err = vallex(*arguments)
    assert code == 2
    assert message in err and err.startswith("vallex: ") and err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


@needs_pocketsphinx
def test_voice_make_without_a_text_shows_what_is_heard(vallex, recordings, shared):
    recording = next((shared / "data/LibriTTS-mini").rglob("8463_*.wav"))
    Path("voice.wav").write_bytes(recording.read_bytes())
    code, out, err = vallex("voice", "make", "anna", "voice.wav", "--offline-toy")
    assert (code, err) == (0, "")
    assert "Heard by pocketsphinx, in en:" in out and "prompts/anna.npz" in out
    code, _, err = vallex("voice", "make", "ben", "voice.wav", "--offline-toy", "--language", "ja")
    assert code == 2 and "pocketsphinx hears English only, not 'ja'" in err


def test_hear_transcript_when_it_cannot_says_why(tmp_path, shared, monkeypatch):
    soundfile.write(tmp_path / "long.wav", np.zeros(20 * RATE_HZ), RATE_HZ)
    with pytest.raises(PromptError, match=r"long.wav: lasts 20.0 s; a voice prompt is 0.5 to 15 s"):
        voices.hear_transcript(tmp_path / "long.wav")
    soundfile.write(tmp_path / "still.wav", np.zeros(2 * RATE_HZ), RATE_HZ)
    monkeypatch.setattr(voices, "find_recognizer", lambda *choice: None)
    with pytest.raises(
        PromptError, match=r"still.wav: what is said in it is not known: .*nothing can be heard"
    ):
        voices.hear_transcript(tmp_path / "still.wav", checkpoints_dir=tmp_path)

    class Deaf:
        def hear(self, wavs, language):
            return [Heard(text="", language="en", source="deaf")]

    monkeypatch.setattr(voices, "find_recognizer", lambda *choice: "deaf")
    monkeypatch.setattr(voices, "load_recognizer", lambda *choice: Deaf())
    with pytest.raises(
        PromptError, match=r"still.wav: deaf hears no word in it; say what is said with --text"
    ):
        voices.hear_transcript(tmp_path / "still.wav")


@pytest.mark.slow  # two processes import torch
@needs_pocketsphinx
def test_hear_files_in_processes_hears_what_one_process_does(recordings, tmp_path):
    paths = [recordings / "2.mp3", recordings / "3.mp3", tmp_path / "absent.wav"]
    alone = list(hear_files(paths, "pocketsphinx", num_workers=1))
    assert list(hear_files(paths, "pocketsphinx", num_workers=2)) == alone
    assert alone[-1] is None and all(one.text for one in alone[:-1])


def test_hear_files_when_there_is_no_recognizer_raises(tmp_path):
    with pytest.raises(WeightsError, match="nothing can be heard"):
        list(hear_files([], "whisper", checkpoints_dir=tmp_path))


@pytest.mark.parametrize(
    ("devices", "free_bytes", "num_workers"),
    [
        ("cuda:0", [100e9], 16),
        ("cuda:0", [11.5e9], 3),
        ("cuda:0,cuda:1", [100e9, 100e9], 8),
        ("cuda:0,cuda:1", [100e9, 7e9], 2),
        ("cuda", [1e9], 1),
        ("cuda", [], 1),  # so full that asking fails
    ],
)
def test_choose_workers_when_on_gpus_then_no_more_than_they_have_room_for(
    monkeypatch, devices, free_bytes, num_workers
):
    free = dict(zip(devices.split(","), free_bytes, strict=False))

    def mem_get_info(name):
        if name not in free:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return int(free[name]), 200_000_000_000

    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.mem_get_info", mem_get_info)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    assert choose_workers(devices, None, 100_000, True).num_workers == num_workers
    assert choose_workers(devices, 12, 100_000, True).num_workers == 12
    with pytest.raises(ConfigError, match="device 'cuda:2' is not here"):
        choose_workers("cuda:2", None, 100_000, True)
