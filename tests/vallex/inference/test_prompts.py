"""Voice prompts: the shipped ones, what vallex writes, and every file that is not one."""

import io
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from vallex.errors import PromptError
from vallex.inference.prompts import (
    VoicePrompt,
    find_prompt,
    list_prompts,
    load_prompt,
    prompt_path,
    save_prompt,
)
from vallex.languages import Language


def make_prompt(num_frames: int = 40, num_text: int = 12, **records) -> VoicePrompt:
    generator = torch.Generator().manual_seed(num_frames)
    return VoicePrompt(
        codes=torch.randint(0, 1024, (num_frames, 8), generator=generator),
        text=torch.randint(5, 70, (num_text,), generator=generator),
        language=Language.JA,
        **records,
    )


def released_arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "audio_tokens": generator.integers(0, 1024, (1, 412, 8)),
        "text_tokens": generator.integers(5, 70, (1, 30)),
        "lang_code": np.int32(2),
    }


@pytest.fixture
def anna(tmp_path):
    return tmp_path / "anna.npz"


def write_zip(path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(f"{name}.npy", content)


def npy_bytes(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npy_header(descr: str, shape: str) -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def test_load_prompt_given_every_shipped_prompt_reads_what_numpy_reads(shared):
    paths = list_prompts(shared / "data" / "prompts")
    assert len(paths) == 40
    languages = set()
    for path in paths:
        prompt = load_prompt(path)
        arrays = np.load(path, allow_pickle=False)
        assert prompt.codes.dtype == prompt.text.dtype == torch.int64
        assert np.array_equal(prompt.codes.numpy(), arrays["audio_tokens"][0])
        assert np.array_equal(prompt.text.numpy(), arrays["text_tokens"][0])
        assert prompt.language.prompt_code == int(arrays["lang_code"])
        assert not prompt.toy
        assert prompt.seconds == len(prompt.codes) / 75
        languages.add(prompt.language.code)
    assert languages == {"en", "zh", "ja"}


def test_save_prompt_then_load_prompt_gives_the_same(anna):
    prompt = make_prompt(toy=True, transcript="こんにちは, hello")
    save_prompt(anna, prompt)
    again = load_prompt(anna)
    assert torch.equal(again.codes, prompt.codes)
    assert torch.equal(again.text, prompt.text)
    assert (again.language, again.toy, again.transcript) == (Language.JA, True, "こんにちは, hello")
    assert [path.name for path in anna.parent.iterdir()] == ["anna.npz"]


def test_save_prompt_writes_the_arrays_of_the_released_format(anna, shared):
    save_prompt(anna, make_prompt(num_frames=33, num_text=7))
    arrays = np.load(anna)  # as the original code does
    released = np.load(shared / "data" / "prompts" / "alan.npz")
    assert arrays["audio_tokens"].shape == (1, 33, 8)
    assert arrays["text_tokens"].shape == (1, 7)
    assert arrays["lang_code"].shape == released["lang_code"].shape == ()
    for name in released.files:
        assert arrays[name].dtype == released[name].dtype
    assert int(arrays["lang_code"]) == 1  # Japanese
    assert arrays["transcript"].item() == ""


def test_save_prompt_of_an_added_language_keeps_its_code_and_no_number_of_another(anna):
    prompt = replace(make_prompt(), language="ko")
    save_prompt(anna, prompt)
    assert load_prompt(anna).language == "ko"
    arrays = np.load(anna)
    assert arrays["language"].item() == "ko"
    assert "lang_code" not in arrays.files


@pytest.mark.parametrize(
    ("languages", "expected"),
    [
        ({}, "it has no array lang_code"),
        ({"lang_code": np.int32(2), "language": np.str_("ko")}, "it has lang_code and language, and needs"),
        ({"language": np.str_("korean")}, "language is 'korean'; two small letters are needed, as in 'en'"),
        ({"language": np.int32(3)}, "language is of dtype int32; text is needed"),
        ({"language": np.array(["ko", "ja"])}, r"language is \[2\]; one value is needed"),
    ],
)
def test_load_prompt_with_a_wrong_language_says_what_is_needed(anna, languages, expected):
    arrays = released_arrays()
    del arrays["lang_code"]
    np.savez(anna, **arrays | languages)
    with pytest.raises(PromptError, match=expected):
        load_prompt(anna)


def test_voice_prompt_with_a_language_that_is_no_code_says_so():
    with pytest.raises(PromptError, match="language is 'Korean'; two small letters are needed"):
        replace(make_prompt(), language="Korean")


def test_voice_prompt_with_bad_codes_and_text_names_both():
    with pytest.raises(
        PromptError, match=r"codes run from 0 to 1024; 0 to 1023 .*; text ids run from -3 to 5"
    ):
        VoicePrompt(
            codes=torch.tensor([[0, 1, 2, 3, 4, 5, 6, 1024]]),
            text=torch.tensor([-3, 5]),
            language=Language.EN,
        )


def test_load_prompt_with_four_codebooks_says_so_and_what_to_do(anna):
    np.savez(anna, **released_arrays() | {"audio_tokens": np.zeros((1, 412, 4), np.int64)})
    with pytest.raises(PromptError) as error:
        load_prompt(anna)
    assert str(error.value) == (
        f"{anna}: codes are [1, 412, 4]; this model needs 8 codebooks. "
        "Make it again: vallex voice make anna anna.wav"
    )


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("audio_tokens", np.full((1, 9, 8), 1024), r"codes run from 1024 to 1024; 0 to 1023 are allowed"),
        ("audio_tokens", np.full((1, 9, 8), -1), r"codes run from -1 to -1; 0 to 1023"),
        ("audio_tokens", np.zeros((9, 8), int), r"codes are \[9, 8\]; \[1, frames, 8\] is needed"),
        ("audio_tokens", np.zeros((1, 0, 8), int), r"codes are \[1, 0, 8\], 0\.0 s; above 0"),
        ("audio_tokens", np.zeros((1, 4501, 8), np.int16), r"60\.0 s; above 0 and up to 60 s"),
        ("audio_tokens", np.zeros((1, 9, 8)), r"audio_tokens is of dtype float64; whole numbers"),
        ("text_tokens", np.full((1, 3), 2048), r"text ids run from 2048 to 2048; 0 to 2047 are allowed"),
        ("text_tokens", np.zeros((3,), int), r"text is \[3\]; \[1, phonemes\] is needed"),
        ("text_tokens", np.zeros((1, 0), int), r"text is \[1, 0\]; 1 to 2048 phonemes"),
        ("text_tokens", np.array([["hello"]]), r"text_tokens is of dtype <U5; whole numbers"),
        ("lang_code", np.int32(3), r"lang_code 3 is not one of 0 \(zh\), 1 \(ja\), 2 \(en\)"),
        ("lang_code", np.str_("en"), r"lang_code is of dtype <U2; whole numbers"),
        ("lang_code", np.array([2, 2]), r"lang_code is \[2\]; one value"),
        ("toy", np.array([True, False]), r"toy is \[2\]; one value"),
        ("transcript", np.int32(5), r"transcript is of dtype int32; text is needed"),
    ],
)
def test_load_prompt_with_a_bad_array_says_what_is_allowed(anna, name, array, message):
    np.savez(anna, **released_arrays() | {name: array})
    with pytest.raises(PromptError, match=message) as error:
        load_prompt(anna)
    assert str(error.value).startswith(f"{anna}: ")
    assert "\n" not in str(error.value)


def test_load_prompt_with_several_faults_names_them_all(anna):
    np.savez(anna, audio_tokens=np.full((1, 5, 8), 2000), lang_code=np.int64(7))
    with pytest.raises(
        PromptError, match=r"no array text_tokens; codes run from 2000 .*; lang_code 7 is not"
    ):
        load_prompt(anna)


def test_load_prompt_where_other_integer_types_and_orders_are_stored_reads_them(anna):
    arrays = released_arrays()
    codes = arrays["audio_tokens"].copy()
    arrays["audio_tokens"] = np.asfortranarray(codes.astype(">u2"))
    arrays["lang_code"] = np.array([0])
    arrays["unknown"] = np.zeros(3)
    np.savez(anna, **arrays)
    prompt = load_prompt(anna)
    assert np.array_equal(prompt.codes.numpy(), codes[0])
    assert prompt.language is Language.ZH


def test_load_prompt_given_no_file_says_so(anna):
    with pytest.raises(PromptError, match=r"anna\.npz: no such file"):
        load_prompt(anna)


def test_load_prompt_given_something_else_says_that_it_is_no_npz(anna):
    anna.write_bytes(b"RIFF....WAVEfmt ")
    with pytest.raises(PromptError, match=r"anna\.npz: not an npz file"):
        load_prompt(anna)
    anna.write_bytes(b"")
    with pytest.raises(PromptError, match="not an npz file"):
        load_prompt(anna)


def test_load_prompt_cut_short_at_any_place_is_refused(anna, tmp_path):
    save_prompt(anna, make_prompt())
    whole = anna.read_bytes()
    cut = tmp_path / "cut.npz"
    for end in range(0, len(whole) - 1, 7):
        cut.write_bytes(whole[:end])
        with pytest.raises(PromptError, match=r"cut\.npz: "):
            load_prompt(cut)


def test_load_prompt_with_any_byte_changed_reads_or_refuses(anna, tmp_path):
    np.savez(anna, **released_arrays() | {"audio_tokens": np.zeros((1, 3, 8), int)})
    whole = anna.read_bytes()
    changed = tmp_path / "changed.npz"
    generator = np.random.default_rng(0)
    num_refused = 0
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= int(generator.integers(1, 256))
        changed.write_bytes(content)
        try:
            load_prompt(changed)
        except PromptError as error:
            num_refused += 1
            assert "\n" not in str(error)
    assert num_refused > len(whole) // 2


def test_load_prompt_with_a_pickle_does_not_run_it(anna, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    np.savez(anna, **released_arrays() | {"lang_code": np.array(Trap(), dtype=object)})
    with pytest.raises(PromptError, match="lang_code is of dtype object, a pickle, which is never read"):
        load_prompt(anna)
    assert not (tmp_path / "sprung").exists()


def test_load_prompt_given_a_large_file_refuses_it_unread(anna):
    with anna.open("wb") as file:
        file.truncate(5 << 20)
    with pytest.raises(PromptError, match="5242880 bytes; a voice prompt has at most 4194304"):
        load_prompt(anna)


def test_load_prompt_given_a_zip_bomb_refuses_it_unread(anna):
    np.savez_compressed(anna, **released_arrays() | {"audio_tokens": np.zeros((1, 500_000, 8), np.int64)})
    assert anna.stat().st_size < 100_000
    with pytest.raises(PromptError, match="audio_tokens takes 32000128 bytes; at most 1048576"):
        load_prompt(anna)


def test_load_prompt_given_a_zip_bomb_that_lies_about_its_size_refuses_it(anna):
    np.savez_compressed(anna, **released_arrays() | {"audio_tokens": np.zeros((1, 500_000, 8), np.int64)})
    honest = struct.pack("<I", 32_000_128)
    content = anna.read_bytes()
    assert honest in content
    anna.write_bytes(content.replace(honest, struct.pack("<I", 1000)))
    with pytest.raises(PromptError, match=r"anna\.npz: "):
        load_prompt(anna)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_load_prompt_packed_by_another_method_is_refused(anna, compression):
    write_zip(anna, {name: npy_bytes(array) for name, array in released_arrays().items()}, compression)
    with pytest.raises(PromptError, match=f"is packed by zip method {compression}; numpy writes 0 or 8"):
        load_prompt(anna)


@pytest.mark.parametrize("shape", ["(1, 99999999999, 8)", "(1, -1, 8)", "(1, 2, 8)", "(0, 99999999999)"])
def test_load_prompt_whose_header_disagrees_with_its_content_is_refused(anna, shape):
    entries = {name: npy_bytes(array) for name, array in released_arrays().items()}
    write_zip(anna, entries | {"audio_tokens": npy_header("<i8", shape) + bytes(64)})
    with pytest.raises(PromptError, match=r"audio_tokens is \[.*by its header and has 64 bytes"):
        load_prompt(anna)


def test_load_prompt_whose_header_asks_for_endless_empty_texts_is_refused(anna):
    entries = {name: npy_bytes(array) for name, array in released_arrays().items()}
    write_zip(anna, entries | {"transcript": npy_header("<U0", "(99999, 99999999)")})
    with pytest.raises(PromptError, match=r"transcript is \[99999, 99999999\] <U0 by its header"):
        load_prompt(anna)


@pytest.mark.parametrize(
    "content",
    [b"", b"text", npy_header("<i8", "(" * 90), npy_header("nonsense", "(1,)"), npy_header("<i8", "-" * 60)],
)
def test_load_prompt_whose_header_is_none_is_refused(anna, content):
    entries = {name: npy_bytes(array) for name, array in released_arrays().items()}
    write_zip(anna, entries | {"text_tokens": content})
    with pytest.raises(PromptError, match="text_tokens is not a numpy array"):
        load_prompt(anna)


def test_find_prompt_given_a_name_or_a_path_finds_the_file(tmp_path):
    save_prompt(tmp_path / "anna.npz", make_prompt())
    assert find_prompt("anna", tmp_path) == tmp_path / "anna.npz"
    assert find_prompt(str(tmp_path / "anna.npz"), tmp_path / "elsewhere") == tmp_path / "anna.npz"


def test_find_prompt_given_an_unknown_name_offers_the_nearest(tmp_path):
    save_prompt(tmp_path / "anna.npz", make_prompt())
    with pytest.raises(PromptError, match=r"voice 'ana': no such file, .* \(nearest: anna\)"):
        find_prompt("ana", tmp_path)
    with pytest.raises(PromptError, match=r"voice 'zed': .* \(it has 1 other voices\)"):
        find_prompt("zed", tmp_path)


def test_list_prompts_gives_names_in_order_and_none_where_there_is_no_folder(tmp_path):
    for name in ("berta", "anna", ".tmp-x"):
        save_prompt(tmp_path / f"{name}.npz", make_prompt())
    (tmp_path / "README.md").write_text("")
    assert [path.stem for path in list_prompts(tmp_path)] == ["anna", "berta"]
    assert list_prompts(tmp_path / "none") == []


@pytest.mark.parametrize("name", ["", "../anna", "a/b", ".anna", "a\nb"])
def test_prompt_path_given_a_name_that_is_no_file_name_refuses_it(tmp_path, name):
    with pytest.raises(PromptError, match="use letters, digits"):
        prompt_path(name, tmp_path)


def test_prompt_path_given_a_name_that_is_too_long_counts_its_bytes(tmp_path):
    assert prompt_path("é" * 60, tmp_path).parent == tmp_path
    with pytest.raises(PromptError, match="122 bytes; at most 120 are taken"):
        prompt_path("é" * 61, tmp_path)


def test_prompt_path_given_a_name_is_a_file_of_the_folder(tmp_path):
    assert prompt_path("Anna 2", tmp_path) == tmp_path / "Anna 2.npz"
