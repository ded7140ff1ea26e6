"""Corpora by lhotse's recipes: small ones of real recordings, laid out as each corpus is."""

from pathlib import Path

import pytest
import soundfile

from finetune.data.corpora import find_corpus, known_corpus
from finetune.data.importing import ImportSettings, import_recordings
from finetune.data.libritts import find_clips
from vallex.errors import DataError


@pytest.fixture(scope="session")
def wavs(shared) -> list[Path]:
    return sorted((shared / "data/LibriTTS-mini").rglob("*.wav"))[:4]


def put(path: Path, source: Path, rate_hz: int = 24000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, soundfile.read(source)[0], rate_hz)
    return path


@pytest.fixture
def libritts(tmp_path, wavs) -> Path:
    root = tmp_path / "LibriTTS"
    for part, source in zip(
        ("train-clean-100", "train-clean-100", "dev-clean", "test-clean"), wavs, strict=True
    ):
        speaker, chapter = source.stem.split("_")[:2]
        folder = root / part / speaker / chapter
        put(folder / source.name, source)
        text = source.with_name(source.stem + ".normalized.txt").read_text().strip()
        with (folder / f"{speaker}_{chapter}.trans.tsv").open("a") as table:
            table.write(f"{source.stem}\t{text} (original)\t{text}\n")
        with (folder / f"{speaker}_{chapter}.book.tsv").open("a") as table:
            table.write(f"{source.stem}\tx\t20.5\n")
    return root


@pytest.fixture
def ljspeech(tmp_path, wavs) -> Path:
    root = tmp_path / "LJSpeech-1.1"
    rows = []
    for number, source in enumerate(wavs, start=1):
        put(root / "wavs" / f"LJ001-{number:04d}.wav", source)
        rows.append(f"LJ001-{number:04d}|Dr. {number}|Doctor number {number}.\n")
    (root / "metadata.csv").write_text("".join(rows))
    return root


@pytest.fixture
def aishell(tmp_path, wavs) -> Path:
    root = tmp_path / "aishell"
    lines = []
    for number, (part, source) in enumerate(zip(("train", "train", "dev", "test"), wavs, strict=True)):
        name = f"BAC009S{number:04d}W0121"
        put(root / "data_aishell/wav" / part / f"S{number:04d}" / f"{name}.wav", source, 16000)
        lines.append(f"{name} 甚至 出现 交易 几乎 停滞 的 情况\n")
    table = root / "data_aishell/transcript/aishell_transcript_v0.8.txt"
    table.parent.mkdir(parents=True)
    table.write_text("".join(lines), encoding="utf-8")
    return root


@pytest.fixture
def baker(tmp_path, wavs) -> Path:
    root = tmp_path / "BZNSYP"
    lines = []
    for number, source in enumerate(wavs, start=1):
        put(root / "Wave" / f"{number:06d}.wav", source, 48000)
        lines.append(
            f"{number:06d}\t卡尔普#2陪外孙#1玩滑梯#4。\n\tka2 er2 pu3 pei2 wai4 sun1 wan2 hua2 ti1\n"
        )
    (root / "ProsodyLabeling").mkdir()
    (root / "ProsodyLabeling/000001-010000.txt").write_text("".join(lines), encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("corpus", "parts", "speaker", "text", "language"),
    [
        ("libritts", {"train-clean-100", "dev-clean", "test-clean"}, "1089", None, "en"),
        ("ljspeech", {"train"}, "LJ", "Doctor number 1.", "en"),
        ("aishell", {"train", "dev", "test"}, "S0000", "甚至出现交易几乎停滞的情况", "zh"),
        ("baker", {"train"}, "baker", "卡尔普陪外孙玩滑梯。", "zh"),
    ],
)
def test_corpus_is_known_and_imported_by_its_recipe(
    request, tmp_path, corpus, parts, speaker, text, language
):
    root = request.getfixturevalue(corpus)
    assert known_corpus(root) == corpus
    sources, skipped = find_corpus(root, corpus, None)
    assert len(sources) == 4 and skipped == []
    assert {source.language for source in sources} == {language}
    summary = import_recordings(root, tmp_path / "dst", ImportSettings(asr="none"))
    assert (summary.num_clips, summary.corpus, summary.text_sources) == (4, corpus, {"given": 4})
    clips = find_clips(tmp_path / "dst")[0]
    assert {clip.part for clip in clips} == parts
    assert speaker in {clip.speaker for clip in clips}
    assert text is None or text in {clip.text for clip in clips}
    assert all("(original)" not in clip.text for clip in clips)
    assert {soundfile.info(clip.path).samplerate for clip in clips} == {24000}


@pytest.mark.parametrize(
    ("corpus", "which"), [("libritts", 0), ("libritts", -1), ("ljspeech", 1), ("aishell", -1), ("baker", 1)]
)
def test_corpus_when_a_recording_is_damaged_gives_all_others(request, tmp_path, corpus, which):
    root = request.getfixturevalue(corpus)
    damaged = sorted(root.rglob("*.wav"))[which]
    damaged.write_bytes(b"RIFF nothing")
    summary = import_recordings(root, tmp_path / "dst", ImportSettings(asr="none"))
    assert summary.num_clips == 3
    assert [(skip.path.name, skip.reason) for skip in summary.skipped] == [(damaged.name, "audio unreadable")]


def test_corpus_when_a_speaker_is_named_takes_that_name(ljspeech):
    assert {source.speaker for source in find_corpus(ljspeech, "ljspeech", "linda")[0]} == {"linda"}


def test_corpus_when_a_recording_is_in_no_table_tells_it(ljspeech, wavs):
    put(ljspeech / "wavs" / "LJ009-0001.wav", wavs[0])
    skipped = find_corpus(ljspeech, "ljspeech", None)[1]
    assert [(skip.path.name, skip.reason) for skip in skipped] == [("LJ009-0001.wav", "audio without text")]


@pytest.mark.parametrize("kind", ["cuts", "recordings"])
def test_lhotse_manifests_are_imported(tmp_path, wavs, kind):
    from lhotse import CutSet, Recording, RecordingSet, SupervisionSegment, SupervisionSet

    recordings = RecordingSet.from_recordings(Recording.from_file(path) for path in wavs)
    long = next(recording for recording in recordings if recording.duration > 4)
    spans = [(recording, f"{recording.id}-all", 0.0, recording.duration) for recording in recordings]
    spans.append((long, f"{long.id}-part", 1.0, 2.0))
    supervisions = SupervisionSet.from_segments(
        SupervisionSegment(
            id=name,
            recording_id=recording.id,
            start=start,
            duration=duration,
            text=f"Text of {name}.",
            speaker="ann",
        )
        for recording, name, start, duration in spans
    )
    folder = tmp_path / "manifests"
    folder.mkdir()
    if kind == "cuts":
        cuts = CutSet.from_manifests(recordings=recordings, supervisions=supervisions)
        cuts.to_file(folder / "mine_cuts_train.jsonl.gz")
    else:
        recordings.to_file(folder / "mine_recordings_train.jsonl.gz")
        supervisions.to_file(folder / "mine_supervisions_train.jsonl.gz")
    assert known_corpus(folder) == "manifests"
    import_recordings(folder, tmp_path / "dst", ImportSettings(asr="none"))
    clips = {clip.id: clip for clip in find_clips(tmp_path / "dst")[0]}
    assert set(clips) == {name for _, name, _, _ in spans}
    part = clips[f"{long.id}-part"]
    assert soundfile.info(part.path).duration == pytest.approx(2.0, abs=0.001)
    assert (part.text, part.speaker) == (f"Text of {long.id}-part.", "ann")


def test_manifest_when_it_is_damaged_says_so(tmp_path):
    (tmp_path / "cuts.jsonl").write_text("{half\n")
    with pytest.raises(DataError, match=r"cuts.jsonl: cannot be read as a lhotse manifest"):
        find_corpus(tmp_path / "cuts.jsonl", "manifests", None)


def test_corpus_when_the_folder_is_another_says_so(tmp_path):
    with pytest.raises(DataError, match="is not laid out as baker"):
        find_corpus(tmp_path, "baker", None)


def test_recipe_when_it_stops_is_one_clear_error(ljspeech):
    (ljspeech / "metadata.csv").write_text("LJ001-0001|only two columns\n")
    with pytest.raises(
        DataError, match=r"lhotse's recipe for ljspeech stops \(ValueError: not enough values"
    ):
        find_corpus(ljspeech, "ljspeech", None)
