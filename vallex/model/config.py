"""The sizes and rules of a network: read from a checkpoint's tensors, or recorded beside them."""

import json
from dataclasses import asdict, dataclass, fields

from vallex.errors import CheckpointError

NUM_AUDIO_CODES = 1024
EOS_ID = NUM_AUDIO_CODES
BOS_ID = NUM_AUDIO_CODES + 1
PREFIX_MODES = (0, 1, 2, 4)
LARGEST_SIZES = {
    "d_model": 16384,
    "num_heads": 1024,
    "num_layers": 256,
    "num_quantizers": 64,
    "num_text_tokens": 2**20,
}
"""Far above any model there is: a damaged file must not make us build a billion layers."""

MAX_PROMPT_FRAMES = 225
"""Three seconds at 75 frames a second: the longest acoustic prompt of the NAR in training."""

ADAPTER_TARGETS = {
    "in_proj": "self_attn.in_proj",
    "out_proj": "self_attn.out_proj",
    "linear1": "linear1",
    "linear2": "linear2",
}
"""Where in a decoder layer a LoRA adapter can sit."""

FRAMES_PER_PHONEME = 16
"""`generate` stops after this many frames for each phoneme of prompt and target together."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that `VALLE(config)` is built from."""

    d_model: int
    num_heads: int
    num_layers: int
    num_quantizers: int = 8
    num_text_tokens: int = 2048
    add_prenet: bool = False
    share_embedding: bool = True
    prepend_bos: bool = True
    prefix_mode: int = 1
    prefix_min_share: float = 0.0
    """Shortest prefix drawn in mode 1, as a share of the batch's shortest utterance (lifeiteng: 0.25)."""
    languages: tuple[str, ...] = ("en", "zh", "ja")
    text_bos: bool = False
    text_eos: bool = False
    dropout: float = 0.1
    """The prenet's dropout is five times this (0.5 and 0.25 in the original), so that 0 means none."""

    def __post_init__(self):
        faults = [
            f"{name} is {getattr(self, name)!r}, it must be a whole number in 1..{largest}"
            for name, largest in LARGEST_SIZES.items()
            if not isinstance(getattr(self, name), int) or not 1 <= getattr(self, name) <= largest
        ]
        if not faults and self.d_model % (2 * self.num_heads):
            faults.append(
                f"num_heads is {self.num_heads}, it must divide the width {self.d_model} into even parts"
            )
        if self.prefix_mode not in PREFIX_MODES:
            faults.append(f"prefix_mode is {self.prefix_mode!r}, it must be one of 0, 1, 2, 4")
        if not 0 <= self.prefix_min_share <= 0.5:
            faults.append(f"prefix_min_share is {self.prefix_min_share!r}, it must lie in 0..0.5")
        if not 0 <= self.dropout < 1:
            faults.append(f"dropout is {self.dropout!r}, it must be at least 0 and below 1")
        if not self.languages or len(set(self.languages)) != len(self.languages):
            faults.append(f"languages are {self.languages!r}, they must be different names, at least one")
        if faults:
            raise CheckpointError("model configuration: " + "; ".join(faults))

    def to_json(self) -> str:
        """The configuration as one line of JSON, as it is written into checkpoints."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        """The configuration that `to_json` wrote; CheckpointError where it is not one."""
        try:
            values = json.loads(text)
            unknown = sorted(set(values) - {field.name for field in fields(cls)})
            if unknown:
                raise CheckpointError(
                    f"the recorded model configuration has unknown entries {', '.join(unknown)}: "
                    "it was written by a newer vallex; update this one"
                )
            return cls(**(values | {"languages": tuple(values["languages"])}))
        except (TypeError, KeyError, ValueError, RecursionError) as error:
            raise CheckpointError(f"the recorded model configuration cannot be read: {error}") from error
