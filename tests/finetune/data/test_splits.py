"""Which cuts are for validation: by parts, by speaker, by share; no sound in both halves."""

import pytest

from finetune.data.splits import Candidate, PrepareSettings, split_up
from vallex.errors import ConfigError, DataError


def candidates(*rows):
    """Cuts from rows of part, speaker and, where it is not the cut's own, sound."""
    return [
        Candidate(
            id=f"{speaker}_{number}",
            part=part,
            speaker=speaker,
            duration_sec=1.0,
            num_phonemes=10,
            offset=0,
            codes_sha256=sound[0] if sound else str(number),
            row_sha256=str(number),
        )
        for number, (part, speaker, *sound) in enumerate(rows)
    ]


def split_ids(cuts, **settings):
    splits, how = split_up(cuts, PrepareSettings(**settings))
    train, valid = ([cut.id for cut in splits[name]] for name in ("train", "valid"))
    assert train and valid
    assert sorted(train + valid) == sorted(cut.id for cut in cuts)
    return train, valid, how


SPEAKERS = [("train", name) for name in ("anna", "ben", "cleo", "dora", "emil") for _ in range(4)]


def test_split_up_by_speakers_holds_out_whole_ones_up_to_the_share():
    cuts = candidates(*SPEAKERS)
    chosen = set()
    for seed in range(8):
        train, valid, how = split_ids(cuts, split="speakers", valid_share=0.3, seed=seed)
        speakers = {name.split("_")[0] for name in valid}
        assert len(valid) == 8 and speakers.isdisjoint(name.split("_")[0] for name in train)
        assert how == f"by speaker ({', '.join(sorted(speakers))}), seed {seed}"
        assert (train, valid, how) == split_ids(cuts, split="speakers", valid_share=0.3, seed=seed)
        chosen.add(tuple(sorted(speakers)))
    assert len(chosen) > 1


def test_split_up_by_speakers_never_takes_all_of_them():
    train, valid, _ = split_ids(
        candidates(("a", "anna"), ("a", "ben"), ("a", "ben")), split="speakers", valid_share=0.99
    )
    assert {name.split("_")[0] for name in train}.isdisjoint(name.split("_")[0] for name in valid)


def test_split_up_takes_the_parts_that_are_given():
    cuts = candidates(("one", "anna"), ("two", "anna"), ("dev", "anna"))
    train, valid, how = split_ids(cuts, valid_parts=("two",))
    assert (train, valid, how) == (["anna_0", "anna_2"], ["anna_1"], "by part name (two)")
    assert split_ids(cuts)[1] == split_ids(cuts, split="parts")[1] == ["anna_2"]


@pytest.mark.parametrize("split", ["share", "speakers"])
def test_split_up_when_another_split_is_asked_for_then_names_of_parts_are_nothing(split):
    cuts = candidates(*(("dev", "anna"), ("train", "ben")) * 10)
    _, valid, how = split_ids(cuts, split=split, valid_share=0.2)
    assert len(valid) == (4 if split == "share" else 10)
    assert "part" not in how


def test_split_up_when_a_sound_is_there_twice_then_both_are_in_one_half():
    cuts = candidates(("train", "anna", "x"), ("train", "anna"), ("dev", "ben", "x"), ("dev", "ben"))
    assert split_ids(cuts)[1] == ["anna_0", "ben_2", "ben_3"]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([("a", "anna")] * 3, {"split": "speakers"}, "all clips are of anna; at least 2 speakers"),
        ([("a", "anna")] * 3, {"split": "parts"}, "no part is named dev, valid or test; the parts are a"),
        (
            [("a", "anna")] * 3,
            {"valid_parts": ("b",)},
            "valid_parts b: no usable clip is in it; the parts are a",
        ),
        ([("a", "anna")] * 3, {"valid_parts": ("a",)}, "all parts would be for validation; the parts are a"),
        ([("a", "anna", "x")] * 3, {}, "every clip has the sound of one of the 1 that were chosen"),
    ],
)
def test_split_up_when_it_cannot_then_says_why_and_what_there_is(rows, settings, message):
    with pytest.raises(DataError, match=message):
        split_up(candidates(*rows), PrepareSettings(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "halves"}, "split 'halves' is not one of auto, parts, speakers, share"),
        ({"split": "share", "valid_parts": ("b",)}, "valid_parts b and split share: give one of them"),
    ],
)
def test_prepare_settings_when_the_split_is_unclear_then_names_the_value(settings, message):
    with pytest.raises(ConfigError, match=message):
        PrepareSettings(**settings)
