"""What each of two ranks reads of a checkpoint, and holds. Run by ``test_reading_in_parts.py``.

``python reading_ranks.py FOLDER``, as ``two_ranks.py``; FOLDER holds ``bert`` and ``eurobert``.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
import torch.distributed as dist
from published_checkpoints import (
    CONFIGS,
    MASK,
    make_exact,
    random_state,
    save_words,
    write_checkpoint,
)
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from two_ranks import measured

from boe import load_model
from boe.denoisers import UnsupportedModel
from boe.denoisers.checkpoint import Checkpoint
from boe.denoisers.loading import build_published
from boe.denoisers.published import Blueprint, blueprint_of
from boe.denoisers.tensor_parallel import lay_out, parallelise
from boe.denoisers.weights import KeyMap, Piece, Pieces, load_weights
from boe.evaluate.fingerprint import fingerprint

# Dream's grouped heads and biases; LLaDA's renamed parameters; SDAR with its head tied.
KINDS: dict[str, tuple[str, dict[str, Any], int]] = {
    "llada, 3 shards": ("llada", {}, 3),
    "dream, 1 file": ("dream", {}, 1),
    "sdar, tied": ("sdar", {"tie_word_embeddings": True}, 3),
}


class Watched:
    """``safetensors.safe_open`` that counts the bytes that are asked for."""

    read = 0

    def __init__(self, *given: Any, **options: Any) -> None:
        self.file = _safe_open(*given, **options)

    def __enter__(self) -> Watched:
        self.file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.__exit__(*error)

    def keys(self) -> list[str]:
        return self.file.keys()

    def get_tensor(self, name: str) -> Tensor:
        return _counted(self.file.get_tensor(name))

    def get_slice(self, name: str) -> Any:
        return WatchedSlice(self.file.get_slice(name))


class WatchedSlice:
    def __init__(self, stored: Any) -> None:
        self.get_shape, self.get_dtype = stored.get_shape, stored.get_dtype
        self.stored = stored

    def __getitem__(self, index: Any) -> Tensor:
        return _counted(self.stored[index])


_safe_open = safetensors.safe_open


def _counted(tensor: Tensor) -> Tensor:
    Watched.read += tensor.numel() * tensor.element_size()
    return tensor


@contextmanager
def watching() -> Iterator[None]:
    Watched.read = 0
    safetensors.safe_open = Watched
    try:
        yield
    finally:
        safetensors.safe_open = _safe_open


def blueprint_for(folder: Path) -> tuple[Checkpoint, Blueprint]:
    checkpoint = Checkpoint.open(folder)
    blueprint = blueprint_of(checkpoint.config)
    assert blueprint is not None
    return checkpoint, blueprint


def held(model: Any) -> int:
    """Bytes of memory behind a model's parameters, each once."""
    own = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in own}
    return sum(storages.values())


def read(kind: str, folder: Path, mesh: DeviceMesh) -> dict[str, Any]:
    """A checkpoint in bfloat16, read in parts, beside the whole of it."""
    name, changes, shards = KINDS[kind]
    config = {**CONFIGS[name], **changes}
    state = random_state(config, torch.bfloat16)
    write_checkpoint(folder, config, state, shards)
    whole = build_published(*blueprint_for(folder), MASK)
    opened, blueprint = blueprint_for(folder)
    with watching():
        ours = build_published(opened, blueprint, MASK, mesh=mesh)
    parameters = dict(ours.model.named_parameters())
    truth = dict(whole.model.named_parameters())
    split = {
        name: p.placements[0].dim
        for name, p in parameters.items()
        if isinstance(p, DTensor) and p.placements[0].is_shard()
    }
    cut = sum(truth[name].numel() * 2 for name in split)
    return {
        "split": split,
        "read": Watched.read,
        "held": held(ours.model),
        # Half of what is split, and all of the rest.
        "due": held(whole.model) - cut // 2,
        "all": held(whole.model),
        "same names": list(parameters) == list(truth),
        "same bits": all(
            torch.equal(p.full_tensor() if isinstance(p, DTensor) else p, truth[name])
            for name, p in parameters.items()
        ),
        "dtypes": sorted({str(p.dtype) for p in parameters.values()}),
        "same fingerprint": fingerprint(ours) == fingerprint(whole),
    }


def masked_lm(folder: Path, mesh: DeviceMesh) -> dict[str, Any]:
    """Errors of a masked LM that transformers reads, with those of float32 as the yardstick."""
    found = {}
    places: dict[str, dict[str, Any]] = {
        "whole": {},
        "narrow": {"dtype": torch.float32},
        "shared": {"mesh": mesh},
    }
    sizes = {}
    for kind, options in places.items():
        with watching():
            denoiser = load_model(folder, mask_id=MASK, **options).denoiser
        model: Any = denoiser.model  # type: ignore[attr-defined]
        sizes[kind] = held(model)
        cut = sum(p.numel() * 8 for p in model.parameters() if isinstance(p, DTensor))
        make_exact(model, {})
        found[kind] = measured(denoiser)
    truth = found["whole"]
    return {
        "read": Watched.read,
        "held": sizes["shared"],
        "due": sizes["whole"] - cut // 2,
        "all": sizes["whole"],
        "errors": {key: float((found["shared"][key] - truth[key]).norm()) for key in truth},
        "float32": {
            key: float((found["narrow"][key].double() - truth[key]).norm()) for key in truth
        },
        "sizes": {key: float(truth[key].norm()) for key in truth},
    }


def refusals(folder: Path, ready: Path, mesh: DeviceMesh, square: DeviceMesh) -> dict[str, Any]:
    """What is said where a model cannot be read in parts, and the bytes read by then.

    Args:
        ready: where a tiny BERT and EuroBERT are, from :mod:`tiny_checkpoints`.
    """

    def checkpoint(name: str, place: str, **changes: object) -> Path:
        config = {**CONFIGS[name], **changes}
        save_words(write_checkpoint(folder / place, config, random_state(config), shards=1))
        return folder / place

    llada = checkpoint("llada", "llada")
    # A weight too few, a layer too many, an MLP of another width.
    misfit = checkpoint("llada", "misfit")
    state = random_state({**CONFIGS["llada"], "n_layers": 4})
    del state["model.transformer.blocks.3.ff_out.weight"]
    del state["model.transformer.blocks.2.attn_out.weight"]
    write_checkpoint(misfit, {**CONFIGS["llada"], "mlp_hidden_size": 24}, state, shards=1)
    pickled = checkpoint("llada", "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save(random_state(CONFIGS["llada"]), pickled / "pytorch_model.bin")
    bert, remote, quantised = ready / "bert", folder / "remote", folder / "quantised"
    shutil.copytree(bert, remote)
    content = json.loads((remote / "config.json").read_text())
    content |= {"model_type": "own", "auto_map": {"AutoModelForMaskedLM": "own.Own"}}
    (remote / "config.json").write_text(json.dumps(content))
    shutil.copytree(ready / "eurobert", quantised)
    content = json.loads((quantised / "config.json").read_text())
    content["quantization_config"] = {"quant_method": "fp8"}
    (quantised / "config.json").write_text(json.dumps(content))
    misshaped, bins = folder / "misshaped", folder / "bins"
    for place in (misshaped, bins):
        shutil.copytree(ready / "eurobert", place)
    content = json.loads((misshaped / "config.json").read_text())
    (misshaped / "config.json").write_text(json.dumps({**content, "intermediate_size": 24}))
    (bins / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, bins / "pytorch_model.bin")
    calls: dict[str, Callable[[], Any]] = {
        "device": lambda: load_model(llada, mesh=mesh, device="cpu"),
        "square": lambda: load_model(llada, mesh=square),
        "misfit": lambda: load_model(misfit, mesh=mesh),
        "misfit alone": lambda: load_model(misfit),
        "pickled": lambda: load_model(pickled, mesh=mesh, allow_pickle=True),
        "remote": lambda: load_model(remote, mesh=mesh, trust_remote_code=True),
        "quantised": lambda: load_model(quantised, mesh=mesh, mask_id=MASK),
        "bert": lambda: load_model(bert, mesh=mesh),
        "eurobert of another shape": lambda: load_model(misshaped, mesh=mesh, mask_id=MASK),
        "eurobert, pickled": lambda: load_model(bins, mesh=mesh, mask_id=MASK, allow_pickle=True),
        "mdlm": lambda: load_model(
            checkpoint("mdlm", "mdlm"), mesh=mesh, tokenizer=folder / "llada"
        ),
        "experts": lambda: load_model(checkpoint("llada2", "llada2"), mesh=mesh),
        "heads": lambda: load_model(checkpoint("dream", "heads", num_key_value_heads=1), mesh=mesh),
        "columns": lambda: load_model(checkpoint("llada", "odd", mlp_hidden_size=49), mesh=mesh),
        "pieces": lambda: in_pieces(llada, mesh),
        "twice": lambda: parallelise(build_published(*blueprint_for(llada), MASK, mesh=mesh), mesh),
    }
    found = {}
    for name, call in calls.items():
        with watching():
            try:
                call()
                found[name] = "nothing"
            except (FileNotFoundError, UnsupportedModel, ValueError) as error:
                said = str(error).replace(f"{folder}/", "").replace(f"{ready}/", "")
                found[name] = [type(error).__name__, said, Watched.read if name != "twice" else 0]
    return found


def in_pieces(folder: Path, mesh: DeviceMesh) -> None:
    """Two stored tensors become one parameter that is laid out."""
    opened, blueprint = blueprint_for(folder)
    model = blueprint.build()
    lay_out(model, mesh)
    names = dict(blueprint.keys.names)
    stored = "model.transformer.blocks.0.q_proj.weight"
    pieces = {stored: Pieces((32, 32), (Piece(names.pop(stored)),))}
    load_weights(opened, model, KeyMap(names, pieces))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    square = init_device_mesh("cpu", (1, 2), mesh_dim_names=("replica", "part"))
    own = folder / f"of{dist.get_rank()}"
    found = {
        "read": {kind: read(kind, own / str(number), mesh) for number, kind in enumerate(KINDS)},
        "masked LM": masked_lm(folder / "eurobert", mesh),
        "refusals": refusals(own, folder, mesh, square),
    }
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(found, indent=1))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
