"""`POST /v1/audio/speech` asked by OpenAI's own client, and what is refused."""

import io
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from fastapi.testclient import TestClient

from vallex.inference.synthesizer import Synthesizer

TEXT = "Good morning. How are you today, my friend?"


@pytest.fixture(scope="session")
def client(site):
    openai = pytest.importorskip("openai", reason="openai is not installed (pip install '.[dev]')")
    return openai.OpenAI(base_url=f"{site.url}/v1", api_key="any, on this machine", max_retries=0)


def body(**changes) -> dict:
    return {"model": "tiny.pt", "voice": "acou_1", "input": TEXT, "response_format": "wav"} | changes


@pytest.fixture(scope="session")
def keyed(settings_of) -> TestClient:
    """The server as it is off this machine, with a key."""
    from finetune.page.server import build_server

    return TestClient(build_server(settings_of(host="0.0.0.0", password="open", api_key="sesame")))


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3", "opus"])
def test_speech_when_a_format_is_asked_for_then_it_comes_with_the_mark(client, kind):
    answer = client.audio.speech.create(**body(response_format=kind, input="Good morning to you."))
    sound = soundfile.SoundFile(io.BytesIO(answer.content))
    container, subtype = {"wav": ("WAV", "PCM_16"), "mp3": ("MP3", "MPEG_LAYER_III")}.get(
        kind, ("FLAC", "PCM_16") if kind == "flac" else ("OGG", "OPUS" if kind == "opus" else "VORBIS")
    )
    assert (sound.format, sound.subtype, sound.samplerate) == (container, subtype, 24000)
    assert "synthetic speech by vallex, tiny.pt" in answer.response.headers["x-synthetic-speech"]
    assert "synthetic speech by vallex, tiny.pt" in sound.comment
    assert len(sound.read()) >= 2560


def _with_first_empty(monkeypatch):
    speak_many = Synthesizer.speak_many

    def first_is_empty(self, texts, settings):
        [speech] = speak_many(self, texts, settings)
        return [replace(speech, ended="empty" if "Good" in texts[0][0] else "eos")]

    monkeypatch.setattr(Synthesizer, "speak_many", first_is_empty)


def test_speech_when_a_sentence_was_not_said_then_the_header_tells_and_its_sound_is_left_out(
    client, monkeypatch
):
    whole = client.audio.speech.create(**body(response_format="flac")).content
    _with_first_empty(monkeypatch)
    answer = client.audio.speech.create(**body(response_format="flac"))
    assert answer.response.headers["x-speech-ended"] == "empty, eos"
    lengths = [soundfile.info(io.BytesIO(content)).frames for content in (answer.content, whole)]
    assert 0 < lengths[0] < lengths[1]


@pytest.mark.parametrize("kind", ["wav", "mp3"])
def test_speech_when_nothing_was_said_then_it_is_no_success(client, monkeypatch, kind):
    import openai

    _with_first_empty(monkeypatch)
    with pytest.raises(openai.InternalServerError, match=r"nothing was said: tiny\.pt ended at once"):
        client.audio.speech.create(**body(response_format=kind, input="Good morning to you."))


def test_speech_when_it_is_streamed_then_pcm_comes_in_pieces_and_equals_the_wav(client):
    pieces = []
    with client.audio.speech.with_streaming_response.create(**body(response_format="pcm")) as answer:
        assert answer.headers["content-type"] == "audio/pcm"
        pieces = list(answer.iter_bytes())
    assert len(pieces) > 1
    wav = client.audio.speech.create(**body()).content
    samples, _ = soundfile.read(io.BytesIO(wav), dtype="int16")
    assert np.array_equal(np.frombuffer(b"".join(pieces), "<i2"), samples)


def test_speech_when_the_seed_differs_then_the_speech_does(client):
    one, again, other = (
        client.audio.speech.create(**body(response_format="pcm"), extra_body={"seed": seed}).content
        for seed in (1, 1, 2)
    )
    assert one == again
    assert one != other


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"model": "gpt-4o-mini-tts"}, 400, "'gpt-4o-mini-tts' is not known; there are toy, tiny.pt"),
        ({"voice": "../alan"}, 400, "'../alan' is not saved here"),
        ({"response_format": "aac"}, 400, "(it is 'aac')"),
        ({"speed": 2.0}, 400, "speed"),
        ({"input": "  "}, 400, "nothing to say"),
        ({"input": "a" * 5001}, 400, "5000"),
        ({"instructions": "sing"}, 400, "(it is 'sing')"),
        ({"extra_body": {"pitch": 1}}, 400, "pitch"),
        ({"input": "[EN]open"}, 400, "[EN]"),
    ],
)
def test_speech_when_something_is_wrong_then_it_is_refused_with_the_value(client, changes, status, said):
    import openai

    with pytest.raises(openai.APIStatusError) as refusal:
        client.audio.speech.create(**body(**changes))
    assert refusal.value.status_code == status
    assert said in refusal.value.body["message"]


def test_models_when_asked_for_then_every_checkpoint_is_listed(client):
    assert {"toy", "tiny.pt"} <= {model.id for model in client.models.list()}


@pytest.mark.parametrize("key", [None, "Bearer wrong", "sesame "])
def test_endpoint_when_the_key_is_wrong_then_it_is_401(keyed, key):
    headers = {} if key is None else {"Authorization": key}
    for answer in (
        keyed.post("/v1/audio/speech", json=body(), headers=headers),
        keyed.get("/v1/models", headers=headers),
    ):
        assert answer.status_code == 401
        assert "API key" in answer.json()["error"]["message"]
    assert keyed.get("/v1/models", headers={"Authorization": "Bearer sesame"}).status_code == 200


def test_page_when_it_has_a_password_then_nothing_is_shown_without_it(keyed):
    assert keyed.get("/config").status_code == 401
    assert keyed.get("/gradio_api/info").status_code == 401
    assert keyed.post("/gradio_api/upload", files={"files": b"x"}).status_code == 401
    assert keyed.post("/login", data={"username": "vallex", "password": "guess"}).status_code == 400
    assert keyed.post("/login", data={"username": "vallex", "password": "open"}).status_code == 200


def test_endpoint_when_a_form_of_another_site_posts_then_it_is_refused(keyed):
    headers = {"Authorization": "Bearer sesame", "Content-Type": "text/plain"}
    answer = keyed.post("/v1/audio/speech", content=b"{}", headers=headers)
    assert answer.status_code == 415


def test_endpoint_when_the_body_is_huge_or_no_json_then_it_is_refused(keyed):
    headers = {"Authorization": "Bearer sesame", "Content-Type": "application/json"}
    assert keyed.post("/v1/audio/speech", content=b"[" * 10**6, headers=headers).status_code == 413
    assert keyed.post("/v1/audio/speech", content=b"[" * 1000, headers=headers).status_code == 400


def test_server_when_another_name_points_here_then_it_is_refused(settings_of):
    from finetune.page.server import build_server

    local = TestClient(build_server(settings_of()), base_url="http://evil.example")
    assert local.get("/v1/models").status_code == 400


def test_server_when_a_file_is_asked_for_by_path_then_none_is_served(keyed, page_folder):
    keyed.post("/login", data={"username": "vallex", "password": "open"})
    for path in ("/etc/passwd", f"{page_folder}/checkpoints/tiny.pt", f"{page_folder}/prompts/alan.npz"):
        assert keyed.get(f"/gradio_api/file={path}").status_code in (403, 404)
    assert keyed.get("/speech/..%2f..%2fetc%2fpasswd.wav").status_code == 404


def test_page_when_a_path_was_never_uploaded_then_it_is_refused(settings_of, page_folder, tmp_path):
    from finetune.page.server import build_server

    shelf, voice = tmp_path / "shelf", page_folder / "prompts" / "alan.npz"
    local = TestClient(build_server(settings_of(prompts_dir=shelf)), base_url="http://localhost")
    config = local.get("/config").json()
    [npz] = [part["id"] for part in config["components"] if part["props"].get("elem_id") == "npz"]
    [event] = [call["id"] for call in config["dependencies"] if [npz, "upload"] in call["targets"]]

    def add(path: str):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        return local.post("/gradio_api/run/predict", json={"data": [file], "fn_index": event})

    assert "not uploaded by a user" in add(str(voice)).json()["error"]
    assert not shelf.exists()
    [sent] = local.post("/gradio_api/upload", files={"files": (voice.name, voice.read_bytes())}).json()
    assert "Added alan" in add(sent).text
    assert (shelf / "alan.npz").is_file()
