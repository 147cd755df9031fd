"""One decoding step at the shapes of LLaDA-8B and Dream-7B, relative to one plain forward.

Random weights: speed does not depend on them. The canvas is a prompt of 1024 tokens and 128
to generate, all or half of which are still masked; a step reveals one token per row. It is a
whole step of the decoding loop, with what the host does in it. Rivals:

* ``confidence``: the forward, and the choice of the most confident position;
* ``boe``: Backward-on-Entropy by replay, for ρ = 0.10, 0.25 and 0.50, with its probes capped
  (``max_probes``), and with every row active (``active=all``);
* ``dense``: a backward through the whole canvas at α = 0, which needs no second forward;
* on a GPU ``captured``: the confidence step and BoE with the network in CUDA graphs
  (:class:`boe.CompiledDenoiser`).

Beside them stand two counts: the *floor* 1 + |A|/L, a forward and a backward of the active
rows; and *replay's ideal* 1 + 2·|A|/L, since replay runs the active rows forward again.

Without a GPU the same is run at a toy width, which proves the script and says little about
8 billion parameters. Memory is measured on a GPU; :func:`expected_memory` says everywhere
what a step should hold, from shapes alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from bench.report import Target, console, find, print_table, print_targets, shape_text
from bench.results import Config, Measurement, Quantiles
from bench.session import Options, WrongResultError, parse_options, run_cases
from bench.timing import Call, Effort, interleave, peak_extra_memory
from boe.canvas import Canvas
from boe.decoding import Item, TokensPerStep
from boe.decoding.decoder import Decoder
from boe.decoding.forwards import Forwards
from boe.decoding.rows import Row, blocks_of
from boe.denoisers.attention_denoiser import AttentionDenoiser
from boe.denoisers.base import EntropyGradient, GradientRequest, required_keep
from boe.denoisers.compiled import CompiledDenoiser
from boe.denoisers.published import blueprint_of
from boe.denoisers.transformers_model import TransformersDenoiser
from boe.samplers import Strategy, Tokens, sampler_from
from boe_kernels import pad_rows

NAME = "llm_step"
PROMPT, GENERATED = 1024, 128
BATCHES = (1, 4, 16)
MEMORY_BATCH = 8
RHOS = (0.10, 0.25, 0.50)
DEFAULT = "boe ρ=0.25"
CAPTURED = ", captured"
SLACK = 1.10
FULL = Effort(seconds=20.0, least_rounds=5, most_rounds=20)
TOY = Effort(seconds=4.0, least_rounds=3, most_rounds=7)
QUICK = Effort(seconds=0.1, least_rounds=1, most_rounds=1)
GIB = 2**30

LLADA: dict[str, Any] = {
    "model_type": "llada",
    "d_model": 4096,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "mlp_hidden_size": 12288,
    "vocab_size": 126464,
    "embedding_size": 126464,
    "max_sequence_length": 4096,
    "rope_theta": 500000.0,
    "mask_token_id": 126336,
}
DREAM: dict[str, Any] = {
    "model_type": "Dream",
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "mask_token_id": 151666,
}
MODELS = {"llada-8b": LLADA, "dream-7b": DREAM}


@dataclass(frozen=True)
class Shape:
    """A model's width: the published one, or a toy of the same build.

    Attributes:
        scale: by how much width, layers and vocabulary are divided; 1 for the real model.
    """

    model: str
    scale: int = 1

    @property
    def published(self) -> dict[str, Any]:
        """The config of a checkpoint of this shape."""
        config = dict(MODELS[self.model])
        if self.scale == 1:
            return config
        for key in ("d_model", "mlp_hidden_size", "hidden_size", "intermediate_size"):
            if key in config:
                config[key] //= self.scale
        for key in ("n_layers", "num_hidden_layers"):
            if key in config:
                config[key] = max(2, config[key] // self.scale)
        # Heads keep their number, and so their groups, where their width allows.
        width = config.get("d_model") or config["hidden_size"]
        heads = ("n_heads", "n_kv_heads", "num_attention_heads", "num_key_value_heads")
        names = [key for key in heads if key in config]
        while width // config[names[0]] < 8:
            for key in names:
                config[key] = max(1, config[key] // 2)
        for key in ("vocab_size", "embedding_size"):
            if key in config:
                config[key] //= self.scale
        config["mask_token_id"] = config["vocab_size"] - 1
        return config


@dataclass(frozen=True)
class Case:
    """A batch of canvases of which ``masks`` positions are left to fill in.

    Attributes:
        timed: whether times are taken, or memory alone.
    """

    shape: Shape
    batch: int
    masks: int
    prompt: int = PROMPT
    generated: int = GENERATED
    timed: bool = True

    @property
    def length(self) -> int:
        return self.prompt + self.generated

    @property
    def config(self) -> Config:
        return {
            "model": self.shape.model,
            "scale": f"1/{self.shape.scale}",
            "B": self.batch,
            "L": self.length,
            "masks": self.masks,
        }

    def __str__(self) -> str:
        return shape_text(self.config)

    def canvases(self, denoiser: AttentionDenoiser) -> Tensor:
        """int64 (B, L): random prompts, and masks in the last positions of what follows."""
        mask_id = denoiser.facts.mask_id
        generator = torch.Generator().manual_seed(self.batch)
        ids = torch.randint(mask_id // 2, (self.batch, self.length), generator=generator)
        ids[:, self.length - self.masks :] = mask_id
        return ids.to(denoiser.device)


def cases(options: Options) -> list[Case]:
    if options.quick:
        return [
            Case(Shape(model, 64), batch, 12, prompt=20, generated=12)
            for model, batch in (("llada-8b", 2), ("dream-7b", 1))
        ]
    scale = 1 if options.device.type == "cuda" else 16
    found = [
        Case(Shape(model, scale), batch, masks)
        for model in MODELS
        for batch in BATCHES
        for masks in (GENERATED, GENERATED // 2)
    ]
    if options.device.type == "cuda":
        found += [Case(Shape(model), MEMORY_BATCH, GENERATED, timed=False) for model in MODELS]
    return found


def dtype_of(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


# The last one only: two such models would not fit on one device.
@lru_cache(maxsize=1)
def build_denoiser(shape: Shape, device: torch.device) -> AttentionDenoiser:
    """The model with random weights, made on its device."""
    captured.cache_clear()
    blueprint = blueprint_of(shape.published)
    assert blueprint is not None
    model = blueprint.build()
    generator = torch.Generator(device).manual_seed(0)
    dtype = dtype_of(device)
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            filled = torch.empty(weight.shape, dtype=dtype, device=device)
            if weight.dim() > 1:
                filled.normal_(0.0, 0.02, generator=generator)
            else:
                filled.fill_(0.0 if name == "bias" else 1.0)
            setattr(module, name, nn.Parameter(filled, requires_grad=False))
    assert blueprint.mask_id is not None
    return blueprint.denoiser(model.to(device), blueprint.mask_id, ())


@lru_cache(maxsize=1)
def captured(denoiser: AttentionDenoiser) -> CompiledDenoiser:
    """The model in CUDA graphs."""
    assert isinstance(denoiser, TransformersDenoiser)
    return CompiledDenoiser(denoiser, cuda_graphs=True)


class Rivals:
    """The ways to make one step on the same canvases."""

    def __init__(self, case: Case, denoiser: AttentionDenoiser) -> None:
        self.case, self.denoiser = case, denoiser
        self.canvas = Canvas.of(case.canvases(denoiser))
        self.masked = self.canvas.masked(denoiser.facts.mask_id)
        self.positions = pad_rows(self.masked)
        self._on_host = self.masked[0].cpu()

    def calls(self) -> dict[str, Call]:
        cap = max(1, self.case.masks // 4)
        found: dict[str, Call] = {
            "forward": self.forward,
            "confidence": self.step("confidence"),
            **{f"boe ρ={rho:.2f}": self.step(f"boe:rho={rho}") for rho in RHOS},
            f"boe max_probes={cap}": self.step(f"boe:max_probes={cap}"),
            "boe active=all": self.step("boe:active=all"),
            "dense": self.step("boe:engine=dense,alpha=0"),
        }
        if self.denoiser.device.type == "cuda":
            graphs = captured(self.denoiser)
            found[f"confidence{CAPTURED}"] = self.step("confidence", graphs)
            found[f"{DEFAULT}{CAPTURED}"] = self.step("boe", graphs)
        return found

    def forward(self) -> Tensor:
        return self.denoiser.predict(self.canvas, self.positions).logits

    def step(
        self, spec: str, denoiser: AttentionDenoiser | None = None
    ) -> Callable[[], list[Item]]:
        """One step of the decoding loop for all rows."""
        model = self.denoiser if denoiser is None else denoiser
        strategy = Strategy.of(sampler_from(spec))
        blocks = blocks_of(self._on_host, TokensPerStep(1), None, strategy)

        def call() -> list[Item]:
            rows = [
                Row(
                    Item(ids),
                    number,
                    str(number),
                    given=~masked,
                    masks=self.case.masks,
                    blocks=list(blocks),
                )
                for number, (ids, masked) in enumerate(
                    zip(self.canvas.ids.clone(), self.masked, strict=True)
                )
            ]
            decoder = Decoder(Forwards(model), strategy, Tokens(temperature=0.0), 0)
            with torch.no_grad():
                decoder.run(rows, pause=lambda row: True)
            if decoder.room.rows is not None:
                # The loop went on in halves, which is no step of this batch.
                raise torch.OutOfMemoryError(f"only {decoder.room.rows} rows fit")
            return [row.item for row in rows]

        return call


def active_share(items: list[Item], replays: bool) -> float | None:
    """|A|/L of a step that was made, by its account; ``None`` where nothing was steered."""
    account = items[0].account
    if not account.n_backward:
        return None
    # Replay runs its rows forward too.
    return (account.flop_equiv - account.nfe_forward) / (2 if replays else 1)


def verify(denoiser: AttentionDenoiser) -> None:
    """Refuse a model whose replay is not the gradient that it claims to be.

    On a canvas short enough for the graph of a whole forward.
    """
    mask_id, device = denoiser.facts.mask_id, denoiser.device
    ids = torch.arange(24, device=device).unsqueeze(0)
    ids[:, 12:] = mask_id
    canvas = Canvas.of(ids)
    positions = torch.arange(12, 24, device=device).unsqueeze(0)
    rows = pad_rows(
        torch.zeros(1, 25, dtype=torch.bool, device=device)
        .scatter_(1, denoiser.facts.row_of(positions), True)
        .scatter_(1, positions, True)[:, :-1]
    )

    def gradient(engine: Any) -> EntropyGradient:
        prediction = denoiser.predict(canvas, positions, required_keep(engine, False))
        request = GradientRequest(positions[:, :3], positions[:, 3:], rows, engine=engine)
        return denoiser.entropy_gradient(prediction, request)

    got, right = gradient("replay").gradient, gradient("late").gradient
    error = float((got - right).norm() / right.norm())
    # Two bfloat16 networks differ by their rounding; a wrong gradient, by its whole length.
    limit = 1e-3 if denoiser.embedding_table.dtype == torch.float32 else 0.3
    if not error <= limit:
        raise WrongResultError(f"replay at α = 0 against late binding: off by {error:.1e}")


def measure(case: Case, options: Options) -> Iterator[Measurement]:
    """Times, ratios to the forward and to the confidence step, counts, and memory.

    What is captured comes last, beside the forward and the confidence step once more: its
    compiler takes minutes, and a run that ends meanwhile has the others.
    """
    denoiser = build_denoiser(case.shape, options.device)
    verify(denoiser)
    dtype = str(denoiser.embedding_table.dtype).removeprefix("torch.")

    def row(provider: str, metric: str, value: Quantiles | None, note: str = "") -> Measurement:
        return Measurement(NAME, provider, "step", dtype, case.config, metric, value, note)

    if options.device.type == "cuda":
        weights = sum(p.nbytes for p in _parameters(denoiser)) / 2**20
        yield row("weights", "peak_memory_mb", Quantiles.of([weights]))
    calls = Rivals(case, denoiser).calls()
    plain = {name: call for name, call in calls.items() if not name.endswith(CAPTURED)}
    yield from _measure_together(case, plain, options, row)
    if len(plain) < len(calls):
        compared = {name: call for name, call in calls.items() if name in ("forward", "confidence")}
        others = {name: call for name, call in calls.items() if name not in plain}
        for measured in _measure_together(case, {**compared, **others}, options, row):
            if measured.provider.partition("/")[0] not in compared:
                yield measured


def _measure_together(
    case: Case,
    calls: Mapping[str, Call],
    options: Options,
    row: Callable[..., Measurement],
) -> Iterator[Measurement]:
    """Of calls that take turns; ``forward`` and ``confidence`` are among them."""
    fits: dict[str, Call] = {}
    shares: dict[str, float | None] = {}
    for provider, call in calls.items():
        try:
            made = call()
            fits[provider] = call
            if isinstance(made, list):
                shares[provider] = active_share(made, replays=provider != "dense")
            del made
        except torch.OutOfMemoryError:
            yield row(provider, "time_ms", None, "out of memory")
        except Exception as error:
            # A compiler that fails says nothing against the others.
            if not provider.endswith(CAPTURED):
                raise
            yield row(provider, "time_ms", None, str(error).partition("\n")[0])
    if options.device.type == "cuda":
        for provider, call in fits.items():
            used = peak_extra_memory(call, options.device)
            yield row(provider, "peak_memory_mb", Quantiles.of([used]))
    if not case.timed:
        return
    effort = QUICK if options.quick else FULL if case.shape.scale == 1 else TOY
    timings = interleave(fits, options.device, effort)
    for provider, timing in timings.items():
        yield row(provider, "time_ms", timing.quantiles)
        if provider != "forward":
            yield row(f"{provider}/forward", "ratio", timing.over(timings["forward"]))
        share = shares.get(provider)
        if share is None:
            continue
        yield row(f"{provider}/confidence", "over_confidence", timing.over(timings["confidence"]))
        yield row(f"{provider}: 1+|A|/L", "floor", Quantiles.of([1 + share]))
        if provider != "dense":
            yield row(f"{provider}: 1+2|A|/L", "floor", Quantiles.of([1 + 2 * share]))


def _parameters(denoiser: AttentionDenoiser) -> Iterator[nn.Parameter]:
    model: nn.Module = denoiser.model  # type: ignore[attr-defined]
    return model.parameters()


@dataclass(frozen=True)
class Memory:
    """What a step should hold at once, in bytes, by what it is for."""

    weights: int
    keys_values: int
    logits: int
    graph: int

    @property
    def total(self) -> int:
        return self.weights + self.keys_values + self.logits + self.graph


def expected_memory(shape: Shape, batch: int, length: int, active: int, item: int = 2) -> Memory:
    """Memory of a BoE step by replay, from shapes alone; ``item`` bytes per number.

    The graph is what a decoder layer without trainable weights saves: per active row the
    float32 inputs of both norms, the query, key, value and attention's output, and three
    tensors of the gated MLP's inner width; and the keys and values in which attention saw
    the active rows. Not counted are temporaries.
    """
    blueprint = blueprint_of(shape.published)
    assert blueprint is not None
    native = blueprint.native_config
    width, inner = native["hidden_size"], native["intermediate_size"]
    layers, vocabulary = native["num_hidden_layers"], native["vocab_size"]
    narrow = width * native["num_key_value_heads"] // native["num_attention_heads"]
    weights = sum(p.numel() for p in blueprint.build().parameters()) * item
    per_row = 2 * width * 4 + (2 * width + 2 * narrow + 3 * inner) * item
    whole = 2 * narrow * item
    return Memory(
        weights=weights,
        keys_values=2 * layers * batch * length * narrow * item,
        logits=batch * active * vocabulary * (item + 4),
        graph=layers * batch * (active * per_row + length * whole),
    )


def print_memory() -> None:
    """The memory of a step at batch 8 and L = 1152 in bfloat16, from shapes alone."""
    for model in MODELS:
        found = expected_memory(Shape(model), MEMORY_BATCH, PROMPT + GENERATED, GENERATED)
        parts = (
            ("weights", found.weights),
            ("keys and values", found.keys_values),
            ("logits", found.logits),
            ("graph of the replay", found.graph),
        )
        console().print(
            f"memory expected of a BoE step of {model}, batch {MEMORY_BATCH}, "
            f"L = {PROMPT + GENERATED}, |A| = {GENERATED}, bfloat16: "
            f"{found.total / GIB:.1f} GiB ("
            + ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts)
            + ")",
            highlight=False,
        )


def targets(measured: list[Measurement]) -> list[Target]:
    """The default settings within SLACK of the confidence step at batch 4, as issued."""
    found = []
    for model in MODELS:
        for masks in (GENERATED, GENERATED // 2):
            config = Case(Shape(model), 4, masks).config
            ratio = find(
                measured, "over_confidence", f"{DEFAULT}/confidence", "step", "bfloat16", config
            )
            margin = None if ratio is None else Quantiles.of([SLACK / ratio.p50])
            claim = f"default BoE within {SLACK:.2f} confidence steps: {model} B=4 masks={masks}"
            found.append(Target(claim, 1.0, margin))
    return found


def main(argv: list[str]) -> None:
    """Run the benchmark and print its tables."""
    options = parse_options(NAME, argv)
    outcome = run_cases(options, cases(options), lambda case: measure(case, options))
    build_denoiser.cache_clear()
    print_table("Milliseconds, p50", outcome.measurements, "time_ms")
    print_table("Times one forward, p50", outcome.measurements, "ratio")
    print_table("The floor and replay's ideal, in forwards", outcome.measurements, "floor")
    print_table("Times one confidence step, p50", outcome.measurements, "over_confidence")
    print_table("Peak memory, MiB", outcome.measurements, "peak_memory_mb")
    print_memory()
    print_targets(targets(outcome.measurements))
    outcome.exit()


if __name__ == "__main__":
    main(sys.argv[1:])
