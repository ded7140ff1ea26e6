"""Batches: what is in one, that an epoch holds every cut once, and that its rest can be had alone."""

import shutil

import pytest
import torch

from finetune.data import dataset
from finetune.data.cuts import table_of
from finetune.data.dataset import (
    BatchSettings,
    CodesDataset,
    Utterance,
    collate_utterances,
    count_batches,
    plan_epoch,
    plan_validation,
    train_batches,
    valid_batches,
)
from finetune.data.prepared import load_prepared
from vallex.errors import ConfigError, DataError
from vallex.text import TextCollator

SETTINGS = BatchSettings(max_duration_sec=3.0, num_buckets=3)
COLLATOR = TextCollator()


@pytest.fixture(scope="module")
def prepared(prepared_folder):
    return load_prepared(prepared_folder)


@pytest.fixture
def train_set(prepared):
    return CodesDataset(prepared.train, COLLATOR)


def plan_ids(prepared, plan):
    """The ids of each batch of a plan of the training cuts."""
    ids = table_of(prepared.train).ids
    return [tuple(ids[row] for row in rows) for rows in plan]


def row_of(dataset, name):
    return dataset.table.ids.index(name)


def batch_ids(batches):
    return [batch.ids for batch in batches]


def assert_same(first, second):
    """Two batches hold the same."""
    assert first.ids == second.ids
    for name in ("text", "text_lens", "codes", "code_lens", "language", "prompt_codes", "prompt_lens"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=0, atol=0)


def test_collate_when_lengths_differ_then_pads_each_tensor_with_its_own_value():
    first = Utterance(
        id="a", phoneme_ids=[7, 8, 9], languages=["en", "en", "ja"], codes=torch.full((2, 8), 5)
    )
    second = Utterance(id="b", phoneme_ids=[10], languages=["zh"], codes=torch.full((4, 8), 6))
    batch = collate_utterances([first, second], COLLATOR)
    assert batch.ids == ("a", "b")
    assert batch.text.tolist() == [[7, 8, 9], [10, 3, 3]]
    assert batch.text_lens.tolist() == [3, 1]
    assert batch.language.tolist() == [[0, 0, 2], [1, 0, 0]]
    assert batch.codes.shape == (2, 4, 8)
    assert batch.codes[:, :, 3].tolist() == [[5, 5, 0, 0], [6, 6, 6, 6]]
    assert batch.code_lens.tolist() == [2, 4]
    assert (batch.prompt_codes, batch.prompt_lens) == (None, None)
    assert {t.dtype for t in (batch.text, batch.text_lens, batch.codes, batch.code_lens, batch.language)} == {
        torch.int64
    }


def test_collate_when_bos_and_eos_are_on_then_languages_stay_aligned():
    utterance = Utterance(id="a", phoneme_ids=[7, 8], languages=["zh", "ja"], codes=torch.zeros(1, 8).long())
    batch = collate_utterances([utterance], TextCollator(bos=True, eos=True))
    assert batch.text.tolist() == [[1, 7, 8, 2]]
    assert batch.language.tolist() == [[1, 1, 2, 2]]


def test_collate_when_some_have_prompts_then_the_others_have_none_of_length_0():
    codes = torch.ones(3, 8).long()
    plain = Utterance(id="a", phoneme_ids=[7], languages=["en"], codes=codes)
    prompted = Utterance(id="b", phoneme_ids=[7], languages=["en"], codes=codes, prompt_codes=codes[:2] + 1)
    batch = collate_utterances([plain, prompted], COLLATOR)
    assert batch.prompt_lens.tolist() == [0, 2]
    assert batch.prompt_codes[..., 0].tolist() == [[0, 0], [2, 2]]


def test_dataset_when_given_cuts_then_gives_what_was_prepared(train_set, prepared):
    batch = train_set[(0, 1, 2)]
    for row, cut in enumerate(prepared.train.subset(first=3)):
        num_frames, ids = len(cut.load_codes()), cut.supervisions[0].custom["phoneme_ids"]
        assert batch.codes[row, :num_frames].tolist() == cut.load_codes().tolist()
        assert batch.text[row, : len(ids)].tolist() == ids
        assert (batch.code_lens[row], batch.text_lens[row]) == (num_frames, len(ids))


def test_dataset_when_files_vanish_after_the_first_epoch_then_codes_come_from_memory(
    prepared_folder, tmp_path
):
    folder = shutil.copytree(prepared_folder, tmp_path / "set")
    dataset = CodesDataset(load_prepared(folder).train, COLLATOR)
    before = list(train_batches(dataset, SETTINGS, epoch=0))
    shutil.rmtree(folder)
    for first, second in zip(before, train_batches(dataset, SETTINGS, epoch=0), strict=True):
        assert_same(first, second)


def test_dataset_when_codes_cannot_be_read_then_names_the_clip(prepared_folder, tmp_path):
    folder = shutil.copytree(prepared_folder, tmp_path / "set")
    cuts = load_prepared(folder).train
    (folder / "codes" / cuts[0].codes.array.storage_key).write_bytes(b"spoiled")
    with pytest.raises(DataError, match=f"the codes of {cuts[0].id} cannot be read"):
        CodesDataset(cuts, COLLATOR)[(0,)]


@pytest.mark.parametrize("num_buckets", [1, 3, 100])
@pytest.mark.parametrize("max_duration_sec", [0.1, 3.0, 1000.0])
def test_plan_epoch_when_planned_then_holds_every_cut_once(prepared, num_buckets, max_duration_sec):
    settings = BatchSettings(max_duration_sec=max_duration_sec, num_buckets=num_buckets)
    for epoch in range(3):
        plan = plan_epoch(prepared.train, settings, epoch)
        assert sorted(sum(plan, ())) == list(range(len(prepared.train)))


@pytest.mark.parametrize("num_cuts", [1, 2])
def test_plan_epoch_when_there_are_hardly_any_cuts_then_holds_them(prepared, num_cuts):
    plan = plan_epoch(list(prepared.train)[:num_cuts], SETTINGS, 0)
    assert sorted(sum(plan, ())) == list(range(num_cuts))


def test_plan_epoch_when_epoch_or_seed_changes_then_order_changes_and_else_not(prepared):
    plan = plan_epoch(prepared.train, SETTINGS, 0)
    other_seed = BatchSettings(max_duration_sec=3.0, num_buckets=3, seed=1)
    last = len(prepared.train) - 1
    backwards = plan_epoch(reversed(list(prepared.train)), SETTINGS, 0)
    assert [tuple(last - row for row in rows) for rows in backwards] == plan
    assert plan_epoch(prepared.train, SETTINGS, 1) != plan
    assert plan_epoch(prepared.train, other_seed, 0) != plan


def test_count_batches_when_epochs_differ_then_is_the_sum_of_each_up_to_the_limit(prepared):
    lengths = [len(plan_epoch(prepared.train, SETTINGS, epoch)) for epoch in range(8)]
    assert len(set(lengths)) > 1
    assert count_batches(prepared.train, SETTINGS, 8) == sum(lengths)
    assert count_batches(prepared.train, SETTINGS, 8, at_most=sum(lengths[:3]) - 1) == sum(lengths[:3]) - 1


def test_count_batches_when_a_set_is_large_then_plans_one_epoch_only(train_set, monkeypatch):
    cuts, planned, original = train_set.table, [], dataset.plan_epoch
    monkeypatch.setattr(dataset, "plan_epoch", lambda *of: planned.append(of[2]) or original(*of))
    monkeypatch.setattr(dataset, "MAX_CUTS_TO_COUNT", len(cuts) - 1)
    num_batches = len(original(cuts, SETTINGS, 0))
    assert count_batches(cuts, SETTINGS, 100) == 100 * num_batches
    assert count_batches(cuts, SETTINGS, 100, at_most=7) == 7
    assert planned == [0, 0]


def test_plan_epoch_when_two_ranks_then_equally_many_batches_and_every_cut(prepared):
    plans = [
        plan_epoch(prepared.train, BatchSettings(max_duration_sec=3.0, rank=rank, world_size=2), 0)
        for rank in (0, 1)
    ]
    assert len(plans[0]) == len(plans[1])
    assert {row for plan in plans for rows in plan for row in rows} == set(range(len(prepared.train)))


def test_plan_epoch_when_ranks_are_more_than_cuts_then_each_has_a_batch(prepared):
    cuts = list(prepared.train)[:3]
    plans = [
        plan_epoch(cuts, BatchSettings(max_duration_sec=3.0, rank=rank, world_size=8), 0) for rank in range(8)
    ]
    assert {len(plan) for plan in plans} == {1}
    assert {row for [rows] in plans for row in rows} == {0, 1, 2}


def test_plan_validation_when_planned_then_every_cut_exactly_once_over_all_ranks(prepared):
    for world_size in (1, 2, 3):
        plans = [
            plan_validation(
                prepared.train, BatchSettings(max_duration_sec=3.0, rank=r, world_size=world_size)
            )
            for r in range(world_size)
        ]
        assert sorted(row for plan in plans for rows in plan for row in rows) == list(
            range(len(prepared.train))
        )
    longest = max(prepared.train, key=lambda cut: cut.duration)
    assert plan_ids(prepared, plan_validation(prepared.train, SETTINGS))[0][0] == longest.id


def test_plan_validation_when_planned_then_padded_seconds_stay_within_the_limit(prepared):
    durations_sec = table_of(prepared.train).durations_sec
    for rows in plan_validation(prepared.train, SETTINGS):
        assert len(rows) * max(durations_sec[list(rows)]) <= 3.0 + 1e-6


@pytest.mark.parametrize("with_prompts", [False, True])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_train_batches_when_skipping_then_the_rest_is_the_same_as_never_stopped(
    prepared, with_prompts, num_workers
):
    settings = BatchSettings(max_duration_sec=3.0, num_buckets=3, num_workers=num_workers)
    whole = list(
        train_batches(CodesDataset(prepared.train, COLLATOR, with_prompts=with_prompts), settings, epoch=2)
    )
    resumed = CodesDataset(prepared.train, COLLATOR, with_prompts=with_prompts)
    rest = train_batches(resumed, settings, epoch=2, skip=2)
    assert len(whole) > 3
    assert len(rest) == len(whole) - 2
    for first, second in zip(whole[2:], rest, strict=True):
        assert_same(first, second)
    assert list(train_batches(resumed, settings, epoch=2, skip=len(whole))) == []


def test_train_batches_when_iterated_then_the_random_state_of_the_run_stays(train_set):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert len(list(train_batches(train_set, SETTINGS, epoch=0))) > 1
    assert torch.equal(torch.get_rng_state(), before)


def test_valid_batches_when_iterated_twice_then_the_same_and_all_there(train_set, prepared):
    first, second = (
        batch_ids(valid_batches(train_set, SETTINGS)),
        batch_ids(valid_batches(train_set, SETTINGS)),
    )
    assert first == second
    assert sorted(sum(first, ())) == sorted(cut.id for cut in prepared.train)


def test_prompts_when_a_speaker_has_several_clips_then_they_come_from_the_clip_before_or_after(prepared):
    dataset = CodesDataset(prepared.train, COLLATOR, with_prompts=True)
    cuts = {cut.id: cut for cut in prepared.train}
    codes = {name: cut.load_codes().tolist() for name, cut in cuts.items()}
    drawn = set()
    for epoch in range(10):
        dataset.set_epoch(epoch)
        utterance = dataset.utterance(row_of(dataset, "anna_2"))
        assert utterance.codes.tolist() == codes["anna_2"]
        drawn |= {name for name in codes if codes[name] == utterance.prompt_codes.tolist()}
    assert drawn == {"anna_1", "anna_3"}
    assert dataset.utterance(row_of(dataset, "anna_0")).prompt_codes.tolist() == codes["anna_1"]
    assert dataset.utterance(row_of(dataset, "ben_2")).prompt_codes.tolist() == codes["ben_1"]


def test_prompts_when_the_neighbour_is_long_then_at_most_225_frames_of_it(prepared, monkeypatch):
    dataset = CodesDataset(prepared.train, COLLATOR, with_prompts=True)
    frames = torch.arange(400)[:, None].expand(400, 8)
    monkeypatch.setattr(dataset, "_codes", lambda row: frames)
    starts = set()
    for epoch in range(5):
        dataset.set_epoch(epoch)
        prompt = dataset.utterance(1).prompt_codes
        start = int(prompt[0, 0])
        assert prompt[:, 0].tolist() == list(range(start, start + 225))
        starts.add(start)
    assert len(starts) > 1


def test_prompts_when_a_speaker_has_one_clip_then_prompt_and_codes_share_no_frame(prepared):
    dataset = CodesDataset(prepared.train, COLLATOR, with_prompts=True)
    [cut] = [cut for cut in prepared.train if cut.id == "cleo_0"]
    utterance, codes = dataset.utterance(row_of(dataset, "cleo_0")), cut.load_codes().tolist()
    assert len(utterance.prompt_codes) == len(codes) // 3
    assert utterance.prompt_codes.tolist() + utterance.codes.tolist() == codes


def test_prompts_when_the_only_clip_has_two_frames_then_there_is_no_prompt(prepared, monkeypatch):
    dataset = CodesDataset(prepared.train, COLLATOR, with_prompts=True)
    monkeypatch.setattr(dataset, "_codes", lambda row: torch.ones(2, 8).long())
    utterance = dataset.utterance(row_of(dataset, "cleo_0"))
    assert utterance.prompt_codes is None
    assert len(utterance.codes) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_duration_sec": 0}, "max_duration_sec is 0; it must be above 0"),
        ({"max_duration_sec": 9, "num_buckets": 0}, "num_buckets is 0; it must be at least 1"),
        ({"max_duration_sec": 9, "rank": 2, "world_size": 2}, r"rank is 2; it must lie in 0\.\.1"),
        ({"max_duration_sec": 9, "num_workers": -1}, "num_workers is -1"),
        ({"max_duration_sec": -1, "num_buckets": 0}, "max_duration_sec is -1.*; num_buckets is 0"),
    ],
)
def test_batch_settings_when_wrong_then_names_every_fault(settings, message):
    with pytest.raises(ConfigError, match=message):
        BatchSettings(**settings)
