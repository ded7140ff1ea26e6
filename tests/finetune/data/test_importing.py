"""Importing real recordings: every kind of source, cutting, levels, names, going on, reviewing."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from finetune.data import importing
from finetune.data.import_log import LOG_NAME, ImportLog
from finetune.data.importing import ImportSettings, import_recordings
from finetune.data.libritts import find_clips
from finetune.data.loudness import loudness_lufs
from vallex.codec.audio import load_audio
from vallex.errors import AudioError, ConfigError, DataError, TrainingError, WeightsError
from vallex.inference.asr import Heard

RATE_HZ = 24000


@pytest.fixture(scope="session")
def spoken(shared) -> list[tuple[np.ndarray, str]]:
    """Six real clips, 24 kHz mono, with what is said in them."""
    paths = sorted((shared / "data/LibriTTS-mini").rglob("*.wav"))[:6]
    texts = [path.with_name(path.stem + ".normalized.txt").read_text().strip() for path in paths]
    return [(soundfile.read(path, dtype="float32")[0], text) for path, text in zip(paths, texts, strict=True)]


@pytest.fixture
def deaf(monkeypatch):
    """No recognizer is there."""
    monkeypatch.setattr(importing, "find_recognizer", lambda *choice: None)


@pytest.fixture
def heard(monkeypatch) -> list[Path]:
    """A recognizer that says which clip it hears; the list has all that were given to it."""
    asked = []

    def hear_files(paths, *choice):
        for path in paths:
            asked.append(path)
            yield Heard(text=f"I heard {path.stem}.", language="en", source="a-recognizer")

    monkeypatch.setattr(importing, "find_recognizer", lambda *choice: "a-recognizer")
    monkeypatch.setattr(importing, "hear_files", hear_files)
    return asked


def loose_folder(folder: Path, spoken, texts: bool = True) -> Path:
    """Six recordings as people have them: every format, rates from 16 to 48 kHz, one of them stereo."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [("a.wav", 16000), ("b.flac", 44100), ("c.ogg", 24000), ("d.mp3", 48000), ("e.aiff", 22050)]
    kinds.append(("f.aifc", 24000))
    for (wav, text), (name, rate_hz) in zip(spoken, kinds, strict=True):
        sound = torchaudio.functional.resample(torch.from_numpy(wav), RATE_HZ, rate_hz).numpy()
        if name == "b.flac":
            sound = np.stack([sound, 0.5 * sound], axis=1)
        options = {"format": "AIFF", "subtype": "FLOAT"} if name == "f.aifc" else {}
        soundfile.write(folder / name, sound, rate_hz, **options)
        if texts:
            (folder / name).with_suffix(".txt").write_text(text + "\n")
    return folder


def long_recording(
    path: Path, spoken, repeats: int = 2, rate_hz: int = RATE_HZ, noise_db: float = -65.0
) -> list:
    """Clips with pauses of 0.5 to 1 s between them; returns where each begins and ends, in seconds."""
    generator = np.random.default_rng(0)
    parts, spans, position = [], [], 0
    for number in range(repeats * len(spoken)):
        pause = np.zeros(round(generator.uniform(0.5, 1.0) * RATE_HZ), dtype=np.float32)
        wav = spoken[number % len(spoken)][0]
        spans.append(((position + len(pause)) / RATE_HZ, (position + len(pause) + len(wav)) / RATE_HZ))
        parts += [pause, wav]
        position += len(pause) + len(wav)
    sound = np.concatenate(parts)
    sound = sound + generator.standard_normal(len(sound)).astype(np.float32) * 10 ** (noise_db / 20)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, rate_hz)
    return spans


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its bytes and the time of its last change."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_import_of_every_format_gives_a_folder_that_prepare_reads(tmp_path, spoken, deaf):
    src = loose_folder(tmp_path / "src", spoken)
    before = snapshot(src)
    summary = import_recordings(src, tmp_path / "dst", ImportSettings(speaker="anna"))
    assert (summary.num_clips, summary.num_new, summary.deaf) == (6, 6, "")
    assert summary.text_sources == {"given": 6}
    assert snapshot(src) == before
    clips, skipped = find_clips(tmp_path / "dst")
    assert [clip.id for clip in clips] == [f"anna_{name}" for name in "abcdef"]
    assert [clip.text for clip in clips] == [" ".join(text.split()) for _, text in spoken]
    assert {(clip.part, clip.speaker) for clip in clips} == {("train", "anna")}
    assert skipped == []
    for clip, (wav, _) in zip(clips, spoken, strict=True):
        header = soundfile.info(clip.path)
        assert (header.samplerate, header.channels, header.subtype) == (24000, 1, "PCM_16")
        assert header.frames == pytest.approx(len(wav), abs=0.06 * RATE_HZ)  # mp3 pads
        assert clip.path.with_name(f"{clip.id}.source.txt").read_text() == "given\n"


def test_import_brings_clips_to_one_level_without_clipping(tmp_path, spoken, deaf):
    src = loose_folder(tmp_path / "src", spoken)
    for number, path in enumerate(sorted(src.glob("[ace].*"))):
        if path.suffix != ".txt":
            wav, rate_hz = soundfile.read(path)
            soundfile.write(path, wav * 10 ** (-(6 + 5 * number) / 20), rate_hz)
    import_recordings(src, tmp_path / "dst", ImportSettings(speaker="anna"))
    levels = []
    for path in (tmp_path / "dst").rglob("*.wav"):
        wav = load_audio(path)
        assert wav.abs().max() <= 10 ** (-1 / 20) + 1e-3
        levels.append(loudness_lufs(wav, RATE_HZ))
    assert np.std(levels) < 1.5
    assert np.median(levels) == pytest.approx(-23, abs=0.5)


@pytest.mark.parametrize(("suffix", "rate_hz"), [(".wav", 24000), (".mp3", 24000), (".flac", 24000)])
def test_import_cuts_a_long_recording_in_its_silences(tmp_path, spoken, heard, suffix, rate_hz):
    spans = long_recording(tmp_path / "src" / f"talk{suffix}", spoken)
    summary = import_recordings(tmp_path / "src", tmp_path / "dst", ImportSettings(speaker="anna"))
    log = ImportLog(tmp_path / "dst")
    assert summary.num_clips >= len(spans) / 3
    recording = load_audio(tmp_path / "src" / f"talk{suffix}").numpy()
    loud = np.sqrt((recording**2).mean())
    for clip in log.clips():
        assert 2 <= clip.seconds <= 14
        wav = load_audio(clip.file(tmp_path / "dst", ".wav")).numpy()
        assert len(wav) / RATE_HZ == pytest.approx(clip.seconds, abs=0.002)
        for moment in (clip.start_sec, clip.end_sec):  # both ends are in silence
            around = recording[max(0, round((moment - 0.03) * RATE_HZ)) : round((moment + 0.03) * RATE_HZ)]
            assert np.sqrt((around**2).mean()) < 0.1 * loud
        for edge in (wav[: round(0.05 * RATE_HZ)], wav[-round(0.05 * RATE_HZ) :]):
            assert np.sqrt((edge**2).mean()) < 0.15 * np.sqrt((wav**2).mean())
    said = sum(end - start for start, end in spans)
    inside = sum(
        max(0, min(end, clip.end_sec) - max(start, clip.start_sec))
        for start, end in spans
        for clip in log.clips()
    )
    assert inside / said > 0.93  # what is left out is silence within the clips


def test_import_when_run_again_changes_nothing(tmp_path, spoken, heard):
    src = loose_folder(tmp_path / "src", spoken)
    long_recording(src / "talk.wav", spoken)
    settings = ImportSettings(speaker="anna")
    first = import_recordings(src, tmp_path / "dst", settings)
    before = snapshot(tmp_path / "dst")
    num_heard = len(heard)
    second = import_recordings(src, tmp_path / "dst", settings)
    assert first.num_new > 6 and num_heard > 0
    assert (second.num_new, second.num_clips, len(heard)) == (0, first.num_clips, num_heard)
    clips = {name: file for name, file in before.items() if name.startswith("train/")}
    assert {name: snapshot(tmp_path / "dst")[name] for name in clips} == clips
    assert {name: content for name, (content, _) in snapshot(tmp_path / "dst").items()} == {
        name: content for name, (content, _) in before.items()
    }


def test_import_when_killed_goes_on_to_the_same_bytes(tmp_path, spoken, heard, monkeypatch):
    src = loose_folder(tmp_path / "src", spoken)
    long_recording(src / "talk.wav", spoken)
    settings = ImportSettings(speaker="anna")
    import_recordings(src, tmp_path / "whole", settings)
    whole = {name: content for name, (content, _) in snapshot(tmp_path / "whole").items()}
    real = importing.save_audio
    for after in (0, 3, 7, 9):
        dst = tmp_path / f"cut-{after}"
        left = [after]

        def save_audio(path, wav, left=left):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            real(path, wav)

        monkeypatch.setattr(importing, "save_audio", save_audio)
        with pytest.raises(KeyboardInterrupt):
            import_recordings(src, dst, settings)
        monkeypatch.setattr(importing, "save_audio", real)
        if after:
            with (dst / LOG_NAME).open("ab") as log:
                log.write(b'{"source": {"na')  # half a line
        import_recordings(src, dst, settings)
        assert {name: content for name, (content, _) in snapshot(dst).items()} == whole


def test_import_names_stay_when_other_files_come_and_go(tmp_path, spoken, deaf):
    src = loose_folder(tmp_path / "src", spoken)
    (src / "deep").mkdir()
    shutil.copy(src / "a.wav", src / "deep" / "Ä b.wav")
    shutil.copy(src / "a.txt", src / "deep" / "Ä b.txt")
    settings = ImportSettings(speaker="anna", asr="none")
    import_recordings(src, tmp_path / "all", settings)
    (src / "b.flac").unlink()
    (src / "b.txt").unlink()
    soundfile.write(src / "0-first.wav", spoken[0][0], RATE_HZ)
    (src / "0-first.txt").write_text("First.")
    import_recordings(src, tmp_path / "fewer", settings)
    names = [{clip.id for clip in find_clips(tmp_path / place)[0]} for place in ("all", "fewer")]
    assert names[0] - names[1] == {"anna_b"}
    assert names[1] - names[0] == {"anna_0-first"}
    assert any(name.startswith("anna_deep+Ä-b-") for name in names[0])


def test_import_when_files_are_bad_passes_over_them(tmp_path, spoken, deaf):
    src = loose_folder(tmp_path / "src", spoken)
    whole = (src / "a.wav").read_bytes()
    (src / "bad-empty.wav").write_bytes(b"")
    (src / "bad-half.wav").write_bytes(whole[: len(whole) // 2])
    (src / "bad-noise.mp3").write_bytes(b"this is no sound " * 50)
    (src / "lonely.txt").write_text("Nobody says this.")
    (src / "a.flac").write_bytes((src / "b.flac").read_bytes())
    (src / "latin.wav").write_bytes(whole)
    (src / "latin.txt").write_bytes("Schön".encode("latin-1"))
    (src / "gone.wav").symlink_to(tmp_path / "absent.wav")
    soundfile.write(src / "still.wav", np.zeros(RATE_HZ), RATE_HZ)
    summary = import_recordings(src, tmp_path / "dst", ImportSettings(speaker="anna"))
    assert summary.num_clips == 6
    reasons = {(skip.path.name, skip.reason) for skip in summary.skipped}
    assert reasons == {
        ("gone.wav", "audio unreadable"),
        ("bad-empty.wav", "audio unreadable"),
        ("bad-half.wav", "audio unreadable"),
        ("bad-noise.mp3", "audio unreadable"),
        ("lonely.txt", "text without audio"),
        ("a.wav", "same name"),
        ("latin.wav", "text unreadable"),
    }
    assert [(Path(path).name, part["reason"]) for path, part in summary.left_out] == [
        ("still.wav", "no speech")
    ]
    with (tmp_path / "dst" / "left_out.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 8


def test_import_when_a_recording_has_no_pause_leaves_it_out_and_says_so(tmp_path, deaf):
    tone = np.sin(np.arange(20 * RATE_HZ) * 2 * np.pi * 440 / RATE_HZ) * 0.3
    soundfile.write(tmp_path / "tone.wav", tone, RATE_HZ)
    with pytest.raises(DataError, match=r"tone.wav: nothing in it can be imported: 1 no pause in 20.0 s"):
        import_recordings(tmp_path / "tone.wav", tmp_path / "dst", ImportSettings(speaker="anna"))


def test_import_when_nothing_can_hear_says_so_and_writes_the_review(tmp_path, spoken, deaf):
    src = loose_folder(tmp_path / "src", spoken[:6], texts=False)
    summary = import_recordings(
        src, tmp_path / "dst", ImportSettings(speaker="anna", checkpoints_dir=tmp_path)
    )
    assert summary.text_sources == {"": 6}
    assert "Whisper is not in" in summary.deaf
    assert find_clips(tmp_path / "dst")[0] == []  # clips without text are no clips yet
    assert len(read_review(summary.review)) == 6


def test_import_when_a_named_recognizer_is_absent_stops_first(tmp_path, spoken):
    src = loose_folder(tmp_path / "src", spoken)
    settings = ImportSettings(speaker="anna", asr="whisper", checkpoints_dir=tmp_path)
    with pytest.raises(WeightsError, match="nothing can be heard: Whisper is not in"):
        import_recordings(src, tmp_path / "dst", settings)
    assert not (tmp_path / "dst").exists()


def read_review(path: Path) -> list[dict]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def save_review(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    return path


def test_review_when_given_back_changes_texts_and_takes_clips_away(tmp_path, spoken, heard):
    src = loose_folder(tmp_path / "src", spoken, texts=False)
    dst = tmp_path / "dst"
    settings = ImportSettings(speaker="anna")
    summary = import_recordings(src, dst, settings)
    rows = read_review(summary.review)
    assert rows[0]["text"] == "I heard anna_a." and rows[0]["text_source"] == "a-recognizer"
    rows[0]["text"] = 'Corrected, with "quotes"; and\na second line.'
    rows[1]["keep"] = "no"
    rows[2]["language"] = "ja"
    edited = save_review(tmp_path / "edited.csv", rows[:3])
    again = import_recordings(src, dst, settings, review=edited)
    assert (again.num_reviewed, again.num_clips) == (3, 5)
    text = (dst / "train/anna/1/anna_a.normalized.txt").read_text()
    assert text == 'Corrected, with "quotes"; and a second line.\n'
    assert (dst / "train/anna/1/anna_a.source.txt").read_text() == "reviewed\n"
    assert not list(dst.rglob("anna_b*"))
    assert (dst / "train/anna/1/anna_c.normalized.txt").read_text() == "[JA]I heard anna_c.[JA]\n"
    # it stays so without the review, and a clip can be taken back
    assert import_recordings(src, dst, settings).num_clips == 5
    rows = read_review(again.review)
    assert [row["keep"] for row in rows[:2]] == ["yes", "no"]
    rows[1]["keep"] = "yes"
    back = import_recordings(src, dst, settings, review=save_review(tmp_path / "edited.csv", rows))
    assert back.num_clips == 6
    assert (dst / "train/anna/1/anna_b.wav").is_file()
    assert (dst / "train/anna/1/anna_b.normalized.txt").read_text() == "I heard anna_b.\n"


def test_review_when_edited_in_place_is_not_written_over(tmp_path, spoken, deaf):
    src, dst = loose_folder(tmp_path / "src", spoken), tmp_path / "dst"
    settings = ImportSettings(speaker="anna")
    review = import_recordings(src, dst, settings).review
    rows = read_review(review)
    rows[3]["text"] = "Another text."
    save_review(review, rows)
    with pytest.raises(
        DataError, match=r"review.csv: was edited and would be written over; give it back with"
    ):
        import_recordings(src, dst, settings)
    assert import_recordings(src, dst, settings, review=review).num_reviewed == 1
    assert (dst / "train/anna/1/anna_d.normalized.txt").read_text() == "Another text.\n"


def test_review_when_it_has_faults_tells_them_all_and_changes_nothing(tmp_path, spoken, deaf):
    src, dst = loose_folder(tmp_path / "src", spoken), tmp_path / "dst"
    settings = ImportSettings(speaker="anna")
    review = import_recordings(src, dst, settings).review
    rows = read_review(review)
    rows[0]["text"] = "Changed."
    rows[1]["keep"] = "maybe"
    rows[2]["language"] = "English"
    rows[3]["id"] = "anna_zzz"
    rows[4]["id"] = rows[0]["id"]
    edited = save_review(tmp_path / "edited.csv", rows)
    before = snapshot(dst)
    with pytest.raises(DataError) as error:
        import_recordings(src, dst, settings, review=edited)
    for value in (
        "'maybe'",
        "'English'",
        "'anna_zzz'",
        "'anna_a' stands there twice",
        "nothing was taken over",
    ):
        assert value in str(error.value)
    assert snapshot(dst) == before
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"other.csv: has no column id and text"):
        import_recordings(src, dst, settings, review=tmp_path / "other.csv")
    with pytest.raises(DataError, match=r"absent.csv: cannot be read"):
        import_recordings(src, dst, settings, review=tmp_path / "absent.csv")
    with pytest.raises(DataError, match="there is nothing to review yet"):
        import_recordings(src, tmp_path / "new", settings, review=edited)


def test_import_when_a_text_file_was_edited_takes_the_edit_over(tmp_path, spoken, heard):
    src, dst = loose_folder(tmp_path / "src", spoken, texts=False), tmp_path / "dst"
    settings = ImportSettings(speaker="anna")
    import_recordings(src, dst, settings)
    file = dst / "train/anna/1/anna_a.normalized.txt"
    file.write_text("By hand.\n")
    summary = import_recordings(src, dst, settings)
    assert file.read_text() == "By hand.\n"
    assert summary.text_sources == {"a-recognizer": 5, "reviewed": 1}
    assert read_review(summary.review)[0]["text"] == "By hand."


def test_import_when_a_recording_or_its_text_changed_imports_it_anew(tmp_path, spoken, heard):
    src, dst = loose_folder(tmp_path / "src", spoken), tmp_path / "dst"
    long_recording(src / "talk.wav", spoken)
    settings = ImportSettings(speaker="anna")
    first = import_recordings(src, dst, settings)
    (src / "a.txt").write_text("Other words.")
    long_recording(src / "talk.wav", spoken[2:4], repeats=3)
    second = import_recordings(src, dst, settings)
    assert (dst / "train/anna/1/anna_a.normalized.txt").read_text() == "Other words.\n"
    assert second.num_clips < first.num_clips
    assert len(list(dst.rglob("*.wav"))) == second.num_clips  # no clip of the old recording is left


def test_import_when_another_folder_has_a_recording_of_this_name_keeps_the_first(tmp_path, spoken, deaf):
    first, other = loose_folder(tmp_path / "one", spoken), loose_folder(tmp_path / "two", spoken[::-1])
    settings = ImportSettings(speaker="anna")
    import_recordings(first, tmp_path / "dst", settings)
    before = (tmp_path / "dst/train/anna/1/anna_a.wav").read_bytes()
    summary = import_recordings(other, tmp_path / "dst", settings)
    assert {skip.reason for skip in summary.skipped} == {"same name"}
    assert (tmp_path / "dst/train/anna/1/anna_a.wav").read_bytes() == before
    more = import_recordings(other, tmp_path / "dst", ImportSettings(speaker="ben"))
    assert (more.num_new, more.num_clips) == (6, 12)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("metadata.csv", "a|Raw 1.|{0}\nb|Raw.|{1}\nmissing|x|x\n"),
        ("metadata.csv", "a.wav|{0}\nb.flac|{1}\nmissing|x\n"),
        ("list.tsv", "text\tpath\n{0}\ta.wav\n{1}\tb.flac\nx\tmissing.wav\n"),
        ("list.csv", 'path,speaker,text\na.wav,x,"{0}"\nb.flac,x,"{1}"\nmissing.wav,x,x\n'),
        ("list.tsv", "a.wav\t{0}\nb.flac\t{1}\nmissing.wav\tx\n"),
    ],
)
def test_import_when_a_table_names_the_texts_follows_it(tmp_path, spoken, deaf, name, rows):
    src = loose_folder(tmp_path / "src", spoken, texts=False)
    (src / name).write_text(rows.format(spoken[0][1], spoken[1][1]))
    summary = import_recordings(src, tmp_path / "dst", ImportSettings(speaker="anna"))
    clips = find_clips(tmp_path / "dst")[0]
    assert [(clip.id, clip.text) for clip in clips] == [("anna_a", spoken[0][1]), ("anna_b", spoken[1][1])]
    assert "missing" in next(skip.detail for skip in summary.skipped if skip.reason == "text without audio")


def test_import_when_a_table_is_not_understood_says_what_it_needs(tmp_path, spoken, deaf):
    src = loose_folder(tmp_path / "src", spoken, texts=False)
    (src / "list.csv").write_text("a.wav,anna,en,Hello.\n")
    with pytest.raises(DataError, match=r"list.csv: has 4 columns and no header that says which is which"):
        import_recordings(src / "list.csv", tmp_path / "dst", ImportSettings(speaker="anna"))
    (src / "list.csv").write_text("a.wav,Hello.\n")
    (src / "other.tsv").write_text("a.wav\tHello.\n")
    with pytest.raises(DataError, match=r"holds 2 tables of recordings \(list.csv, other.tsv\)"):
        import_recordings(src, tmp_path / "dst", ImportSettings(speaker="anna"))


def test_import_settings_when_wrong_tell_every_fault():
    with pytest.raises(ConfigError, match=r"corpus 'timit' is not one of .*; speaker 'a/b': use letters"):
        ImportSettings(corpus="timit", speaker="a/b")


def test_import_when_places_are_wrong_says_which(tmp_path, spoken, deaf):
    src = loose_folder(tmp_path / "src", spoken)
    with pytest.raises(ConfigError, match="whose recordings are these"):
        import_recordings(src, tmp_path / "dst", ImportSettings())
    settings = ImportSettings(speaker="anna")
    with pytest.raises(DataError, match=r"lies in .*src, which is imported"):
        import_recordings(src, src / "out", settings)
    with pytest.raises(DataError, match="absent: no such file or folder"):
        import_recordings(tmp_path / "absent", tmp_path / "dst", settings)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: holds no recording"):
        import_recordings(tmp_path / "empty", tmp_path / "dst", settings)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: is a file; give a folder"):
        import_recordings(src, tmp_path / "file", settings)
    assert not (tmp_path / "dst").exists()


def test_import_log_when_it_is_something_else_says_which_line(tmp_path, spoken, deaf):
    src, dst = loose_folder(tmp_path / "src", spoken), tmp_path / "dst"
    dst.mkdir()
    (dst / LOG_NAME).write_text('{"source": {"colour": "red"}}\n')
    with pytest.raises(DataError, match=r"import.jsonl: line 1 is not an import's; delete the file"):
        import_recordings(src, dst, ImportSettings(speaker="anna"))


def test_import_when_the_disk_is_full_ends_and_can_go_on(tmp_path, spoken, deaf, monkeypatch):
    src, dst = loose_folder(tmp_path / "src", spoken), tmp_path / "dst"
    real, left = importing.save_audio, [2]

    def save_audio(path, wav):
        left[0] -= 1
        if left[0] < 0:
            raise AudioError(f"{path}: cannot be written (No space left on device). Choose another place")
        real(path, wav)

    monkeypatch.setattr(importing, "save_audio", save_audio)
    with pytest.raises(TrainingError, match=r"anna_c.wav: cannot be written \(No space left") as error:
        import_recordings(src, dst, ImportSettings(speaker="anna"))
    assert error.value.exit_code == 1
    left[0] = 99
    assert import_recordings(src, dst, ImportSettings(speaker="anna")).num_new == 4
