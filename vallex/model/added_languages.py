"""Teaching a model one language more: a row in the language embedding of each half, and its name.

The new row begins as the row of a language that the model knows, so that it is spoken with that accent from
the first step; a random row would be noise beside rows that were trained. The rows before it stay as they
are, for to reuse one is to lose its language.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from vallex.errors import CheckpointError
from vallex.languages import Language, is_language_code
from vallex.model.network import VALLE

DEFAULT_SOURCE = Language.EN


def extend_languages(model: VALLE, added: Sequence[str] | Mapping[str, str]) -> None:
    """Extends both language embeddings of a model in place, and its `config.languages` with them.

    added: codes of the new languages, each with the code of the one that its row is copied from (one that
        was added before it, too); from a plain list, all are copied from "en"
    errors: CheckpointError, with every code that is known already or not one, and every unknown source
    """
    if not isinstance(added, Mapping):
        added = dict.fromkeys([added] if isinstance(added, str) else added, str(DEFAULT_SOURCE))
    languages, faults = model.config.languages, []
    for code, source in added.items():
        if not is_language_code(code):
            faults.append(f"{code!r} is not the code of a language: two small letters, as in 'ko'")
        elif code in languages:
            faults.append(f"{code} is there already")
        elif source not in languages:
            faults.append(f"{code} cannot begin as {source}: it is not one of {', '.join(languages)}")
        else:
            languages = (*languages, code)
    if faults:
        raise CheckpointError(f"languages to add to {', '.join(model.config.languages)}: {'; '.join(faults)}")
    rows = list(range(len(model.config.languages)))
    for source in added.values():
        rows.append(rows[languages.index(source)])
    for half in filter(None, (model.ar, model.nar)):
        embedding = half.language_embedding
        weight = embedding.weight.detach()[rows]
        embedding.weight = torch.nn.Parameter(weight, requires_grad=embedding.weight.requires_grad)
        embedding.num_embeddings = len(rows)
    model.config = replace(model.config, languages=languages)
    known = model.provenance.get("added_languages", {})
    model.provenance = {**model.provenance, "added_languages": {**known, **added}}
