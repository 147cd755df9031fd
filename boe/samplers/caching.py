"""What becomes of the keys and values of one step of a decode at the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from boe.arguments import check_numbers

KVCacheName = Literal["none", "exact", "prefix", "delayed"]


@dataclass(frozen=True)
class KVCache:
    """No cache: every step runs every row of the canvas.

    The kinds of cache are its subclasses. What a forward does not run it attends to, as
    earlier forwards left it.

    Attributes:
        refresh: every so many forwards of a sequence run all of its rows; ``None``: only
            those that have to (for caches that are approximations).

    Raises:
        ValueError: less than 1, or a kind that has nothing to refresh.
    """

    refresh: int | None = None

    name: ClassVar[KVCacheName] = "none"
    approximates: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.refresh is None:
            return
        if not self.approximates:
            raise ValueError(
                f"cache_refresh goes with kv_cache='prefix' or 'delayed', which approximate; got "
                f"{self.refresh} with {self.name!r}"
            )
        if self.refresh < 1:
            raise ValueError(f"cache_refresh must be at least 1, got {self.refresh}")


@dataclass(frozen=True)
class ExactCache(KVCache):
    """What is in front of the current block of a block-causal model is kept.

    The same logits up to rounding: nothing there depends on what comes after it. No row
    behind the current block is run either.
    """

    name: ClassVar[KVCacheName] = "exact"


@dataclass(frozen=True)
class PrefixCache(KVCache):
    """What is in front of the current block is kept from the block's first step on.

    The prefix cache of Fast-dLLM (Wu et al., arXiv:2505.22618), for bidirectional models: an
    approximation, since keys and values there depend on what the block's steps write.
    """

    name: ClassVar[KVCacheName] = "prefix"
    approximates: ClassVar[bool] = True


@dataclass(frozen=True)
class DelayedCache(KVCache):
    """Keys and values of a token are kept from the forward after its writing on.

    Delayed caching (dKV-Cache-Decode, Ma et al., arXiv:2505.15781), for bidirectional models:
    a forward runs the masked rows, of all blocks, and those whose tokens changed since they
    were last run. A token is run once more after it was written, because the keys and values
    of a mask are nothing like its own; after that they change little.
    """

    name: ClassVar[KVCacheName] = "delayed"
    approximates: ClassVar[bool] = True


KV_CACHES: dict[str, type[KVCache]] = {
    kind.name: kind for kind in (KVCache, ExactCache, PrefixCache, DelayedCache)
}


def cache_named(kv_cache: str, refresh: int | None = None) -> KVCache:
    """The cache of that name.

    Raises:
        ValueError: there is none, or it cannot be refreshed like that.
    """
    if kv_cache not in KV_CACHES:
        raise ValueError(f"kv_cache must be one of {', '.join(KV_CACHES)}, got {kv_cache!r}")
    return KV_CACHES[kv_cache](refresh)
