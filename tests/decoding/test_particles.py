"""Particles: resampling, what it costs, and what it tends to."""

from __future__ import annotations

import pytest
import torch
from fake_denoiser import MASK, FakeDenoiser, JointDenoiser, table_of
from torch import Tensor

from boe import Confidence, Item, Random, Strategy, Tokens, generate
from boe.decoding.decoder import Decoder
from boe.decoding.rows import Row
from boe.decoding.smc import Cloud, resample
from boe.samplers import SMC, Ancestral, ParticleGibbs


def blank(length: int) -> Tensor:
    return torch.full((length,), MASK)


def joint(seed: int = 0, length: int = 3) -> JointDenoiser:
    generator = torch.Generator().manual_seed(seed)
    return JointDenoiser(torch.rand((2,) * length, generator=generator) + 0.1)


def likelihood(item: Item, denoiser: FakeDenoiser) -> float:
    """Σ ln p of the tokens along the trajectory."""
    table = denoiser.table[:, 1:].log_softmax(dim=1)
    return sum(
        float(table[place, token - 1])
        for record in item.trajectory
        for place, token in zip(record.revealed.tolist(), record.tokens.tolist(), strict=True)
    )


# --- SMC ------------------------------------------------------------------------------


def test_without_resampling_the_answer_is_the_likeliest_of_independent_decodes() -> None:
    denoiser = FakeDenoiser(table_of([0.5] * 8))
    options = {"temperature": 1.0, "seed": 2, "trajectory": True}
    ours = generate(denoiser, blank(8), "random+smc:particles=5,every=3,ess=0", **options).items[0]
    alone = generate(
        denoiser, [blank(8)] * 5, "random", item_ids=[f"0/{k}" for k in range(5)], **options
    )
    best = max(alone.items, key=lambda item: likelihood(item, denoiser))
    assert torch.equal(ours.ids, best.ids)
    assert len({likelihood(item, denoiser) for item in alone.items}) > 1
    assert ours.account.nfe_forward == alone.total.nfe_forward
    assert ours.account.steps == 8


@pytest.mark.parametrize(
    ("log_weights", "options", "resampled"),
    [
        ([0.0, 0.0, 0.0, 0.0], {"ess": 0.99}, False),
        ([0.0, 0.0, -50.0, -50.0], {"ess": 0.49}, False),  # two particles count, of four
        ([0.0, 0.0, -50.0, -50.0], {"ess": 0.51}, True),
        ([0.0, 0.0, -50.0, -50.0], {"ess": 0.51, "carry": False}, True),
        ([-50.0, -50.0, 3.0, -50.0], {}, True),
    ],
)
def test_particles_are_drawn_anew_when_few_of_them_count(
    log_weights: list[float], options: dict, resampled: bool
) -> None:
    rows = [
        Row(Item(torch.tensor([k])), 0, str(k), torch.tensor([False]), 1, [], index=k)
        for k in range(4)
    ]
    cloud = Cloud("0", rows, list(log_weights))
    rule = SMC(**options)
    decoder = Decoder(None, Strategy.of(Random()), Tokens(1.0), seed=0)
    resample(decoder, cloud, rule)
    ancestors = [int(row.item.ids) for row in rows]
    assert [row.index for row in rows] == ancestors, "the whole state goes along"
    assert [row.key for row in rows] == ["0", "1", "2", "3"], "draws stay their own"
    if not resampled:
        assert ancestors == [0, 1, 2, 3]
        assert cloud.log_weights == log_weights
        return
    alive = {k for k, weight in enumerate(log_weights) if weight > -10}
    assert set(ancestors) <= alive
    carried = [log_weights[k] for k in ancestors]
    mean = sum(carried) / 4 if rule.carry else 0.0
    expected = [w - mean for w in carried] if rule.carry else [0.0] * 4
    assert cloud.log_weights == pytest.approx(expected)


@pytest.mark.parametrize("every", [1, 2])
def test_weights_add_up_the_log_probabilities_of_what_was_revealed(
    every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = FakeDenoiser(table_of([0.6] * 4))
    barriers: list[list[float]] = []

    def note(decoder: Decoder, cloud: Cloud, rule: SMC) -> None:
        expected = [likelihood(row.item, denoiser) for row in cloud.particles]
        assert cloud.log_weights == pytest.approx(expected)
        barriers.append(list(cloud.log_weights))

    monkeypatch.setattr("boe.decoding.smc.resample", note)
    spec = f"random+smc:particles=8,every={every}"
    generate(denoiser, blank(4), spec, temperature=1.0, trajectory=True)
    assert len(barriers) == 4 // every - 1, "the last barrier is the end"
    assert len(set(barriers[0])) > 1


def test_blocks_end_in_a_resampling() -> None:
    denoiser = FakeDenoiser(table_of([0.5] * 6))
    item = generate(
        denoiser,
        blank(6),
        "confidence+smc:ess=1",
        block_length=2,
        temperature=1.0,
        trajectory=True,
    ).items[0]
    assert len(item.trajectory) == 6
    assert item.account.nfe_forward == 4 * 6


def test_certainty_prefers_particles_whose_masks_are_less_uncertain() -> None:
    # Writing 1 at position 0 settles the others, writing 2 leaves them open.
    table = torch.zeros((2,) * 4)
    table[0, 0, 0, 0] = 4.0
    table[1] = 0.5
    denoiser = JointDenoiser(table)
    canvases = [blank(4)] * 60
    plain = generate(denoiser, canvases, "confidence", temperature=1.0, seed=2)
    ours = generate(
        denoiser,
        canvases,
        "confidence+smc:potential=certainty,temperature=0.05,every=1,ess=1,particles=8",
        temperature=1.0,
        seed=2,
    )
    settled = [sum(int(s[0]) == 1 for s in g.sequences) for g in (plain, ours)]
    assert settled[0] < 55
    assert settled[1] == 60


def test_the_forwards_of_the_certainty_serve_the_next_step() -> None:
    denoiser = FakeDenoiser(table_of([0.5] * 6))
    account = generate(
        denoiser,
        blank(6),
        "confidence+smc:potential=certainty,every=2,particles=3",
        temperature=1.0,
    ).total
    assert account.nfe_forward == 3 * 6
    assert sum(canvas.batch for canvas in denoiser.canvases) == 18


# --- particle Gibbs -------------------------------------------------------------------


def reward(ids: Tensor) -> Tensor:
    return (ids == 2).sum(dim=1).double()


@pytest.mark.parametrize(("particles", "sweeps"), [(24, 1), (5, 4)])
def test_answers_are_distributed_as_the_model_times_the_exponential_reward(
    particles: int, sweeps: int
) -> None:
    denoiser, count, beta = joint(), 200, 0.8
    strategy = Strategy(
        Random(),
        tokens=Tokens(1.0),
        particles=ParticleGibbs(reward, particles, sweeps, every=1, beta=beta),
    )
    result = generate(denoiser, [blank(3)] * count, strategy, seed=1)
    final = torch.stack(result.sequences)
    code = ((final - 1) * torch.tensor([4, 2, 1])).sum(dim=1)
    weights = denoiser.probabilities * (reward(denoiser.sequences) / beta).exp()
    expected = count * weights / weights.sum()
    chi_square = float(((code.bincount(minlength=8) - expected) ** 2 / expected).sum())
    assert chi_square < 24.3  # 7 degrees of freedom: 0.1 % of seeds would fail
    unweighted = count * denoiser.probabilities
    assert float(((unweighted - expected) ** 2 / expected).sum()) > 50, "the reward matters"


def test_a_kept_trajectory_takes_part_in_the_next_sweep() -> None:
    # One barrier, at the end, and a cold β: each sweep keeps its best sequence, so the
    # reward can only grow.
    denoiser = FakeDenoiser(torch.zeros(10, 4, dtype=torch.float64))
    grew = 0
    for seed in range(4):
        best = []
        for sweeps in (1, 2, 4):
            rule = ParticleGibbs(reward, particles=3, sweeps=sweeps, every=50, beta=1e-6)
            strategy = Strategy(Random(), tokens=Tokens(1.0), particles=rule)
            ids = generate(denoiser, blank(10), strategy, seed=seed).sequences[0]
            best.append(float(reward(ids.unsqueeze(0))))
        assert best == sorted(best)
        grew += best[-1] > best[0]
    assert grew > 0


def test_the_kept_trajectory_costs_nothing_again() -> None:
    denoiser = FakeDenoiser(table_of([0.5] * 8))
    for sweeps, least in ((1, 3 * 8), (3, 3 * 8 + 2 * 2 * 8)):
        rule = ParticleGibbs(reward, particles=3, sweeps=sweeps, every=100)
        strategy = Strategy(Random(), tokens=Tokens(1.0), particles=rule)
        account = generate(denoiser, blank(8), strategy).total
        assert account.nfe_forward == least
        assert account.steps == 8 * sweeps


def test_completions_are_argmax_alone_and_draws_together() -> None:
    seen: list[Tensor] = []

    def record(ids: Tensor) -> Tensor:
        seen.append(ids.clone())
        return torch.zeros(len(ids))

    denoiser = FakeDenoiser(table_of([0.5] * 6))
    for completions in (1, 4):
        seen.clear()
        rule = ParticleGibbs(record, particles=2, sweeps=1, every=3, completions=completions)
        generate(denoiser, blank(6), Strategy(Ancestral(steps=6), particles=rule), seed=3)
        assert all(MASK not in ids for ids in seen)
        assert all(len(ids) == 2 * completions for ids in seen)
    one = ParticleGibbs(record, particles=2, sweeps=1, every=1)
    seen.clear()
    generate(denoiser, blank(6), Strategy(Confidence(), tokens=Tokens(1e-6), particles=one))
    assert all(ids.tolist() == [[1, 2, 3, 4, 5, 1]] * 2 for ids in seen)


def test_the_best_answer_is_the_best_of_all_sweeps() -> None:
    denoiser = FakeDenoiser(torch.zeros(6, 4, dtype=torch.float64))
    completed: list[float] = []

    def record(ids: Tensor) -> Tensor:
        completed.extend(reward(ids).tolist())
        return reward(ids)

    rule = ParticleGibbs(record, particles=4, sweeps=3, every=100, beta=5.0, answer="best")
    strategy = Strategy(Random(), tokens=Tokens(1.0), particles=rule)
    ids = generate(denoiser, blank(6), strategy, seed=4).sequences[0]
    assert float(reward(ids.unsqueeze(0))) == max(completed)


# --- the rest -------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["mdlm+smc:every=1,ess=1", "gibbs"])
def test_a_sequence_without_masks_passes_through(spec: str) -> None:
    strategy = spec
    if spec == "gibbs":
        strategy = Strategy(Ancestral(), particles=ParticleGibbs(reward))
    denoiser = FakeDenoiser(table_of([0.5] * 4))
    whole = torch.tensor([1, 2, 3])
    result = generate(denoiser, [blank(4), whole], strategy)
    assert result.sequences[1].tolist() == [1, 2, 3]
    assert result.items[1].account.nfe_forward == 0


def test_steps_of_the_first_particle_alone_are_told() -> None:
    told: list[int] = []
    generate(
        FakeDenoiser(table_of([0.5] * 4)),
        [blank(4), blank(2)],
        "random+smc:every=2,particles=3",
        temperature=1.0,
        on_step=lambda number, item: told.append(number),
    )
    assert sorted(told) == [0] * 4 + [1] * 2


def test_stop_patterns_end_particles() -> None:
    denoiser = FakeDenoiser(table_of([1 - 1e-12] * 6))
    item = generate(
        denoiser, blank(6), "confidence+smc:every=1,particles=2", temperature=1.0, stop=[[3]]
    ).items[0]
    assert (item.end, item.account.steps, item.account.nfe_forward) == (3, 3, 6)


@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        ("confidence+smc", {"temperature": 1.0}, "give block_length, or every"),
        ("confidence+smc:every=2", {}, "particles of confidence at temperature 0 would all be"),
        (
            Strategy(Ancestral(), particles=ParticleGibbs(lambda x: x, every=1)),
            {},
            r"reward_fn must return a tensor \(4,\), got \(4, 3\)",
        ),
        (
            Strategy(Ancestral(), particles=ParticleGibbs(lambda x: 1.0, every=1)),
            {},
            r"reward_fn must return a tensor \(4,\), got float",
        ),
        (
            Strategy(
                Ancestral(),
                particles=ParticleGibbs(lambda x: torch.full((len(x),), torch.nan), every=1),
            ),
            {},
            "reward_fn must return finite rewards",
        ),
    ],
)
def test_what_cannot_work_is_refused(strategy, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(FakeDenoiser(table_of([0.5] * 3)), blank(3), strategy, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"particles": 1}, "particles must be at least 2, got 1"),
        ({"sweeps": 0}, "sweeps must be at least 1, got 0"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"completions": 0}, "completions must be at least 1, got 0"),
        ({"beta": 0.0}, "beta must be finite and above 0, got 0.0"),
        ({"answer": "worst"}, "answer must be one of sample, best, got 'worst'"),
        ({"reward_fn": None}, "reward_fn must be given"),
    ],
)
def test_particle_gibbs_options_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParticleGibbs(**{"reward_fn": reward, **options})
