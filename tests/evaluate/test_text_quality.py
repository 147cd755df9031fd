"""Measures of what was written on the whole."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace

import pytest
import torch
from results_of_fakes import LetterScorer, fake_comparison, prose_comparison

from boe.evaluate import Setting, comparison_from_json
from boe.evaluate import text_quality as module
from boe.evaluate.record import Record
from boe.evaluate.tables import text_table
from boe.evaluate.text_quality import mauve_of, require_mauve, text_quality, text_results


def record(sampler: str, item: int, answer: str) -> Record:
    return Record(item, sampler, Setting(1), 0, True, answer, 1, 1.0, 0.0, 1.0, 0.1)


def test_perplexity_is_over_all_tokens_and_entropy_over_texts() -> None:
    quality = text_quality(["aaaa", "bb"], LetterScorer())
    assert quality.perplexity == pytest.approx(math.exp((4 + 6) / 6))
    assert quality.unigram_entropy == 1.0
    assert (quality.texts, quality.distinct, quality.mauve) == (2, 1.0, None)


def test_intervals_hold_the_values_and_shrink_to_nothing_where_texts_agree() -> None:
    mixed = text_quality(["aa", "ab", "bb", "abc"] * 5, LetterScorer())
    low, high = mixed.perplexity_interval
    assert low < mixed.perplexity < high
    least, most = mixed.unigram_entropy_interval
    assert least < mixed.unigram_entropy < most
    same = text_quality(["ab"] * 20, LetterScorer())
    assert same.perplexity_interval == pytest.approx((math.exp(2), math.exp(2)))
    assert same.distinct == 1 / 20


def test_every_sampler_and_setting_is_measured_over_its_own_texts() -> None:
    records = [record("one", 0, "aa"), record("two", 0, "bb"), record("one", 1, "ab")]
    results = text_results(records, LetterScorer(), ["ab"], ["ba", "bb", "bc"], mauve=False)
    assert [(row.sampler, row.quality.texts) for row in results.rows] == [("one", 2), ("two", 1)]
    assert results.rows[0].quality.perplexity == pytest.approx(math.exp(6 / 4))
    assert results.real.texts == 2, "as many as a sampler wrote"
    assert all(row.quality.mauve is None for row in results.rows)


def test_real_texts_are_taken_from_all_over_and_not_from_one_chapter() -> None:
    # Beside each other they are alike: the first 100 of 1000 are no sample of them.
    others = ["a"] * 500 + ["b"] * 500
    records = [record("one", k, "ab") for k in range(100)]
    real = text_results(records, LetterScorer(), ["ab"], others, mauve=False).real
    assert math.exp(1.5) < real.perplexity < math.exp(2.5)


def test_results_are_stored_with_the_comparison_and_read_back() -> None:
    records = [record("one", k, text) for k, text in enumerate(("aa", "ab"))]
    results = text_results(records, LetterScorer(), ["ab"], ["ba"], mauve=False)
    whole = replace(fake_comparison(), text=results)
    assert comparison_from_json(whole.as_json()).text == results
    assert "text" not in fake_comparison().as_json()


def test_the_table_of_texts_has_what_each_cost_and_real_text_first() -> None:
    table = text_table(prose_comparison())
    assert table.columns[:4] == ("texts by", "setting", "cost", "texts")
    assert table.rows[0][:4] == ("real text", "", "–", "6")
    costs = {(s.sampler, s.setting): s.flop_equiv for s in prose_comparison().summaries}
    assert table.rows[1][:4] == ("`confidence`", "1 per step", "4.0", "6")
    assert [row[2] for row in table.rows[1:]] == [f"{cost:.1f}" for cost in costs.values()]
    with pytest.raises(ValueError, match="task fake writes no prose"):
        text_table(fake_comparison())


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="texts must hold at least one, got none"):
        text_quality([], LetterScorer())


# --- MAUVE --------------------------------------------------------------------------------


def test_without_mauve_text_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install '\.\[text\]'"):
        require_mauve()
    with pytest.raises(ModuleNotFoundError, match="--no-mauve"):
        text_results([record("one", 0, "a")], LetterScorer(), ["a"], ["b"])
    with pytest.raises(ModuleNotFoundError, match="mauve-text"):
        mauve_of(torch.zeros(2, 2), torch.zeros(2, 2))


@pytest.mark.skipif(importlib.util.find_spec("mauve") is None, reason="mauve-text is optional")
def test_mauve_is_high_for_equal_distributions_and_low_for_distant_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 200, 4, generator=generator)
    near, far = mauve_of(first, second), mauve_of(first, second + 8.0)
    assert near > 0.9
    assert far < 0.1
    assert mauve_of(first, second) == near, "the clustering is seeded"
