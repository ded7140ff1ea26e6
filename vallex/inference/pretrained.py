"""Models of the transformers library out of a folder as the hub has it: offline, whole, or a clear error.

transformers fills in what a file lacks with random numbers and says so in a warning; here it is an error.
"""

from pathlib import Path

from vallex.errors import WeightsError


def load_pretrained(folder: Path, what: str, component: str, model_class: type, *readers: type) -> tuple:
    """The model in evaluation mode, and what goes with it: a feature extractor, a tokenizer.

    what: the model's name in errors; component: its name for `vallex download --only`
    errors: WeightsError where a file cannot be read, or tensors are missing
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    again = f"fetch it again: vallex download --only {component}"
    try:
        model, info = model_class.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        read = [reader.from_pretrained(folder, local_files_only=True) for reader in readers]
    except Exception as error:  # a damaged file raises what its reader likes
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise WeightsError(f"{folder}: cannot be loaded as {what} ({reason}); {again}") from error
    if missing := sorted(info["missing_keys"]):
        raise WeightsError(f"{folder}: lacks {len(missing)} tensors ({missing[0]}, …); {again}")
    return (model.eval(), *read)
