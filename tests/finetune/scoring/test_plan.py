"""Which sentences are chosen, in whose voice, and that they are the same each time."""

from dataclasses import replace

import pytest

from finetune.data.prepared import load_prepared
from finetune.scoring.plan import SIZES, fixed_sentences, make_plan
from finetune.scoring.scores import EVALUATION_SIZES
from vallex.errors import ConfigError
from vallex.text import PhonemeTokenizer


@pytest.fixture(scope="module")
def data(sample_prepared):
    return load_prepared(sample_prepared)


@pytest.fixture(scope="module")
def tokenizer():
    return PhonemeTokenizer()


def test_plan_takes_validation_and_fills_up_with_fixed_sentences(data, tokenizer):
    plan = make_plan(data, tokenizer, "standard")
    sources = [sentence.source for sentence in plan.sentences]
    assert sources == ["validation"] * 3 + ["fixed"] * 17
    assert {sentence.speaker for sentence in plan.sentences} == {"anna", "ben"}
    assert plan.languages == ["en"] and plan.left_out == []
    assert len({sentence.id for sentence in plan.sentences}) == 20


def test_plan_prompts_and_compares_with_other_recordings_of_the_speaker(data, tokenizer):
    for sentence in make_plan(data, tokenizer, "quick").sentences:
        assert sentence.prompt_id.startswith(sentence.speaker)
        assert sentence.references and all(name.startswith(sentence.speaker) for name in sentence.references)
        if sentence.cut is not None:
            assert sentence.cut.id not in (sentence.prompt_id, *sentence.references)


def test_plan_holds_the_cuts_that_its_sentences_name_and_no_others(data, tokenizer):
    train = [*data.train, *(replace(cut, id=f"more {cut.id}", duration=0.9) for cut in data.train)]
    plan = make_plan(replace(data, train=train), tokenizer, "quick")
    named = {name for one in plan.sentences for name in (one.prompt_id, *one.references)}
    assert plan.cuts.keys() == named and len(named) < len(train)


def test_plan_of_one_seed_is_the_same_and_of_another_is_not(data, tokenizer):
    first, again, other = (make_plan(data, tokenizer, "quick", seed=seed) for seed in (1, 1, 2))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert [(one.id, one.seed) for one in first.sentences] == [(one.id, one.seed) for one in again.sentences]
    assert {one.seed for one in first.sentences}.isdisjoint(one.seed for one in other.sentences)


def test_plan_reads_validation_texts_as_they_were_prepared(data, tokenizer):
    cuts = list(data.valid)
    cuts[0].supervisions[0].custom["phoneme_ids"] = [7, 8, 9]
    cuts[0].supervisions[0].custom["phoneme_languages"] = ["en"] * 3
    plan = make_plan(replace(data, valid=cuts), tokenizer, "full")
    assert next(one for one in plan.sentences if one.id.endswith(cuts[0].id)).encoding.ids == [7, 8, 9]


def test_plan_fingerprint_changes_when_a_recording_is_gone(data, tokenizer, tmp_path):
    data = replace(data, train=list(data.train), valid=list(data.valid))  # a table makes them anew
    before = make_plan(data, tokenizer, "quick")
    cut = before.sentences[0].cut
    source = cut.recording.sources[0]
    here = source.source
    source.source = str(tmp_path / "gone.wav")
    assert make_plan(data, tokenizer, "quick").fingerprint != before.fingerprint
    source.source = here
    assert make_plan(data, tokenizer, "quick").fingerprint == before.fingerprint


def test_plan_of_a_speaker_with_one_recording_leaves_it_out_and_says_so(data, tokenizer):
    alone = [cut for cut in data.valid if cut.id.startswith("ben")]
    train = [cut for cut in data.train if cut.id.startswith("anna")]
    plan = make_plan(replace(data, train=train, valid=alone), tokenizer, "quick")
    assert {sentence.source for sentence in plan.sentences} == {"fixed"}
    assert (
        plan.left_out[0] == f"{alone[0].id}: speaker ben has no other recording of 1 to 12 s to be a prompt"
    )


def test_plan_of_a_size_that_is_not_known_lists_them(data, tokenizer):
    with pytest.raises(
        ConfigError, match="evaluation 'huge' is not known; it is one of quick, standard, full"
    ):
        make_plan(data, tokenizer, "huge")


@pytest.mark.parametrize("language", ["en", "zh", "ja"])
def test_fixed_sentences_can_all_be_read(language, tokenizer):
    texts = fixed_sentences(language)
    assert len(set(texts)) == 20
    for text in texts:
        encoding = tokenizer.encode(text, language=language)
        assert encoding.ids and not encoding.unknown and not encoding.unknown_words


def test_fixed_sentences_of_a_language_without_a_list_are_none():
    assert fixed_sentences("ko") == []


def test_sizes_are_those_that_a_setting_may_name():
    assert ("losses", *SIZES) == EVALUATION_SIZES
