"""vallex: the released multilingual VALL-E X model as a library, with both halves: training and synthesis.

Names load on first use, so that `import vallex` costs nothing and pulls in no torch.
"""

import importlib

__version__ = "0.1.0"

_EXPORTS = {
    "load_model": "vallex.model.checkpoint",
    "save_model": "vallex.model.checkpoint",
    "VALLE": "vallex.model.network",
    "ModelConfig": "vallex.model.config",
    "Language": "vallex.languages",
    "VallexError": "vallex.errors",
}

__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'vallex' has no attribute {name!r}")
