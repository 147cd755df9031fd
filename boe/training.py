"""Training of small masked diffusion denoisers.

The objective is the evidence lower bound of masked diffusion with the linear schedule
(MDLM, LLaDA): the mask rate t is uniform on (0, 1), each position is masked with
probability t, and the cross-entropy of the masked positions carries the weight 1/t,
here as the mean over each sample's masked positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from boe.files import prepare_directory
from boe.kept_memory import kept_memory

STATE_FILE = "training_state.pt"


@dataclass(frozen=True)
class TrainConfig:
    """How to train. ``precision`` is "bf16" (autocast, float32 weights) or "fp32"."""

    steps: int = 6000
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    precision: str = "bf16"
    seed: int = 0
    save_every: int = 250

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, got {self.warmup_steps}")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.precision not in ("bf16", "fp32"):
            raise ValueError(f"precision must be 'bf16' or 'fp32', got {self.precision!r}")

    @property
    def options(self) -> str:
        """The options of ``boe train`` that give this configuration, but for what it leaves out."""
        return (
            f"--steps {self.steps} --batch-size {self.batch_size} "
            f"--learning-rate {self.learning_rate} --precision {self.precision} --seed {self.seed}"
        )

    def rate_at(self, step: int) -> float:
        """Learning rate of ``step``: linear warm-up, then half a cosine to zero."""
        warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return self.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def stratified_mask(
    shape: tuple[int, int],
    generator: torch.Generator,
    maskable: Tensor | None = None,
    rates: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """bool (N, L): sample n is masked at a rate drawn from the n-th of N strata of ``rates``.

    A sample that would come out with nothing masked gets one masked position.

    Args:
        maskable: bool (L,), the positions that may be masked (an answer, not its prompt);
            all by default.
    """
    count, length = shape
    low, high = rates
    place = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    rate = low + (high - low) * place
    mask = torch.rand(shape, generator=generator) < rate.unsqueeze(1)
    if maskable is None:
        forced = torch.randint(length, (count,), generator=generator)
    else:
        mask &= maskable
        forced = torch.rand(shape, generator=generator).where(maskable, -1.0).argmax(dim=1)
    empty = ~mask.any(dim=1)
    mask[empty, forced[empty]] = True
    return mask


def masked_diffusion_loss(
    model: nn.Module,
    ids: Tensor,
    mask: Tensor,
    mask_id: int,
    texts: int = 1,
    behind_attention: nn.Module | None = None,
) -> Tensor:
    """Mean over samples of the mean cross-entropy at masked positions, in nats.

    Args:
        ids: int64 (N, L), clean.
        mask: bool (N, L), with at least one True in every sample.
        texts: each of so many equal parts of a sequence is a sample.
        behind_attention: the module of ``model`` that takes over behind the last attention,
            with arguments (N, L, D). If given, it and all that follows run on the masked rows
            only: the same loss with the same gradients, as nothing reads the other rows any
            more. From there on ``model`` has to work row by row.
    """
    canvas = torch.where(mask, mask_id, ids)
    counts = mask.view(len(ids) * texts, -1).sum(dim=1)
    rows = mask.flatten().nonzero().squeeze(1)
    if behind_attention is None:
        logits = model(input_ids=canvas).logits.flatten(0, 1)[rows]
    else:
        with _rows_only(behind_attention, rows):
            logits = model(input_ids=canvas).logits.squeeze(0)
    nats = cross_entropy(logits.float(), ids.flatten()[rows], reduction="none")
    return (nats / counts.repeat_interleave(counts)).sum() / len(counts)


@contextmanager
def _rows_only(module: nn.Module, rows: Tensor) -> Iterator[None]:
    """``module`` sees ``rows`` of its (N, L, D) arguments, as (1, len(rows), D), while it lasts."""

    def pick(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(x.flatten(0, 1).index_select(0, rows).unsqueeze(0) for x in args)

    handle = module.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _plain_attention(model: nn.Module) -> Iterator[None]:
    """Attention as separate products while it lasts, where ``model`` is transformers' own.

    The backward of PyTorch's fused CPU attention is slow in bf16: steps of the embedded
    denoisers take about twice as long with it.
    """
    choose = getattr(model, "set_attn_implementation", None)
    if choose is None:
        yield
        return
    config: Any = model.config
    before = config._attn_implementation
    choose("eager")
    try:
        yield
    finally:
        choose(before)


def train(
    model: nn.Module,
    next_batch: Callable[[torch.Generator], Tensor],
    mask_id: int,
    config: TrainConfig,
    output: Path,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    maskable: Tensor | None = None,
    rates: tuple[float, float] = (0.0, 1.0),
    texts: int = 1,
    behind_attention: nn.Module | None = None,
) -> None:
    """Train a denoiser in place by :func:`masked_diffusion_loss`, as :func:`fit` does.

    Args:
        next_batch: draws int64 (batch_size, L) of clean ids with the given generator.
        maskable: bool (L,), the positions that may be masked; all by default.
        rates: the least and the largest mask rate. The optimum does not depend on them, as a
            prediction at one rate is trained for itself: they say where it matters.
        texts: a sequence holds so many of equal length, each masked at a rate of its own.
            Then ``maskable`` is of one of them, (L / texts,).
        behind_attention: saves work on unmasked rows, as in :func:`masked_diffusion_loss`.

    Raises:
        ValueError: as :func:`fit`, or ``maskable`` allows no position, or ``texts`` does not
            divide the sequences.
    """
    if maskable is not None and not bool(maskable.any()):
        raise ValueError("maskable must allow at least one position, got none")

    def next_loss(generator: torch.Generator) -> Tensor:
        ids = next_batch(generator)
        if ids.shape[1] % texts:
            raise ValueError(f"texts must divide the length {ids.shape[1]}, got {texts}")
        shape = (len(ids) * texts, ids.shape[1] // texts)
        mask = stratified_mask(shape, generator, maskable, rates)
        if texts > 1:  # The rates rise with the sample: within a sequence they must not.
            mask = mask[torch.randperm(len(mask), generator=generator)].view_as(ids)
        return masked_diffusion_loss(model, ids, mask, mask_id, texts, behind_attention)

    fit(model, next_loss, config, output, on_step)


def fit(
    model: nn.Module,
    next_loss: Callable[[torch.Generator], Tensor],
    config: TrainConfig,
    output: Path,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train ``model`` in place, saving to ``output`` every ``config.save_every`` steps.

    A run that was interrupted, by Ctrl-C or otherwise, goes on from its last save and
    ends with the same weights as an undisturbed one (on the same number of threads).

    Args:
        next_loss: draws a batch with the given generator and returns its loss, a scalar;
            called under autocast where ``config.precision`` is "bf16".
        output: directory of the training state, in :data:`STATE_FILE`.
        on_step: called with the number of finished steps and the last loss.

    Raises:
        ValueError: ``output`` holds the state of a run with another configuration.
        OSError: nothing can be written there.
    """
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=config.weight_decay,
        fused=True,
    )
    prepare_directory(output)
    state_path = output / STATE_FILE
    done = 0
    if state_path.exists():
        done = _restore(state_path, model, optimizer, generator, config)

    def save() -> None:
        _save(state_path, model, optimizer, generator, config, done)

    model.train()
    try:
        with _plain_attention(model), kept_memory():
            while done < config.steps:
                for group in optimizer.param_groups:
                    group["lr"] = config.rate_at(done)
                with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
                    loss = next_loss(generator)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip, foreach=True)
                optimizer.step()
                optimizer.zero_grad()
                done += 1
                on_step(done, loss.item())
                if done % config.save_every == 0:
                    save()
    finally:
        model.eval()
    save()


def _save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    config: TrainConfig,
    done: int,
) -> None:
    state = {
        "config": asdict(config),
        "done": done,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generator": generator.get_state(),
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _restore(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    config: TrainConfig,
) -> int:
    state = torch.load(path, weights_only=True)
    if state["config"] != asdict(config):
        changed = [
            key for key, value in asdict(config).items() if state["config"].get(key) != value
        ]
        raise ValueError(
            f"{path} belongs to a run with another {', '.join(changed)}; "
            "use the same settings to go on with it, or another output directory"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    generator.set_state(state["generator"])
    return int(state["done"])
