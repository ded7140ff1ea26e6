"""The cache: what was written comes back whole or not at all."""

import json
import shutil

import pytest
import torch

from finetune.scoring.cache import ScoreCache
from vallex.codec.audio import load_audio


@pytest.fixture
def cache(tmp_path):
    return ScoreCache(tmp_path / "cache")


def test_key_depends_on_every_part_and_on_nothing_else(cache, tmp_path):
    assert cache.key("a", [1, {"b": None}]) == ScoreCache(tmp_path / "else").key("a", [1, {"b": None}])
    assert len({cache.key(*parts) for parts in (("a", "b"), ("ab",), ("a", ["b"]), ("b", "a"))}) == 4


def test_write_then_read_gives_the_values_and_the_sounds(cache, tmp_path):
    cache.write("key", {"rows": [{"heard": "日本"}, None]}, [torch.ones(480) * 0.5, None, torch.zeros(0)])
    assert cache.read("key") == {"rows": [{"heard": "日本"}, None]}
    cache.copy_sounds("key", tmp_path / "sounds")
    assert [path.name for path in (tmp_path / "sounds").iterdir()] == ["001.wav"]
    assert len(load_audio(tmp_path / "sounds/001.wav")) == 480


def test_read_of_what_is_not_there_or_damaged_is_none_and_it_is_written_anew(cache):
    assert cache.read("key") is None
    cache.write("key", {"a": 1})
    (cache.folder / "key/entry.json").write_text('{"a": ')
    assert cache.read("key") is None
    cache.write("key", {"a": 2})
    assert cache.read("key") == {"a": 2}


def test_write_of_what_is_there_leaves_it(cache):
    cache.write("key", {"a": 1})
    cache.write("key", {"a": 2})
    assert cache.read("key") == {"a": 1}


def test_write_where_nothing_can_be_written_is_no_error_and_leaves_nothing(cache, monkeypatch):
    def full(*arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dumps", full)
    cache.write("key", {"a": 1})
    assert list(cache.folder.iterdir()) == []


def test_copy_sounds_where_links_are_not_possible_copies(cache, tmp_path, monkeypatch):
    cache.write("key", {}, [torch.ones(480) * 0.5])
    monkeypatch.setattr("os.link", lambda *paths: (_ for _ in ()).throw(OSError("another disk")))
    cache.copy_sounds("key", tmp_path / "sounds")
    shutil.rmtree(cache.folder)
    assert (tmp_path / "sounds/001.wav").is_file()
