"""The sample that ships with the package keeps what quickstart promises of it."""

from collections import Counter
from pathlib import Path

import finetune
from vallex.codec.audio import load_audio

SAMPLE = Path(finetune.__file__).parent / "sample"
ROOT = SAMPLE / "LibriTTS-sample"


def test_sample_when_counted_then_clips_of_two_voices_in_both_parts():
    clips = sorted(ROOT.rglob("*.wav"))
    assert len(clips) >= 16
    for part in ("train-clean", "dev-clean"):
        voices = Counter(clip.parts[-3] for clip in clips if part in clip.parts)
        assert len(voices) == 2
        assert min(voices.values()) >= 2


def test_sample_when_weighed_then_under_2_mb():
    assert sum(file.stat().st_size for file in SAMPLE.rglob("*") if file.is_file()) < 2_000_000


def test_sample_when_read_then_each_clip_has_sound_and_its_own_text():
    texts = []
    for clip in ROOT.rglob("*.wav"):
        wav = load_audio(clip)
        assert 1.2 * 24000 < len(wav) < 3 * 24000
        assert wav.abs().max() > 0.5
        text = clip.with_suffix(".normalized.txt").read_text(encoding="utf-8")
        assert text == clip.with_suffix(".original.txt").read_text(encoding="utf-8")
        table = clip.with_name("_".join(clip.stem.split("_")[:2]) + ".trans.tsv").read_text(encoding="utf-8")
        assert f"{clip.stem}\t{text}\t{text}\n" in table
        texts.append(text)
    assert len(set(texts)) == len(texts)
