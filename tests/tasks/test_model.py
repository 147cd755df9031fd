"""The embedded denoiser: its shipped files, its tokenizer and its training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel

from boe.tasks.sudoku import model as sudoku_model
from boe.tasks.sudoku.model import (
    MASK_ID,
    WEIGHTS,
    build_model,
    build_tokenizer,
    train_sudoku,
    training_signatures,
)
from boe.tasks.sudoku.puzzles import solved_grids, symmetry_signature
from boe.training import TrainConfig


def test_the_shipped_checkpoint_is_small() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) <= 8 * 2**20


def test_the_shipped_files_can_be_read_by_everyone() -> None:
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in WEIGHTS.iterdir())


def test_the_shipped_checkpoint_loads_through_transformers_auto_classes() -> None:
    model = AutoModelForMaskedLM.from_pretrained(WEIGHTS)
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    assert tokenizer.mask_token_id == MASK_ID
    ids = tokenizer("5[MASK]3" + "[MASK]" * 78, return_tensors="pt").input_ids
    assert ids[0, :3].tolist() == [5, MASK_ID, 3]
    assert ids.shape == (1, 81)
    assert model(input_ids=ids).logits.shape == (1, 81, 11)


def test_the_shipped_model_knows_that_a_row_holds_no_digit_twice() -> None:
    model = AutoModelForMaskedLM.from_pretrained(WEIGHTS).eval()
    ids = torch.full((1, 81), MASK_ID)
    ids[0, :8] = torch.tensor([4, 7, 1, 9, 2, 8, 5, 3])
    with torch.no_grad():
        p = model(input_ids=ids).logits[0, 8].softmax(-1)
    assert int(p.argmax()) == 6
    assert float(p[6]) > 0.9


def test_the_tokenizer_reads_digits_one_by_one_and_back(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    assert tokenizer("123[MASK]9").input_ids == [1, 2, 3, MASK_ID, 9]
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("123[MASK]9").input_ids == [1, 2, 3, MASK_ID, 9]
    assert (again.pad_token_id, again.model_max_length) == (0, 81)


def test_building_is_fixed_by_the_seed_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    first = build_model(1)
    assert torch.equal(torch.rand(2), expected)
    again, other = build_model(1), build_model(2)
    for (name, a), b in zip(first.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    key = "roberta_prelayernorm.embeddings.word_embeddings.weight"
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])


def test_training_saves_a_checkpoint_and_the_signatures_of_its_grids(tmp_path: Path) -> None:
    seen: list[tuple[int, float]] = []
    config = TrainConfig(steps=2, batch_size=4, warmup_steps=1, precision="fp32")
    train_sudoku(config, tmp_path, lambda *step: seen.append(step), grids=5)
    assert [number for number, _ in seen] == [1, 2]
    grids = solved_grids(5, sudoku_model.TRAINING_GRID_SEED).tolist()
    assert training_signatures(tmp_path) == {symmetry_signature(tuple(g)) for g in grids}
    assert AutoModelForMaskedLM.from_pretrained(tmp_path).config.vocab_size == 11
    assert AutoTokenizer.from_pretrained(tmp_path).mask_token_id == MASK_ID


def test_unmasked_cells_are_not_computed_behind_the_last_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []

    def watched(seed: int) -> PreTrainedModel:
        model = build_model(seed)
        head = model.lm_head
        head.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[1]))
        return model

    monkeypatch.setattr(sudoku_model, "build_model", watched)
    config = TrainConfig(steps=2, batch_size=4, warmup_steps=1, precision="fp32")
    train_sudoku(config, tmp_path, grids=5)
    assert len(rows) == 2
    assert all(0 < count < 4 * 81 for count in rows)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_training_lowers_the_loss(tmp_path: Path, precision: str) -> None:
    losses: list[float] = []
    config = TrainConfig(steps=20, batch_size=4, warmup_steps=3, precision=precision)
    train_sudoku(config, tmp_path, lambda step, loss: losses.append(loss), grids=3)
    assert sum(losses[-5:]) / 5 < sum(losses[:3]) / 3 - 0.1


def test_an_untrained_model_looks_along_rows_columns_and_boxes() -> None:
    model = sudoku_model.build_model(0)
    model.set_attn_implementation("eager")
    canvas = torch.full((1, 81), sudoku_model.MASK_ID)
    with torch.no_grad():
        first = model(input_ids=canvas, output_attentions=True).attentions[0][0]
    cells = torch.arange(81)
    units = (cells // 9, cells % 9, cells // 27 * 3 + cells % 9 // 3)
    for head, attention in enumerate(first):
        unit = units[head % 3]
        inside = attention.masked_fill(unit.unsqueeze(0) != unit.unsqueeze(1), 0.0).sum(dim=1)
        assert float(inside.mean()) > 0.5  # a ninth, if it looked everywhere alike
