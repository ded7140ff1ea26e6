"""What a checkpoint is, for people: `vallex doctor CHECKPOINT`.

The file is loaded as for use, so that a report means that it can be used.
"""

from dataclasses import dataclass
from pathlib import Path

from vallex.model.checkpoint import load_model, read_checkpoint, recorded_heads, released_obstacles
from vallex.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class CheckpointReport:
    """A checkpoint file, and the model in it.

    format: "vallex" (safetensors) or "released" (torch.save)
    dtypes: of the tensors on disk, the commonest first
    heads_from: how the number of attention heads is known
    provenance: what is recorded of where it comes from; of a released file, the settings beside the model
    obstacles: what the original inference code would load wrongly; empty where the file fits it
    """

    path: Path
    format: str
    num_bytes: int
    num_parameters: int
    dtypes: tuple[str, ...]
    config: ModelConfig
    heads_from: str
    provenance: dict[str, str | int | float | bool]
    obstacles: tuple[str, ...]

    @property
    def is_toy(self) -> bool:
        """Whether it was made with toy weights."""
        return bool(self.provenance.get("toy"))


def describe_checkpoint(path: Path, num_heads: int | None = None) -> CheckpointReport:
    """Reads a checkpoint file and describes it.

    num_heads: as of `load_model`
    errors: CheckpointError, as of `load_model`
    """
    state, recorded, provenance = read_checkpoint(path)
    extras = state["extras"]
    file_heads = recorded_heads(extras) if recorded is None else recorded.num_heads
    dtypes = [str(tensor.dtype).removeprefix("torch.") for tensor in state["tensors"].values()]
    del state  # one copy of the weights at a time
    model = load_model(path, num_heads=num_heads)
    obstacles = released_obstacles(model)
    if recorded is not None:
        obstacles.append(
            "it is a safetensors file (vallex export RUN FILE --format released writes the other)"
        )
    return CheckpointReport(
        path=path,
        format="released" if recorded is None else "vallex",
        num_bytes=path.stat().st_size,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtypes=tuple(sorted(set(dtypes), key=dtypes.count, reverse=True)),
        config=model.config,
        heads_from=_heads_from(num_heads, file_heads),
        provenance=_plain_settings(provenance if recorded is not None else extras),
        obstacles=tuple(obstacles),
    )


def _heads_from(given: int | None, recorded: int | None) -> str:
    if given is None:
        return "recorded in the file" if recorded else "not recorded; those of the released model"
    return f"as given; the file {f'records {recorded}' if recorded else 'records none'}"


def _plain_settings(values: dict) -> dict[str, str | int | float | bool]:
    """The numbers and words of settings, and one level below as `codec.name`; pickled objects are left out.

    The released trainer wrote each of its `params` twice, beside the model and in a group; once is enough.
    """
    found = {}
    for name, value in values.items():
        group = value.items() if isinstance(value, dict) else [("", value)]
        for key, entry in group:
            if isinstance(entry, str | int | float | bool) and (name != "params" or key not in values):
                found[f"{name}.{key}" if key else name] = entry
    return found
