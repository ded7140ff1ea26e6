"""How the page is served: where its folders are, who may use it, and the limits on what is sent to it.

Nothing but this machine can reach it unless it is told to listen elsewhere, and then it asks for a password
and the endpoint for a key: a voice cloner without either is a gift to whoever scans the network.
"""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from vallex.errors import ConfigError
from vallex.sources import CHECKPOINTS_DIR

USER = "vallex"
"""Who signs in; only the password is secret."""

MAX_UPLOAD_MB = 500
MAX_RECORDING_MB = 60
MAX_RECORDING_SEC = 600.0
MAX_TEXT_CHARS = 5000
MAX_LIST_CHARS = 20_000
MAX_LIST_LINES = 200
MAX_TRANSCRIPT_CHARS = 2000
MAX_WAITING = 20
MAX_BEST_OF = 8


@dataclass(frozen=True, kw_only=True)
class PageSettings:
    """What `vallex app` was started with.

    data_dir: where uploaded recordings and the sets prepared from them go
    asr: who hears what is said in a recording
    memory_gb: of checkpoints (counted as float32) and recognizers that are kept loaded
    precision: one of `vallex.model.precision.PRECISIONS`
    password, api_key: asked for where they are given; needed off this machine
    """

    host: str = "127.0.0.1"
    port: int = 7860
    password: str | None = None
    api_key: str | None = None
    runs_dir: Path = Path("runs")
    prompts_dir: Path = Path("prompts")
    data_dir: Path = Path("data")
    checkpoints_dir: Path = CHECKPOINTS_DIR
    offline_toy: bool = False
    memory_gb: float = 4.0
    precision: str = "float32"
    vocoder: str = "vocos"
    asr: str = "auto"

    def __post_init__(self):
        faults = []
        if not is_local(self.host):
            if not self.password:
                faults.append("the page needs a password there: --password, or VALLEX_PASSWORD")
            if not self.api_key:
                faults.append("the endpoint needs a key there: --api-key, or VALLEX_API_KEY")
        if faults:
            raise ConfigError(
                f"host {self.host}: others can reach it; {'; '.join(faults)}. Or leave --host out (127.0.0.1)"
            )
        if self.memory_gb <= 0:
            raise ConfigError(f"memory {self.memory_gb:g} GB: give the gigabytes for what is loaded, above 0")
        if self.precision != "float32":
            from vallex.model.precision import PRECISIONS  # which takes torch along

            if self.precision not in PRECISIONS:
                known = ", ".join(PRECISIONS)
                raise ConfigError(f"precision {self.precision!r} is not known; it is one of {known}")
        if self.asr != "auto":
            from vallex.inference.asr import ASR_CHOICES  # which takes torch along

            if self.asr not in ASR_CHOICES:
                raise ConfigError(f"asr {self.asr!r} is not known; it is one of {', '.join(ASR_CHOICES)}")


def is_local(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
