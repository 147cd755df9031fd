"""Strategies from specification strings, and back.

``boe:rho=0.5+eb:gamma=0.05+tokens:temperature=0.7``: parts separated by "+", each a name
and options. The first names a policy, or a count, remasking or particle rule, which
then goes with the policy it was made for: ``eb`` is ``entropy+eb``.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from typing import Any, get_args, get_type_hints

from boe.samplers.ancestral import DFM, SEDD, Ancestral
from boe.samplers.backtracking import Backtrack
from boe.samplers.base import Count, Policy, Remask
from boe.samplers.boe import BoE
from boe.samplers.caching import KV_CACHES, KVCache
from boe.samplers.counting import EntropyBound, Factor, Klass, Threshold
from boe.samplers.greedy import Confidence, Entropy, Margin, Random
from boe.samplers.llada_remask import LladaLoop
from boe.samplers.lookahead import Lookahead
from boe.samplers.lookum import LookUM
from boe.samplers.maskgit import MaskGIT
from boe.samplers.overlapping import OverlapBound
from boe.samplers.p2 import P2
from boe.samplers.pacing import Deadline
from boe.samplers.particles import SMC, ParticleGibbs, Particles
from boe.samplers.pc import PCSampler
from boe.samplers.proofreading import Proofread
from boe.samplers.remdm import ForwardBackward, RemdmCap, RemdmConf, RemdmLoop, RemdmRescale
from boe.samplers.strategy import Strategy
from boe.samplers.tokens import Tokens
from boe.samplers.verifying import Verifier

Part = (
    Policy
    | Count
    | Remask
    | Particles
    | Tokens
    | Verifier
    | Backtrack
    | Proofread
    | KVCache
    | Deadline
)

SAMPLERS: dict[str, type[Policy]] = {
    kind.name: kind
    for kind in (
        *(Random, Confidence, Margin, Entropy, BoE),
        *(PCSampler, MaskGIT, Lookahead, LookUM),
        *(Ancestral, SEDD, DFM, P2),
    )
}
COUNTS: dict[str, type[Count]] = {
    kind.name: kind for kind in (EntropyBound, OverlapBound, Threshold, Factor, Klass)
}
REMASKS: dict[str, type[Remask]] = {
    kind.name: kind
    for kind in (RemdmCap, RemdmRescale, RemdmConf, RemdmLoop, ForwardBackward, LladaLoop)
}
PARTICLES: dict[str, type[Particles]] = {kind.name: kind for kind in (SMC, ParticleGibbs)}

# "+" separates parts, but not in a number such as 1e+3.
_SEPARATOR = re.compile(r"\+(?=[A-Za-z])")
# What a text cannot hold without ending an option, a part or, in lists, the specification.
_DIVIDES = re.compile(rf"[,;]|{_SEPARATOR.pattern}")


def sampler_from(spec: str) -> Policy | Strategy:
    """A policy, or a strategy of several parts, from names and options.

    ``boe``, ``boe:preset=paper``, ``boe:alpha=1,rho=0.5``, ``klass``, ``boe+eb:gamma=0.05``,
    ``mdlm+remdm-cap+tokens:top_p=0.9``.

    Raises:
        ValueError: unknown part or option, a value that does not fit, or parts that do not
            go together.
    """
    if not isinstance(spec, str):
        raise TypeError(f"sampler must be a specification text, got {type(spec).__name__}")
    first, *others = _SEPARATOR.split(spec)
    homes: dict[str, type[Count] | type[Remask] | type[Particles]]
    homes = {**COUNTS, **REMASKS, **PARTICLES}
    if first.partition(":")[0] in homes:
        others = [first, *others]
        first = homes[first.partition(":")[0]].home
    name = first.partition(":")[0]
    if name not in SAMPLERS:
        if name in _further_parts():
            raise ValueError(f"{name} is a further part: put a policy before it, as in boe+{name}")
        known = ", ".join((*SAMPLERS, *(each for each in homes if each != ParticleGibbs.name)))
        raise ValueError(f"sampler must be one of {known}, got {name!r}")
    policy = _part(first, SAMPLERS[name])
    assert isinstance(policy, Policy)
    if not others:
        return policy
    chosen: dict[str, Any] = {}
    for text in others:
        part = _part(text, _kind_of(text, spec))
        place = _place(part)
        if place in chosen:
            raise ValueError(f"{spec!r} has two parts that decide {place}")
        chosen[place] = part
    return Strategy(policy, **chosen)


def strategy_from(sampler: str | Policy | Strategy) -> Strategy:
    """A strategy from whatever form one is given in.

    Raises:
        TypeError: it is none of them. ValueError: as :func:`sampler_from`.
    """
    if isinstance(sampler, Policy | Strategy):
        return Strategy.of(sampler)
    if not isinstance(sampler, str):
        raise TypeError(
            "sampler must be a specification text, a policy or a strategy, "
            f"got {type(sampler).__name__}"
        )
    return Strategy.of(sampler_from(sampler))


def spec_of(strategy: Policy | Strategy) -> str:
    """The specification string of a strategy; options at their defaults are left out.

    Raises:
        ValueError: an option that has no text form, such as a function.
    """
    if isinstance(strategy, Policy):
        return _text(strategy)
    parts = (
        *(strategy.count, strategy.tokens, strategy.remask),
        *(strategy.particles, strategy.verifier, strategy.backtrack),
        *(strategy.cache, strategy.deadline, strategy.proofread),
    )
    return "+".join([_text(strategy.which), *(_text(part) for part in parts if part is not None)])


def parts_by_kind() -> dict[str, dict[str, type[Part]]]:
    """Everything that a specification can name, the policies first."""
    return {
        "policies": {**SAMPLERS},
        "counts": {**COUNTS},
        "remasking": {**REMASKS},
        "particles": {**PARTICLES},
        "further parts": {
            kind.name: kind for kind in (Tokens, Verifier, Backtrack, Deadline, Proofread)
        },
        "caches": {**KV_CACHES},
    }


def _further_parts() -> dict[str, type[Part]]:
    _, *others = parts_by_kind().values()
    return {name: kind for kinds in others for name, kind in kinds.items()}


def _kind_of(text: str, spec: str) -> type[Part]:
    kinds = _further_parts()
    name = text.partition(":")[0]
    if name in SAMPLERS:
        raise ValueError(f"{spec!r} names two policies; a policy comes first, and once")
    if name not in kinds:
        raise ValueError(f"a further part must be one of {', '.join(kinds)}, got {name!r}")
    return kinds[name]


def _place(part: Part) -> str:
    """The field of a strategy that the part belongs in."""
    places: tuple[tuple[type, str], ...] = (
        *((Count, "count"), (Remask, "remask")),
        *((Particles, "particles"), (Verifier, "verifier"), (KVCache, "cache")),
        *((Backtrack, "backtrack"), (Deadline, "deadline"), (Proofread, "proofread")),
    )
    for kind, place in places:
        if isinstance(part, kind):
            return place
    return "tokens"


def _part(text: str, kind: type[Part]) -> Part:
    """One part from its name and options."""
    name, _, options = text.partition(":")
    hints = get_type_hints(kind)
    known = {field.name: hints[field.name] for field in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        key, equals, value = (part.strip() for part in option.partition("="))
        if not equals or (key not in known and not (key == "preset" and kind is BoE)):
            offered = ", ".join(known) or "none"
            # A list of samplers with commas between them, read as one.
            hint = "; where samplers have options, ';' separates them" if key in SAMPLERS else ""
            raise ValueError(f"{name} has no option {option!r}; its options: {offered}{hint}")
        if key in values:
            raise ValueError(f"{name} has the option {key} twice in {text!r}")
        values[key] = value if key == "preset" else _parse(key, value, known[key])
    if kind is BoE:
        return BoE.preset(values.pop("preset", "default"), **values)
    return kind(**values)


_IN_WORDS = {
    **{bool: "true or false", int: "a whole number", float: "a number"},
    **{type(None): "none"},
}


def _parse(key: str, text: str, kind: Any) -> Any:
    accepted = [one for arm in get_args(kind) or (kind,) for one in get_args(arm) or (arm,)]
    if type(None) in accepted and text == "none":
        return None
    try:
        if bool in accepted:
            return {"true": True, "false": False}[text.lower()]
        for number in (int, float):
            if number in accepted:
                return number(text)
    except (ValueError, KeyError):
        names = " or ".join(_IN_WORDS.get(one, str(one)) for one in accepted)
        raise ValueError(f"{key} must be {names}, got {text!r}") from None
    if not any(one is str or isinstance(one, str) for one in accepted):
        raise ValueError(f"{key} has no text form; pass it in Python")
    return text


def option_text(value: object) -> str:
    """An option's value as specifications have it."""
    plain = {None: "none", True: "true", False: "false"}
    return plain[value] if value is None or isinstance(value, bool) else str(value)


def _text(part: Part) -> str:
    """One part as text."""
    options = []
    for field in fields(part):  # type: ignore[arg-type]
        value = getattr(part, field.name)
        if field.default is not MISSING and value == field.default:
            continue
        if not isinstance(value, str | int | float | None):
            raise ValueError(f"{part.name}: {field.name} has no text form, got {value!r}")
        text = option_text(value)
        if isinstance(value, str) and _DIVIDES.search(text):
            raise ValueError(f"{part.name}: {field.name} has no text form, got {value!r}")
        options.append(f"{field.name}={text}")
    return part.name + (":" + ",".join(options) if options else "")
