"""lm-eval's requests: which is which, and what each asks for."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from boe.lm_eval.settings import EvaluationSettings

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

DEFAULT_GEN_LENGTH = 256
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_OF_SAMPLING = ("top_p", "top_k")
# What transformers draws at where nothing else is said.
_SAMPLING_TEMPERATURE = 1.0


@dataclass(frozen=True)
class Asked:
    """A request with its place among those of its kind.

    Attributes:
        number: its place.
        instance: lm-eval's own.
        repeat: which of the repetitions of the same request it is.
        key: what its random draws depend on, beside the seed: its texts and ``repeat``,
            so that a choice of documents, their order and ranks make no difference.
        original: number of the request that it is a copy of, made by lm-eval to give all
            ranks the same number; it gets that one's answer. Else ``None``.
    """

    number: int
    instance: Instance
    repeat: int
    key: int
    original: int | None

    @property
    def name(self) -> str:
        """Names the request in messages."""
        instance = self.instance
        return f"{instance.request_type} request {instance.task_name}/{instance.doc_id}"


def asked(instances: Sequence[Instance]) -> list[Asked]:
    """The requests in order."""
    seen: Counter[int] = Counter()
    last: dict[int, int] = {}
    found = []
    for number, instance in enumerate(instances):
        repeat = seen[id(instance)]
        original = None
        if repeat and repeat >= (instance.repeats or 1):
            original = last[id(instance)]
        else:
            last[id(instance)] = number
        seen[id(instance)] += 1
        found.append(Asked(number, instance, repeat, _key(instance, repeat), original))
    return found


def _key(instance: Instance, repeat: int) -> int:
    texts = [part for part in instance.args if isinstance(part, str)]
    text = json.dumps([instance.request_type, texts, repeat])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


@dataclass(frozen=True)
class Wish:
    """What a ``generate_until`` request asks for, after the settings have had their say.

    Attributes:
        until: stop texts.
        gen_length: tokens to generate.
        temperature, top_p: ``None`` for the sampler's own.
    """

    until: tuple[str, ...]
    gen_length: int
    temperature: float | None
    top_p: float | None

    @classmethod
    def of(cls, options: Mapping[str, Any], settings: EvaluationSettings) -> Wish:
        """Read lm-eval's generation arguments.

        Raises:
            ValueError: an argument that is not known, which would be ignored otherwise, or
                none of the kind that it has to be.
        """
        left = dict(options)
        until = left.pop("until", None) or []
        until = [until] if isinstance(until, str) else list(until)
        lengths = [left.pop(name) for name in _LENGTHS if left.get(name) is not None]
        temperature = left.pop("temperature", None)
        samples = left.pop("do_sample", None)
        if samples is None:
            samples = bool(temperature)
        elif not isinstance(samples, bool):
            raise ValueError(f"do_sample must be true or false, got {samples!r}")
        if samples and temperature is None:
            temperature = _SAMPLING_TEMPERATURE
        drawn = {name: left.pop(name, None) for name in _OF_SAMPLING}
        if samples and drawn["top_k"] not in (None, 0):
            raise ValueError("generation argument top_k is not supported: use top_p")
        unknown = [name for name, value in left.items() if value is not None]
        if unknown:
            raise ValueError(
                f"generation argument {unknown[0]!r} is not supported; supported are until, "
                f"{', '.join(_LENGTHS)}, do_sample, temperature and top_p"
            )
        asked_length = int(lengths[0]) if lengths else DEFAULT_GEN_LENGTH
        length = settings.gen_length or asked_length
        if length < 1:
            raise ValueError(f"max_gen_toks must be at least 1, got {length}")
        return cls(
            until=tuple(stop for stop in until if stop),
            gen_length=length,
            temperature=_first(settings.temperature, temperature if samples else None),
            top_p=_first(settings.top_p, drawn["top_p"] if samples else None),
        )


def _first(own: float | None, theirs: Any) -> float | None:
    if own is not None:
        return own
    return None if theirs is None else float(theirs)
