"""A language more: a row in each half's embedding, kept in checkpoints, refused by the released format."""

import pytest
import torch

from vallex.errors import CheckpointError, TextError
from vallex.model.added_languages import extend_languages
from vallex.model.checkpoint import load_model, save_model


@pytest.fixture
def released_file(build_model, tmp_path):
    """A small model of three languages, in the released format."""
    path = tmp_path / "small.pt"
    save_model(build_model(num_quantizers=3), path, format="released", force=True)
    return path


def language_rows(model):
    return [half.language_embedding.weight.detach().clone() for half in (model.ar, model.nar)]


def test_load_model_with_add_languages_copies_the_row_of_the_named_one(released_file):
    model = load_model(released_file, add_languages={"ko": "ja", "ar": "ko"})
    assert model.config.languages == ("en", "zh", "ja", "ko", "ar")
    assert model.provenance["added_languages"] == {"ko": "ja", "ar": "ko"}
    for rows, before in zip(language_rows(model), language_rows(load_model(released_file)), strict=True):
        assert torch.equal(rows[:3], before)
        assert torch.equal(rows[3:], before[[2, 2]])


@pytest.mark.parametrize("added", [["ko"], ("ko",), "ko"])
def test_load_model_with_a_plain_list_of_languages_begins_as_english(released_file, added):
    model = load_model(released_file, add_languages=added)
    assert model.config.languages == ("en", "zh", "ja", "ko")
    assert all(torch.equal(rows[3], rows[0]) for rows in language_rows(model))


def test_added_language_is_saved_and_comes_back(released_file, tmp_path):
    model = load_model(released_file, add_languages={"ko": "ja"})
    with torch.no_grad():
        model.ar.language_embedding.weight[3] += 1
    save_model(model, tmp_path / "korean.safetensors")
    again = load_model(tmp_path / "korean.safetensors")
    assert again.config == model.config
    assert again.provenance["added_languages"] == {"ko": "ja"}
    for rows, saved in zip(language_rows(again), language_rows(model), strict=True):
        assert torch.equal(rows, saved)
    extend_languages(again, {"ar": "ko"})
    assert torch.equal(again.ar.language_embedding.weight[4], model.ar.language_embedding.weight[3])
    assert again.provenance["added_languages"] == {"ko": "ja", "ar": "ko"}


def test_added_language_is_spoken_and_trained_by_its_own_row(released_file, make_batch):
    model = load_model(released_file, add_languages={"ko": "ja"})
    text, prompt = torch.tensor([7, 8, 9, 10]), torch.zeros(2, 3, dtype=torch.long)
    request = {"num_prompt_text": 1, "prompt_language": "ja", "top_k": 1, "max_frames": 6}
    as_japanese = model.generate(text, prompt, text_language="ja", **request)
    assert torch.equal(model.generate(text, prompt, text_language="ko", **request), as_japanese)

    batch = make_batch([(5, 12)], num_codebooks=3) | {"language": torch.full((1, 5), 3)}
    model.ar_loss(**batch).loss.backward()
    model.nar_loss(**batch, stage=1, prefix_len=2).loss.backward()
    for half in (model.ar, model.nar):
        gradient = half.language_embedding.weight.grad
        assert gradient[3].abs().sum() > 0
        assert gradient[:3].abs().sum() == 0


def test_generate_in_a_language_that_was_not_added_names_those_that_are_known(released_file):
    model = load_model(released_file)
    with pytest.raises(TextError, match="language ko is not known to this model; it speaks en, zh, ja"):
        model.generate(torch.tensor([7]), torch.zeros(2, 3, dtype=torch.long), 0, text_language="ko")


def test_load_model_with_wrong_languages_names_all_of_them(released_file):
    with pytest.raises(CheckpointError) as caught:
        load_model(released_file, add_languages={"korean": "en", "zh": "en", "ko": "de", "KO": "en"})
    message = str(caught.value)
    assert message.startswith(f"{released_file}: ")
    assert "'korean' is not the code of a language" in message
    assert "'KO' is not the code of a language" in message
    assert "zh is there already" in message
    assert "ko cannot begin as de: it is not one of en, zh, ja" in message


def test_extend_languages_of_a_model_of_one_quantizer_has_one_half_to_extend(build_model):
    model = build_model(num_quantizers=1)
    extend_languages(model, ["ko"])
    assert model.ar.language_embedding.num_embeddings == 4


def test_extend_languages_keeps_what_is_frozen_frozen(build_model):
    model = build_model(num_quantizers=2)
    model.ar.requires_grad_(False)
    extend_languages(model, ["ko"])
    assert not model.ar.language_embedding.weight.requires_grad
    assert model.nar.language_embedding.weight.requires_grad


def test_export_of_an_added_language_to_the_released_format_is_refused_with_the_reason(
    released_file, tmp_path
):
    model = load_model(released_file, add_languages=["ko"])
    with pytest.raises(CheckpointError, match="it has languages en, zh, ja, ko, the original has en, zh, ja"):
        save_model(model, tmp_path / "out.pt", format="released")
    assert not (tmp_path / "out.pt").exists()


def test_released_file_of_four_languages_is_refused_because_they_have_no_names(released_file, tmp_path):
    model = load_model(released_file, add_languages=["ko"])
    save_model(model, tmp_path / "forced.pt", format="released", force=True)
    with pytest.raises(CheckpointError, match="language embedding has 4 rows and no names for them"):
        load_model(tmp_path / "forced.pt")
