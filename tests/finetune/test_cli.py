"""The command line as its user meets it: help, refusals, and what a listing looks like.

Refusals run in this process; the whole folder is compared before and after, so that nothing is left behind.
"""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import typer

from finetune.cli import app, main
from finetune.display import Display
from finetune.run import finetune
from vallex.model.checkpoint import save_model

RATE_HZ = 24000
HEAVY = ("torch", "torchaudio", "lhotse", "transformers", "gradio", "accelerate", "peft", "soundfile")


@dataclass(frozen=True)
class Ended:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def vallex(tmp_path, monkeypatch, capsys) -> Callable[..., Ended]:
    """Runs a command line in this process, in an empty folder, 80 columns wide, with no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # main would set it, for the tests that follow too
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["vallex", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(ended.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def refused(vallex, tmp_path) -> Callable[..., str]:
    """Runs a command that must be refused in one line with code 2, leaving the folder as it was."""

    def call(*arguments: object) -> str:
        before = files_below(tmp_path)
        ended = vallex(*arguments)
        assert ended.code == 2, ended
        assert ended.err.startswith("vallex: ") and ended.err.count("\n") == 1, ended.err
        assert files_below(tmp_path) == before
        return ended.err

    return call


def files_below(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def write_clip(path: Path, *, seconds=0.6, text="Good morning.", rate_hz=RATE_HZ, channels=1, subtype=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(path.stem.encode(), "little")
    noise = np.random.default_rng(seed).standard_normal((round(seconds * rate_hz), channels)) * 0.1
    soundfile.write(path, noise.clip(-1, 1), rate_hz, subtype=subtype)
    if text is not None:
        path.with_name(f"{path.stem}.normalized.txt").write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def files(tmp_path_factory, make_model, make_prepared, make_utterances) -> Path:
    """Checkpoints, prompts and recordings, good and bad; `toy` is a set of toy codes."""
    folder = tmp_path_factory.mktemp("files")
    splits = {"train": make_utterances("a", [20, 24]), "valid": make_utterances("b", [20])}
    make_prepared(folder / "toy", splits, is_toy=True)
    model = make_model()
    save_model(model, folder / "good.pt", format="released", force=True)
    model.provenance = {"toy": True}
    save_model(model, folder / "toy.safetensors")
    content = torch.load(folder / "good.pt", weights_only=True)

    def write_released(name: str, changes: dict) -> None:
        torch.save({**content, "model": content["model"] | changes}, folder / name)

    whole = (folder / "good.pt").read_bytes()
    (folder / "half.pt").write_bytes(whole[: len(whole) // 2])
    write_released("prenet.pt", {"ar_text_prenet.1.weight": torch.zeros(32, 32, 5)})
    write_released("wide.pt", {"ar_decoder.layers.0.linear1.weight": torch.zeros(128, 64)})
    torch.save({"model": content["model"]}, folder / "no-heads.pt")
    write_prompt(folder / "voice.npz")
    write_prompt(folder / "four.npz", num_codebooks=4)
    write_prompt(folder / "toy.npz", toy=np.bool_(True))
    (folder / "half.npz").write_bytes((folder / "voice.npz").read_bytes()[:200])
    write_clip(folder / "good.wav", seconds=1.0)
    write_clip(folder / "no-text.wav", seconds=1.0, text=None)
    write_clip(folder / "long.wav", seconds=15.5)
    (folder / "junk.wav").write_bytes(b"not audio" * 99)
    return folder


def write_prompt(path: Path, num_codebooks: int = 8, **more) -> None:
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 1024, (1, 60, num_codebooks))
    text = generator.integers(5, 70, (1, 9))
    np.savez(path, audio_tokens=codes, text_tokens=text, lang_code=np.int32(2), **more)


def leaf_commands(command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    for name, child in getattr(command, "commands", {}).items():
        if hasattr(child, "commands"):
            yield from leaf_commands(child, (*path, name))
        else:
            yield (*path, name), child


VERBS = dict(leaf_commands(typer.main.get_command(app)))


@pytest.mark.parametrize(
    "code",
    [
        "import vallex",
        "import vallex.cli",
        "import finetune.cli",
        "import finetune.cli as c\nsys.argv = ['vallex', '--help']\ntry: c.main()\nexcept SystemExit: pass",
        "import finetune.cli as c\nsys.argv = ['vallex', 'runs', 'list', '--json']\ntry: c.main()\n"
        "except SystemExit: pass",
    ],
    ids=["vallex", "vallex.cli", "finetune.cli", "--help", "runs list"],
)
def test_imports_when_nothing_has_run_yet_then_none_is_heavy(code, tmp_path):
    check = f"import sys\n{code}\nsys.exit(', '.join(set({HEAVY}) & set(sys.modules)) or 0)"
    ended = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_contract_when_listed_then_its_verbs_are_there():
    contract = ["prepare", "finetune", "export", "say", "quickstart", "voice make", "voice list"]
    contract += ["runs list", "runs show", "runs compare"]
    assert set(contract) <= {" ".join(path) for path in VERBS}


@pytest.mark.parametrize("path", VERBS, ids=" ".join)
def test_help_of_a_verb_has_an_example_that_can_be_typed(vallex, path):
    ended = vallex(*path, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert max(map(len, ended.out.splitlines())) <= 80
    verb = " ".join(path)
    prose = " ".join(VERBS[path].help.split())
    assert f"Example: vallex {verb}" in prose
    assert f"Example: vallex {verb}" in " ".join(ended.out.split())
    example = shlex.split(prose.partition("Example: vallex ")[2])[len(path) :]
    VERBS[path].make_context(verb, example)  # raises where an option or argument is not known


@pytest.mark.parametrize("group", [(), ("runs",), ("voice",)], ids=["vallex", "runs", "voice"])
def test_help_of_a_group_lists_its_verbs(vallex, group):
    ended = vallex(*group, "--help")
    assert (ended.code, ended.err) == (0, "")
    for path in VERBS:
        if path[:-1] == group:
            assert f" {path[-1]} " in ended.out


def test_version_when_asked_then_printed(vallex):
    assert re.fullmatch(r"vallex \d+\.\d+\.\d+\n", vallex("--version").out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("fintune", "No such command 'fintune'. Did you mean 'finetune'[?] See vallex --help"),
        ("runs lst", "No such command 'lst'. Did you mean 'list'[?] See vallex runs --help"),
        (
            "finetune x --nam y",
            r"No such option: --nam \(Possible options: --name\)\. See vallex finetune --help",
        ),
        ("prepare x", "Missing argument 'OUT'. See vallex prepare --help"),
        ("say -o x.wav", "there is nothing to say: give a TEXT, --list FILE or --continue-from WAV"),
        ("say Hi", "Missing option '-o' / '--out'. See vallex say --help"),
        ("voice make", "Missing argument 'NAME'. See vallex voice make --help"),
        ("say Hi -o x.wav --seed abc", "Invalid value for '--seed'.*'abc'"),
        ("say Hi -o x.wav --seed -3", "Invalid value for '--seed'.*greater than or equal to 0.*'-3'"),
        ("say Hi -o x.wav --top-k 0", "Invalid value for '--top-k'.*greater than or equal to 1.*'0'"),
        ("say Hi -o x.wav --top-p 2", "Invalid value for '--top-p'.*less than or equal to 1.*'2'"),
        ("say Hi -o x.wav --temperature -1", "Invalid value for '--temperature'.*equal to 0.*'-1'"),
        ("prepare a b c", r"unexpected extra argument\(s\) \(c\)"),
        ("prepare a b --offline-toy yes", r"unexpected extra argument\(s\) \(yes\)"),
    ],
)
def test_command_line_that_is_wrong_is_explained_in_a_line(refused, arguments, message):
    assert re.search(message, refused(*arguments.split()))


def test_command_that_is_interrupted_says_so_and_ends_with_130(vallex, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("finetune.results.list_runs", interrupted)
    ended = vallex("runs", "list")
    assert (ended.code, ended.err) == (130, "vallex: interrupted\n")


def test_main_lets_threads_wait_without_spinning_unless_told_otherwise(vallex, monkeypatch):
    vallex("--version")
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    vallex("--version")
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


def test_runs_folder_that_is_a_file_is_refused_by_every_verb(refused, tmp_path, files):
    (tmp_path / "file").write_text("")
    for verb in ("runs list", "runs show x", "export x y.pt --format released", "say Hi -o x.wav"):
        assert "'file' is a file" in refused(*verb.split(), "--runs", "file")
    assert "'file' is a file" in refused("finetune", files / "toy", "--preset", "smoke", "--runs", "file")
    assert "'file' is a file" in refused("voice", "list", "--prompts", "file")


# prepare


def test_prepare_of_every_kind_of_file_uses_or_lists_it(vallex, tmp_path):
    chapter = tmp_path / "data" / "part" / "anna" / "1"
    for name, settings in {
        "plain": {},
        "stereo": {"channels": 2},
        "16k": {"rate_hz": 16000},
        "44k": {"rate_hz": 44100},
        "8bit": {"subtype": "PCM_U8"},
    }.items():
        write_clip(chapter / f"{name}.wav", **settings)
    write_clip(chapter / "mute.wav", text=None)
    (chapter / "unspoken.normalized.txt").write_text("Nobody said this.")
    write_clip(chapter / "empty.wav").write_bytes(b"")
    write_clip(chapter / "junk.wav").write_bytes(b"not audio" * 99)
    whole = write_clip(chapter / "cut.wav", seconds=2).read_bytes()
    (chapter / "cut.wav").write_bytes(whole[: len(whole) // 2])

    ended = vallex("prepare", "data", "out", "--offline-toy")
    assert (ended.code, ended.err) == (0, "")
    assert "toy weights: what you hear is noise" in ended.out
    said = " ".join(ended.out.split())
    assert "skipped 5: 3 audio unreadable, 1 audio without text, 1 text without audio" in said
    with (tmp_path / "out" / "skipped.csv").open(encoding="utf-8") as file:
        skipped = {Path(row["path"]).name: row["detail"] for row in csv.DictReader(file)}
    assert skipped.keys() == {"mute.wav", "unspoken.normalized.txt", "empty.wav", "junk.wav", "cut.wav"}
    assert "is empty (0 bytes)" in skipped["empty.wav"]
    assert "cannot be read as audio" in skipped["junk.wav"]
    assert "is truncated" in skipped["cut.wav"]
    info = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert info["num_train"] + info["num_valid"] == 5

    before = files_below(tmp_path / "out")
    again = vallex("prepare", "data", "out", "--offline-toy")
    assert "encoded 0, codes there already 5" in again.out
    assert files_below(tmp_path / "out") == before


def test_prepare_that_cannot_begin_leaves_nothing(refused, tmp_path):
    assert "missing: no such folder" in refused("prepare", "missing", "out")
    (tmp_path / "silent" / "a" / "b").mkdir(parents=True)
    assert "silent: holds no recording; allowed are .wav" in refused("prepare", "silent", "out")
    clip = write_clip(tmp_path / "data" / "part" / "anna" / "1" / "a.wav")
    assert "is a file; give a folder" in refused("prepare", clip, "out")
    assert f"{clip}: cannot be made a folder" in refused("prepare", "data", clip, "--offline-toy")
    assert "language 'fr' is not one of auto, en" in refused("prepare", "data", "out", "--language", "fr")
    limits = ("--min-clip-sec", 20, "--offline-toy")
    assert "min_clip_sec 20 and max_clip_sec 14" in refused("prepare", "data", "out", *limits)


def test_prepare_of_one_clip_keeps_its_codes_and_nothing_else(vallex, tmp_path):
    write_clip(tmp_path / "data" / "part" / "anna" / "1" / "a.wav")
    ended = vallex("prepare", "data", "out", "--offline-toy")
    assert ended.code == 2
    assert re.fullmatch("vallex: data: one clip is left, at least 2 are needed.*\n", ended.err)
    assert len([path for path in (tmp_path / "out").rglob("*") if path.is_file()]) == 1


def test_prepare_without_weights_and_network_names_file_source_and_ways_out(refused, tmp_path):
    write_clip(tmp_path / "data" / "part" / "anna" / "1" / "a.wav")
    message = refused("prepare", "data", "out")
    for wanted in ("checkpoints/encodec_24khz-d7cc33bc.th", "https://", "by hand", "--offline-toy"):
        assert wanted in message


def test_prepare_of_loose_recordings_says_where_they_belong(refused, tmp_path):
    write_clip(tmp_path / "data" / "a.wav")
    message = refused("prepare", "data", "out", "--offline-toy")
    assert "1 not in LibriTTS layout (as a.wav: recordings lie in part/speaker/chapter" in message


# finetune


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "missing: --preset, such as --preset small"),
        ("--preset smoek", "preset 'smoek' is not known; there are .*Did you mean smoke?"),
        (
            "--preset smoke --set warmup_step=3",
            "setting 'warmup_step' is not known. Did you mean warmup_steps?",
        ),
        ("--preset smoke --set learning_rate=1", "setting 'learning_rate' is not known. Did you mean lr?"),
        ("--preset smoke --set lr", "--set 'lr' has no '='; write it as key=value"),
        ("--preset smoke --set lr=fast", "ar.lr is 'fast'; it must be a number"),
        ("--preset smoke --set precision=fp8", "precision is 'fp8'; it must be one of fp32, bf16, fp16"),
        ("--preset smoke --set lr=x --set seed=-1", " ar.lr is 'x'; .*nar.lr is 'x'; .*seed is '-1'; "),
        ("--preset smoke --stage art", "stage 'art' is not known; it is one of ar, nar, both"),
        ("--preset smoke --name a/b --init INIT", "run name 'a/b': it names one folder"),
        (
            "--preset smoke",
            "checkpoints/vallex-checkpoint.pt: the released model is not there.*--offline-toy",
        ),
        ("--preset smoke --init nobody", "checkpoint 'nobody': no such file, and no such run in runs/"),
        ("--preset smoke --init FILES/half.pt", r"half.pt: not a whole torch.save file .*half downloaded"),
        ("--preset smoke --init FILES/prenet.pt", "prenet.pt: does not fit its own sizes: .* missing: "),
        ("--preset smoke --init FILES/wide.pt", r"of another shape: .*linear1.weight \[128, 64\] for "),
        ("--preset smoke --init FILES/no-heads.pt", "number of attention heads is not recorded"),
        ("--resume", "--resume goes on with a run: name it with --name"),
        ("--resume --name nobody", "run 'nobody': there is none in runs/ to resume"),
    ],
)
def test_finetune_of_bad_settings_trains_nothing(
    refused, files, tiny_prepared, tiny_checkpoint, arguments, message
):
    places = {"FILES": str(files), "INIT": str(tiny_checkpoint)}
    arguments = re.sub("FILES|INIT", lambda match: places[match[0]], arguments).split()
    assert re.search(message, refused("finetune", tiny_prepared, *arguments))


def test_finetune_of_what_is_not_prepared_says_how_to(refused, tmp_path, files, tiny_prepared):
    smoke = ("--preset", "smoke")
    assert "missing: PREPARED" in refused("finetune", *smoke)
    assert "no such folder; give a prepared set" in refused("finetune", "missing", *smoke)
    (tmp_path / "loose").mkdir()
    assert "loose: is not a prepared set (prepared.json is missing)" in refused("finetune", "loose", *smoke)
    toy = refused("finetune", files / "toy", *smoke, "--init", files / "good.pt")
    assert "its codes were made with toy weights; add --offline-toy" in toy


@pytest.fixture
def run(tmp_path, make_spec, make_config):
    """A run called anna, of one step a stage, under runs/."""
    short = {"max_steps": 1, "accumulate": 1}
    spec = make_spec(tmp_path / "runs", "anna", config=make_config(ar=short, nar=short))
    finetune(spec, Display())
    return spec


def test_finetune_under_a_name_that_is_taken_leaves_that_run_alone(refused, run):
    message = refused("finetune", run.prepared, "--preset", "smoke", "--init", run.init, "--name", "anna")
    assert "run 'anna': runs/anna is there already; take another --name" in message
    other = refused("finetune", "--resume", "--name", "anna", "--set", "lr=0.5")
    assert "other settings than it began with: ar.lr is 0.001, not 0.5; nar.lr is 0.001, not 0.5. " in other
    assert "--resume-from anna --name anna-2" in other


def test_finetune_with_plan_shows_what_it_would_take_and_leaves_nothing(vallex, tmp_path, run):
    before = files_below(tmp_path)
    ended = vallex("finetune", run.prepared, "--preset=small", "--init", run.init, "--name=later", "--plan")
    assert (ended.code, ended.err) == (0, "")
    shown = " ".join(ended.out.split())
    for stage in ("AR", "NAR"):
        assert re.search(
            rf"{stage}: \d+ steps on batches of up to 20 s; about \d+ s and \d+\.\d GB of the", shown
        )
    assert files_below(tmp_path) == before


def test_finetune_with_plan_and_resume_is_refused(refused, run):
    message = refused("finetune", "--resume", "--name", "anna", "--plan")
    assert "--plan is of a run that is to begin" in message


def test_finetune_whose_loss_overflows_fails_with_code_1_and_a_line(vallex, tmp_path, run):
    settings = [f"--set={item}" for item in ("lr=1e30", "max_steps=4", "warmup_steps=0", "schedule=constant")]
    ended = vallex("finetune", run.prepared, "--preset=smoke", "--init", run.init, "--name=bad", *settings)
    assert ended.code == 1
    assert re.fullmatch(
        r"vallex: the AR (is not finite|validation loss is nan) at step \d: .*[Tt]he learning rate .*\n",
        ended.err,
    )
    result = json.loads((tmp_path / "runs" / "bad" / "result.json").read_text())
    assert result["status"] == "failed" and "learning rate" in result["error"]
    listed = json.loads(vallex("runs", "list", "--json").out)
    assert {(row["name"], row["phase"], row["status"]) for row in listed} >= {("bad", "ar", "failed")}


# runs


def test_runs_list_json_has_the_keys_of_the_contract(vallex, run):
    rows = json.loads(vallex("runs", "list", "--json").out)
    keys = ["name", "phase", "status", "steps", "base_loss", "base_top10", "best_loss", "best_top10"]
    assert [list(row) for row in rows] == [keys, keys]
    assert [(row["name"], row["phase"], row["status"], row["steps"]) for row in rows] == [
        ("anna", "ar", "done", 1),
        ("anna", "nar", "done", 1),
    ]


def test_runs_list_of_a_name_given_by_itself_does_not_wrap_it(vallex, make_spec, make_config, tmp_path):
    short = {"max_steps": 1, "accumulate": 1}
    spec = make_spec(tmp_path / "runs", "smoke-20260708-091011", config=make_config(ar=short, nar=short))
    finetune(replace(spec, stages=("ar",)), Display())
    ended = vallex("runs", "list")
    assert (ended.code, ended.err) == (0, "")
    assert re.search(r"^ smoke-20260708-091011 +ar +done +1 ", ended.out, re.MULTILINE)
    assert max(map(len, ended.out.splitlines())) <= 80


def test_runs_where_there_are_none_says_how_to_begin(vallex):
    assert "No runs here yet. Begin one: vallex finetune" in vallex("runs", "list").out
    assert json.loads(vallex("runs", "list", "--json").out) == []


def test_runs_show_and_compare_of_what_is_no_run_offer_the_nearest(refused, tmp_path, run):
    assert "run 'ana': no such run in runs/ (nearest: anna)" in refused("runs", "show", "ana")
    assert "run 'ana': no such run in runs/ (nearest: anna)" in refused("runs", "compare", "anna", "ana")
    (tmp_path / "loose").mkdir()
    assert "loose: a folder, but not a run's" in refused("runs", "show", "loose")


# export


def test_export_that_cannot_be_done_writes_nothing(refused, tmp_path, files, run):
    released = ("--format", "released")
    assert "the original code would load this model wrongly" in refused("export", "anna", "a.pt", *released)
    assert "d_model 32 (not 1024)" in refused("export", "anna", "a.pt", *released)
    unknown = refused("export", "anna", "a.safetensors", "--format", "safetenors")
    assert "--format 'safetenors' is not known; it must be one of safetensors, released, hdf5" in unknown
    assert "'int8' is not known" in refused("export", "anna", "a.pt", *released, "--dtype", "int8")
    assert "b.safetensors" in refused("export", "anna", "b.pt", "--format", "safetensors")
    assert "write b.pt" in refused("export", "anna", "b.safetensors", *released)
    assert "checkpoint 'ana': no such file" in refused("export", "ana", "a.pt", *released)
    inside = refused("export", "runs/anna/checkpoints", "a.pt", *released)
    assert "checkpoint 'runs/anna/checkpoints': a folder, but no adapter's, and no such run in" in inside
    assert "It has anna@best, anna@last" in refused("export", "anna@7", "a.pt", *released)
    assert "half.pt: not a whole torch.save file" in refused("export", files / "half.pt", "a.pt", *released)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    assert "folder: a folder; give the name" in refused("export", "anna", "folder", *released)
    assert "file is a file, not a folder" in refused("export", "anna", "file/a.pt", *released)


def test_export_when_forced_writes_the_file_with_a_warning(vallex, tmp_path, run):
    ended = vallex("export", "anna", "a.pt", "--format", "released", "--force")
    assert ended.code == 0
    assert re.fullmatch("vallex: warning: the original code will load it wrongly: .*\n", ended.err)
    assert zipfile.is_zipfile(tmp_path / "a.pt")


# say, voice


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-o x.mp3", "x.mp3: not the name of a wav file; write -o x.wav"),
        ("-o folder.wav", "folder.wav: a folder; give the name of a file to write"),
        ("-o file/x.wav", "file/x.wav: file is a file, not a folder"),
        ("-o x.wav", "checkpoints/vallex-checkpoint.pt: the released model is not there"),
        ("-o x.wav --checkpoint FILES/half.pt --offline-toy", "half.pt: not a whole torch.save file"),
        ("-o x.wav --checkpoint FILES/prenet.pt --offline-toy", "prenet.pt: does not fit its own sizes"),
        ("-o x.wav --checkpoint FILES/no-heads.pt --offline-toy", "name it .*--heads"),
        ("-o x.wav --checkpoint FILES/no-heads.pt --heads 5 --offline-toy", "num_heads is 5"),
        ("-o x.wav --checkpoint FILES/toy.safetensors", "trained on toy codes.*add --offline-toy"),
        ("-o x.wav --checkpoint FILES/good.pt", "checkpoints/encodec_24khz-d7cc33bc.th.*--offline-toy"),
        ("-o x.wav --voice nobody --offline-toy", "voice 'nobody': no such file, and no such name"),
        ("-o x.wav --voice FILES/four.npz --offline-toy", r"four.npz: codes are \[1, 60, 4\].* 8 codebooks"),
        ("-o x.wav --voice FILES/half.npz --offline-toy", "half.npz: not an npz file, or only a part of one"),
        ("-o x.wav --voice FILES/no-text.wav --offline-toy", "no-text.wav: what is said in it is not known"),
        (
            "-o x.wav --voice FILES/long.wav --offline-toy",
            "long.wav: lasts 15.5 s; a voice prompt is 0.5 to 15",
        ),
        ("-o x.wav --voice FILES/junk.wav --text Hi --offline-toy", "junk.wav: cannot be read as audio"),
        ("-o x.wav --voice FILES/good.wav --text [EN]Hi --offline-toy", r"\[EN\] at character 1"),
        ("-o x.wav --vocoder vokos --offline-toy", "vocoder 'vokos' is not known. Choose one of: vocos"),
        ("-o x.wav --language fr --offline-toy", "language 'fr' is not one of"),
    ],
)
def test_say_that_cannot_be_done_writes_nothing(refused, tmp_path, files, arguments, message):
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "file").write_text("")
    assert re.search(message, refused("say", "Hi", *arguments.replace("FILES", str(files)).split()))


@pytest.mark.parametrize("text", ["", "  ", "?!", "[FR]salut[FR]", "[EN]Hello"])
def test_say_of_a_text_without_sound_quotes_it(refused, text):
    assert text.strip()[:4] in refused("say", text, "-o", "x.wav", "--offline-toy")


def test_voice_make_that_cannot_be_done_writes_nothing(refused, tmp_path, files):
    make = ("voice", "make")
    assert "there is no such recording" in refused(*make, "anna", "missing.wav", "--text", "Hi")
    assert "voice name '../anna'" in refused(*make, "../anna", files / "good.wav")
    assert "what is said in it is not known" in refused(
        *make, "anna", files / "no-text.wav", "--language", "ja"
    )
    assert "lasts 15.5 s" in refused(*make, "anna", files / "long.wav", "--offline-toy")
    assert "cannot be read as audio" in refused(
        *make, "anna", files / "junk.wav", "--text=Hi", "--offline-toy"
    )
    assert "encodec_24khz-d7cc33bc.th" in refused(*make, "anna", files / "good.wav")
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "anna.npz").write_bytes((files / "voice.npz").read_bytes())
    assert "is there already; take another name" in refused(*make, "anna", files / "good.wav")


def test_voice_list_shows_the_good_and_names_the_bad(vallex, tmp_path, files):
    assert "No voices in prompts/ yet. Make one: vallex voice make" in vallex("voice", "list").out
    (tmp_path / "prompts").mkdir()
    for name in ("voice", "four", "toy"):
        (tmp_path / "prompts" / f"{name}.npz").write_bytes((files / f"{name}.npz").read_bytes())
    ended = vallex("voice", "list")
    assert (ended.code, ended.err) == (0, "")
    lines = {line.split()[0]: line for line in ended.out.splitlines()}
    assert re.search(r"0\.8 s +en$", lines["voice"])
    assert lines["toy"].endswith("(toy weights)")
    assert "unusable" in lines["four"] and "[1, 60, 4]" in lines["four"]


# quickstart


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(130)], ids=["interrupted", "stopped"])
def test_quickstart_when_a_command_is_stopped_does_not_go_on(vallex, monkeypatch, stop):
    def stopped(*_):
        raise stop

    commands = [["finetune", "--resume", "--name", "x"], ["runs", "list"]]
    monkeypatch.setattr("finetune.quickstart.quickstart_commands", lambda *_, **__: commands)
    monkeypatch.setattr("finetune.run_options.spec_of", stopped)
    ended = vallex("quickstart")
    assert ended.code == 130
    assert "$ vallex finetune --resume" in ended.out and "$ vallex runs list" not in ended.out
