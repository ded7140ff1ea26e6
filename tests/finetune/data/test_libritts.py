"""Finding clips: layout, which text is taken, what is left out and why."""

import pytest

from finetune.data.libritts import find_clips
from vallex.errors import DataError


def test_find_clips_when_given_root_or_part_then_speaker_and_part_are_the_same(tmp_path, make_clip):
    make_clip(tmp_path / "my-part" / "anna" / "7" / "anna_7_1.wav", text=" Good \n morning. ")
    for data in (tmp_path, tmp_path / "my-part"):
        [clip], skipped = find_clips(data)
        assert (clip.id, clip.speaker, clip.part) == ("anna_7_1", "anna", "my-part")
        assert clip.text == "Good morning."
        assert skipped == []


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".WAV"])
def test_find_clips_when_audio_format_is_allowed_then_finds_it(tmp_path, make_clip, suffix):
    make_clip(tmp_path / "p" / "s" / "c" / f"u{suffix}")
    [clip], _ = find_clips(tmp_path)
    assert clip.path.name == f"u{suffix}"


def test_find_clips_when_texts_disagree_then_takes_normalized_then_original_then_table(tmp_path, make_clip):
    chapter = tmp_path / "p" / "s" / "c"
    for name in ("a", "b", "c"):
        make_clip(chapter / f"{name}.wav", text=None)
    (chapter / "s_c.trans.tsv").write_text("a\tao\tat\nb\tbo\tbt\nc\tco\tct\n", encoding="utf-8")
    (chapter / "a.normalized.txt").write_text("an", encoding="utf-8")
    (chapter / "a.original.txt").write_text("ao", encoding="utf-8")
    (chapter / "b.original.txt").write_text("\ufeffbo", encoding="utf-8")
    clips, skipped = find_clips(tmp_path)
    assert [clip.text for clip in clips] == ["an", "bo", "ct"]
    assert skipped == []


def test_find_clips_when_table_has_one_column_of_text_then_takes_it(tmp_path, make_clip):
    make_clip(tmp_path / "p" / "s" / "c" / "a.wav", text=None)
    (tmp_path / "p" / "s" / "c" / "s_c.trans.tsv").write_text("a\tonly\n", encoding="utf-8")
    [clip], _ = find_clips(tmp_path)
    assert clip.text == "only"


def test_find_clips_when_files_do_not_pair_then_lists_each_with_its_reason(tmp_path, make_clip):
    chapter = tmp_path / "p" / "s" / "c"
    make_clip(chapter / "good.wav")
    make_clip(chapter / "mute.wav", text=None)
    make_clip(chapter / "blank.wav", text=" \n")
    make_clip(chapter / "latin.wav", text=None)
    (chapter / "latin.normalized.txt").write_bytes("é".encode("latin-1"))
    make_clip(chapter / "twice.flac")
    make_clip(chapter / "twice.wav")
    (chapter / "lost.normalized.txt").write_text("lost", encoding="utf-8")
    (chapter / "s_c.trans.tsv").write_text("row\to\tn\n", encoding="utf-8")
    make_clip(tmp_path / "p" / "loose.wav")
    clips, skipped = find_clips(tmp_path)
    assert [clip.id for clip in clips] == ["good", "twice"]
    assert {(skip.path.name, skip.reason) for skip in skipped} == {
        ("mute.wav", "audio without text"),
        ("blank.wav", "empty text"),
        ("latin.wav", "text unreadable"),
        ("twice.wav", "same name"),
        ("lost.normalized.txt", "text without audio"),
        ("s_c.trans.tsv", "text without audio"),
        ("loose.wav", "not in LibriTTS layout"),
    }


def test_find_clips_when_names_repeat_in_other_folders_then_ids_carry_the_folders(tmp_path, make_clip):
    make_clip(tmp_path / "p" / "anna" / "1" / "001.wav")
    make_clip(tmp_path / "p" / "ben" / "1" / "001.wav")
    make_clip(tmp_path / "p" / "ben" / "1" / "002.wav")
    clips, _ = find_clips(tmp_path)
    assert [clip.id for clip in clips] == ["002", "p-anna-1-001", "p-ben-1-001"]


def test_find_clips_when_there_are_hidden_files_and_a_loop_of_links_then_neither_matters(tmp_path, make_clip):
    chapter = make_clip(tmp_path / "p" / "s" / "c" / "a.wav").parent
    (chapter / "._a.wav").write_bytes(b"junk of another system")
    (chapter / "loop").symlink_to(tmp_path)
    clips, skipped = find_clips(tmp_path)
    assert [clip.id for clip in clips] == ["a"]
    assert skipped == []


def test_find_clips_when_folder_is_missing_then_says_so(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        find_clips(tmp_path / "nowhere")


def test_find_clips_when_given_a_file_then_says_so(tmp_path, make_clip):
    with pytest.raises(DataError, match=r"a\.wav: is a file; give a folder"):
        find_clips(make_clip(tmp_path / "a.wav"))


def test_find_clips_when_folder_has_no_audio_then_names_the_formats(tmp_path):
    (tmp_path / "notes.txt").write_text("no sound", encoding="utf-8")
    with pytest.raises(DataError, match=r"holds no recording; allowed are \.wav, \.flac, \.ogg, \.mp3"):
        find_clips(tmp_path)
