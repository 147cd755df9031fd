"""Ancestral samplers and ReMDM, against the Markov chains that their papers define.

The chain is enumerated here state by state, from the weights of the original categorical
draws (the mask is one of the outcomes, negative weights count as 0); the sampler draws
"whether" and "what" apart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from fake_denoiser import MASK, FakeDenoiser, JointDenoiser, table_of
from torch import Tensor

from boe import generate, sampler_from
from boe.samplers import DFM, Strategy

LENGTH, VOCABULARY, STEPS, END = 3, 3, 4, 1e-5
STATES = list(itertools.product(range(VOCABULARY), repeat=LENGTH))


def joint() -> JointDenoiser:
    generator = torch.Generator().manual_seed(4)
    return JointDenoiser(torch.rand((VOCABULARY - 1,) * LENGTH, generator=generator) ** 2)


Kernel = Callable[[Tensor, int], Tensor]
"""Outcome weights (V,) at one position, from p_x0 (V,) there and the id it holds."""


def chain(denoiser: JointDenoiser, kernels: list[Kernel], last: str) -> Tensor:
    """The distribution over final sequences, (V,)*L flattened, from all masks."""
    belief = torch.zeros(len(STATES), dtype=torch.float64)
    belief[STATES.index((MASK,) * LENGTH)] = 1.0
    predictions = denoiser.conditionals(torch.tensor(STATES))

    def step(weights_of: Callable[[Tensor, int], Tensor]) -> Tensor:
        after = torch.zeros_like(belief)
        for state, p, mass in zip(STATES, predictions, belief, strict=True):
            if mass == 0:
                continue
            weights = [weights_of(p[j], state[j]).clamp_min(0.0) for j in range(LENGTH)]
            chances = [w / w.sum() for w in weights]
            for number, target in enumerate(STATES):
                chance = math.prod(float(chances[j][target[j]]) for j in range(LENGTH))
                after[number] += mass * chance
        return after

    for kernel in kernels:
        belief = step(kernel)

    def finish(p: Tensor, held: int) -> Tensor:
        kept = torch.nn.functional.one_hot(torch.tensor(held), VOCABULARY).double()
        best = torch.nn.functional.one_hot(p.argmax(), VOCABULARY).double()
        return kept if held != MASK else (best if last == "argmax" else p)

    return step(finish)


def remdm_kernel(sigma: float, alpha_t: float, alpha_s: float) -> Kernel:
    """K(σ) as ReMDM's code builds it: the mask's weight beside the tokens'."""

    def weights(p: Tensor, held: int) -> Tensor:
        out = torch.zeros(VOCABULARY, dtype=torch.float64)
        if held != MASK:
            out[held], out[MASK] = 1 - sigma, sigma
            return out
        out += p * (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
        out[MASK] = (1 - alpha_s - sigma * alpha_t) / (1 - alpha_t)
        return out

    return weights


def grid() -> list[tuple[float, float]]:
    times = torch.linspace(1, END, STEPS + 1, dtype=torch.float64).tolist()
    return list(itertools.pairwise(times))


def mdlm() -> list[Kernel]:
    return [remdm_kernel(0.0, 1 - t, 1 - s) for t, s in grid()]


def cap(eta: float) -> list[Kernel]:
    return [remdm_kernel(min(eta, s / (1 - t)) if t < 1 else eta, 1 - t, 1 - s) for t, s in grid()]


def rescale(eta: float) -> list[Kernel]:
    return [
        remdm_kernel(eta * (min(1.0, s / (1 - t)) if t < 1 else 1.0), 1 - t, 1 - s)
        for t, s in grid()
    ]


def forward_backward() -> list[Kernel]:
    return [remdm_kernel((t - s) / (1 - t) if t < 1 else 1.0, 1 - t, 1 - s) for t, s in grid()]


def loop(eta: float, t_on: float, t_off: float, alpha_on: float) -> list[Kernel]:
    kernels = []
    for t, s in grid():
        if t > t_on:
            bend = alpha_on / (1 - t_on)
            kernels.append(remdm_kernel(0.0, (1 - t) * bend, (1 - s) * bend))
        elif t <= t_off:
            bend = (1 - alpha_on) / t_off
            kernels.append(remdm_kernel(0.0, 1 - t * bend, 1 - s * bend))
        else:
            kernels.append(remdm_kernel(eta, alpha_on, alpha_on))
    return kernels


def sedd() -> list[Kernel]:
    """Staggered score times transposed transition, as SEDD's code has it."""

    def sigma(t: float) -> float:
        return -math.log(1 - (1 - 1e-3) * t)

    def kernel(now: float, delta: float) -> Kernel:
        def weights(p: Tensor, held: int) -> Tensor:
            score = p / math.expm1(now)
            score[MASK] = 1.0
            if held != MASK:
                score = torch.nn.functional.one_hot(torch.tensor(held), VOCABULARY).double()
            extra = (1 - math.exp(delta)) * float(score.sum())
            score = score * math.exp(delta)
            score[MASK] += extra if held == MASK else 0.0
            edge = (
                math.exp(-delta)
                * torch.nn.functional.one_hot(torch.tensor(held), VOCABULARY).double()
            )
            if held == MASK:
                edge += 1 - math.exp(-delta)
            return score * edge

        return weights

    return [kernel(sigma(t), sigma(t) - sigma(s)) for t, s in grid()]


def dfm() -> list[Kernel]:
    def kernel(t: float, width: float) -> Kernel:
        forward = 10 * t**0.25 * (1 - t) ** 0.25 + 1
        alpha_t, alpha_s = 1 - t, 1 - t + width

        def weights(p: Tensor, held: int) -> Tensor:
            out = torch.zeros(VOCABULARY, dtype=torch.float64)
            if held != MASK:
                out[held] = 1 - (forward - 1) * (alpha_s / alpha_t - 1)
                out[MASK] = 1 - out[held]
                return out
            out += p * forward * (alpha_s - alpha_t) / (1 - alpha_t)
            out[MASK] = 1 - out.sum()
            return out

        return weights

    width, t, kernels = 1 / STEPS, 1.0, []
    while not kernels or t > width:
        if kernels:
            forward = 10 * t**0.25 * (1 - t) ** 0.25 + 1
            width = min(1 / STEPS, 1 / (forward / t + (forward - 1) / (1 - t)))
        kernels.append(kernel(t, width))
        t -= width
    return kernels


@pytest.mark.parametrize(
    ("spec", "kernels", "last"),
    [
        ("mdlm:steps=4", mdlm(), "argmax"),
        ("sedd:steps=4", sedd(), "sample"),
        ("mdlm:steps=4+remdm-cap:eta=0.2", cap(0.2), "argmax"),
        ("mdlm:steps=4+remdm-rescale:eta=0.3", rescale(0.3), "argmax"),
        ("mdlm:steps=4+fb", forward_backward(), "argmax"),
        (
            "mdlm:steps=4+remdm-loop:eta=0.08,t_on=0.6,t_off=0.3",
            loop(0.08, 0.6, 0.3, 0.9),
            "argmax",
        ),
        ("dfm:steps=4", dfm(), "argmax"),
    ],
)
def test_final_sequences_are_distributed_as_the_enumerated_chain_says(
    spec: str, kernels: list[Kernel], last: str
) -> None:
    denoiser, count = joint(), 400 if spec.startswith("dfm") else 2000
    expected = count * chain(denoiser, kernels, last)
    policy = Strategy.of(sampler_from(spec)).which
    assert policy.duration((1,) * LENGTH) == len(kernels)
    result = generate(denoiser, torch.full((count, LENGTH), MASK), spec, seed=11)
    final = torch.stack(result.sequences)
    code = (final * VOCABULARY ** torch.arange(LENGTH - 1, -1, -1)).sum(dim=1)
    seen = code.bincount(minlength=len(STATES)).double()
    possible = expected > 1e-9
    assert float(seen[~possible].sum()) == 0
    chi_square = float(((seen - expected) ** 2 / expected)[possible].sum())
    assert int(possible.sum()) == 8
    assert chi_square < 24.3  # 7 degrees of freedom: 0.1 % of seeds would fail


def blank(length: int) -> Tensor:
    return torch.full((length,), MASK)


def test_a_step_that_changes_nothing_costs_no_forward_and_steps_counts_it() -> None:
    denoiser = FakeDenoiser(table_of([0.9, 0.8, 0.7]))
    result = generate(denoiser, blank(3), "mdlm:steps=50", trajectory=True, seed=1)
    account = result.items[0].account
    changing = [bool(len(r.revealed)) for r in result.items[0].trajectory]
    # A step needs a forward unless the one before it changed nothing.
    forwards = 1 + sum(changing[:-1])
    assert account.steps == len(changing) > account.nfe_forward == forwards
    assert len(denoiser.canvases) == forwards


def test_the_masks_left_at_the_end_of_time_get_their_argmax() -> None:
    # At end = 0.9 nearly all masks are left for the last step.
    denoiser = FakeDenoiser(table_of([0.4] * 60))
    item = generate(denoiser, blank(60), "mdlm:steps=3,end=0.9", trajectory=True).items[0]
    last = item.trajectory[-1]
    assert item.account.steps == 4
    assert len(last.revealed) > 40
    assert last.tokens.tolist() == [1 + k % 5 for k in last.revealed.tolist()]


def test_sedd_draws_the_masks_left_at_the_end() -> None:
    denoiser = FakeDenoiser(table_of([0.4] * 400))
    item = generate(denoiser, blank(400), "sedd:steps=3,end=0.9", trajectory=True).items[0]
    last = item.trajectory[-1]
    best = torch.tensor([1 + k % 5 for k in last.revealed.tolist()])
    assert len(last.revealed) > 300
    share = float((last.tokens == best).double().mean())
    assert abs(share - 0.4) < 4 * math.sqrt(0.24 / len(best))


def test_dfm_has_no_end_to_be_set() -> None:
    with pytest.raises(ValueError, match=r"end must be left out: dfm ends by its steps, got 0\.1"):
        sampler_from("dfm:end=0.1")


def test_dfm_takes_more_steps_than_asked_for() -> None:
    widths = [t - s for t, s in DFM().times(256)]
    assert len(widths) > 256
    assert max(widths) == pytest.approx(1 / 256)
    assert sum(widths) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mdlm:steps=0", "steps must be at least 1, got 0"),
        ("mdlm:end=1", r"end must be in \(0, 1\), got 1\.0"),
        ("sedd:floor=0", r"floor must be in \(0, 1\), got 0\.0"),
        ("mdlm+eb", "count='eb' needs a policy that ranks positions; mdlm decides itself"),
        ("sedd+remdm-cap", "remask='remdm-cap' does not go with sedd"),
        ("mdlm+remdm-llada", "remask='remdm-llada' does not go with mdlm"),
    ],
)
def test_options_that_make_no_sense_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler_from(spec)
