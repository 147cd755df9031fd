"""Loading checkpoints, and what is said when one cannot be loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import SPECIAL, WORDS, save_tiny_bert
from transformers import AutoModelForMaskedLM, LlamaConfig, LlamaForCausalLM

from boe import load_model
from boe.denoisers import UnsupportedModel
from boe.denoisers.placement import require_device


def test_a_saved_checkpoint_loads_with_its_tokenizer(tmp_path: Path) -> None:
    loaded = load_model(save_tiny_bert(tmp_path))
    assert loaded.source == str(tmp_path)
    assert loaded.denoiser.facts.mask_id == loaded.tokenizer.mask_token_id == 4
    ids = loaded.tokenizer("the [MASK] sat", return_tensors="pt").input_ids
    plain = AutoModelForMaskedLM.from_pretrained(tmp_path)
    torch.testing.assert_close(
        loaded.denoiser.model(input_ids=ids).logits, plain(input_ids=ids).logits
    )


def test_special_tokens_and_rows_without_a_token_are_never_written(tmp_path: Path) -> None:
    facts = load_model(save_tiny_bert(tmp_path, spare_rows=2)).denoiser.facts
    named = len(SPECIAL) + len(WORDS)
    assert facts.suppressed_ids == (0, 1, 2, 3, 4, named, named + 1)
    assert facts.vocab_size == named + 2


def test_the_dtype_can_be_chosen(tmp_path: Path) -> None:
    loaded = load_model(save_tiny_bert(tmp_path), dtype=torch.float64)
    assert loaded.denoiser.embedding_table.dtype == torch.float64


def test_a_tokenizer_without_a_mask_token_asks_for_mask_id(tmp_path: Path) -> None:
    save_tiny_bert(tmp_path, mask_token=False)
    with pytest.raises(UnsupportedModel, match="has no mask token; give mask_id"):
        load_model(tmp_path)
    assert load_model(tmp_path, mask_id=4).denoiser.facts.mask_id == 4


def test_a_folder_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        load_model(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    for place in (tmp_path / "nowhere", "./nowhere", "../nowhere", "~/nowhere", "not/here/nowhere"):
        with pytest.raises(FileNotFoundError, match="nowhere: there is no such directory"):
            load_model(place)
    save_tiny_bert(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"cannot load \./nowhere: there is no such"):
        load_model(tmp_path, tokenizer="./nowhere")


def test_a_file_in_place_of_its_folder_is_named(tmp_path: Path) -> None:
    save_tiny_bert(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"safetensors: it is a file; give the directory"):
        load_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "gpu", "cpu:x"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=rf"^device .*'{device}'"):
        load_model(tmp_path / "nowhere", device=device)


def test_a_gpu_too_many_is_refused_with_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert require_device("cuda:1") == "cuda:1"
    with pytest.raises(ValueError, match="'cuda:2' is not available: torch sees 2 GPUs"):
        require_device("cuda:2")


@pytest.mark.parametrize("dtype", ["bfloat16", torch.int8])
def test_a_dtype_that_is_none_of_torchs_floating_ones_is_refused(
    dtype: object, tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match=r"dtype must be a floating torch\.dtype or None, got"):
        load_model(tmp_path, dtype=dtype)


def test_damaged_weights_are_reported_in_one_line(tmp_path: Path) -> None:
    weights = save_tiny_bert(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(FileNotFoundError, match=r"cannot load .+: .+") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_damaged_config_is_reported_in_one_line(tmp_path: Path) -> None:
    (save_tiny_bert(tmp_path) / "config.json").write_text("{not json")
    with pytest.raises(FileNotFoundError, match="cannot load") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_weights_are_reported(tmp_path: Path) -> None:
    (save_tiny_bert(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="cannot load"):
        load_model(tmp_path)


def test_weights_that_do_not_belong_to_the_model_are_not_silently_replaced(tmp_path: Path) -> None:
    # transformers fills missing tensors with random numbers and only logs it.

    path = save_tiny_bert(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    kept = {k: v for k, v in tensors.items() if "layer.1" not in k}
    assert len(kept) < len(tensors)
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises((FileNotFoundError, UnsupportedModel), match=r"(?i)missing"):
        load_model(tmp_path)


def test_a_checkpoint_without_a_masked_lm_class_is_refused(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"
    with pytest.raises(UnsupportedModel, match=r"\(llama\) has no masked-LM class"):
        load_model(tmp_path)
