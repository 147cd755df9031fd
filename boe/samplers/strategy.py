"""A whole decoding strategy: which, how many, with what, and what is taken back."""

from __future__ import annotations

from dataclasses import dataclass, replace

from boe.denoisers.base import Keep
from boe.samplers.ancestral import Ancestral
from boe.samplers.backtracking import Backtrack
from boe.samplers.base import Clock, Count, Move, Policy, Remask, Sampler, Step, check_move, choose
from boe.samplers.caching import KVCache, cache_named
from boe.samplers.late_options import repr_of
from boe.samplers.pacing import Deadline
from boe.samplers.particles import Particles
from boe.samplers.proofreading import Proofread
from boe.samplers.remdm import Renoise
from boe.samplers.rules import Ruled, Violated
from boe.samplers.tokens import Nucleus, Tokens, check_temperature, check_top_p
from boe.samplers.verifying import Verifier

_KINDS: dict[str, type] = {
    **{"which": Policy, "count": Count, "tokens": Tokens, "remask": Remask},
    **{"particles": Particles, "verifier": Verifier, "cache": KVCache, "deadline": Deadline},
    **{"backtrack": Backtrack, "proofread": Proofread},
}
"""What each field of a strategy holds."""


@dataclass(frozen=True)
class Strategy:
    """Choices that are made separately, put together.

    Attributes:
        which: the policy; a ranking sampler can be combined with everything below, an
            ancestral one with the ReMDM remasking rules, tokens and particles, any other
            with tokens and particles.
        count: how many positions a step reveals; the budget's plan if ``None``.
        tokens: how tokens are drawn; the policy's own way if ``None``.
        remask: what is taken back; what the policy itself takes back if ``None``.
        particles: several trajectories per sequence; one if ``None``.
        verifier: what may not be revealed while there is something else; with policies that
            rank positions, and nothing that takes tokens back.
        cache: which keys and values are kept from step to step; none if ``None``.
        deadline: with a count, what its running ahead of the budget's plan is worth to later
            steps; nothing if ``None``.
        backtrack: when a guess is taken back; never if ``None``. With policies that rank
            positions, and nothing else that takes tokens back or makes them wait.
        proofread: how blocks are read again once they are written; never if ``None``. With
            policies that rank positions, and nothing else that takes tokens back, follows a
            rule or keeps several trajectories.

    Raises:
        ValueError: parts that do not go together.
    """

    which: Policy
    count: Count | None = None
    tokens: Tokens | None = None
    remask: Remask | None = None
    particles: Particles | None = None
    verifier: Verifier | None = None
    cache: KVCache | None = None
    deadline: Deadline | None = None
    backtrack: Backtrack | None = None
    proofread: Proofread | None = None

    def __repr__(self) -> str:
        return repr_of(self, ("verifier", "cache", "deadline", "backtrack", "proofread"))

    def __post_init__(self) -> None:
        for place, kind in _KINDS.items():
            part = getattr(self, place)
            if not isinstance(part, kind) and (part is not None or place == "which"):
                raise TypeError(
                    f"{place} must be a {kind.__name__.lower()}, got {type(part).__name__}"
                )
        name = self.which.name
        if self.count is not None and not isinstance(self.which, Sampler):
            raise ValueError(
                f"count={self.count.name!r} needs a policy that ranks positions; {name} decides "
                "itself how many it reveals"
            )
        ancestral = isinstance(self.which, Ancestral) and self.which.renoises
        fits = isinstance(self.which, Sampler) or (
            ancestral and (self.remask is None or isinstance(self.remask, Renoise))
        )
        if self.remask is not None and not fits:
            raise ValueError(
                f"remask={self.remask.name!r} does not go with {name}, which decides itself what "
                "is taken back"
            )

        for part in self.ruled:
            if not isinstance(self.which, Sampler):
                raise ValueError(
                    f"{part.name} needs a policy that ranks positions; {name} decides itself what "
                    "it reveals"
                )
            if self.remask is not None:
                raise ValueError(
                    f"{part.name} does not go with remask={self.remask.name!r}, which counts what "
                    "it reveals and takes back"
                )
        if self.backtrack is not None and any((self.verifier, self.particles)):
            raise ValueError(
                "backtrack goes back where the rule is broken and decodes one trajectory: it does "
                "not go with verified, which writes what breaks the rule last, or with particles"
            )

        if self.proofread is not None:
            alone = isinstance(self.which, Sampler) and not self.which.takes_back
            if not alone or any((self.remask, self.particles, *self.ruled)):
                raise ValueError(
                    "proofread takes tokens back when a block is written: it needs a policy that "
                    "ranks positions, and nothing else that takes tokens back, follows a rule or "
                    f"keeps several trajectories, got {self!r}"
                )

        if self.deadline is not None and (self.count is None or self.remask is not None):
            raise ValueError(
                "deadline needs a count, which may reveal more than the budget plans, and no "
                f"remasking; got count={_named(self.count)}, remask={_named(self.remask)}"
            )

    @classmethod
    def of(cls, policy: Policy | Strategy) -> Strategy:
        """The policy as a strategy."""
        return policy if isinstance(policy, Strategy) else cls(policy)

    def with_nucleus(self, nucleus: Nucleus) -> Strategy:
        """This strategy, with a nucleus unless it names one."""
        tokens = self.tokens or Tokens()
        if tokens.nucleus is not None:
            return self
        return replace(self, tokens=replace(tokens, nucleus=nucleus))

    def writing(self, temperature: float | None, top_p: float | None) -> Tokens:
        """How a decode draws tokens: the caller's word first, then the strategy's, then the
        policy's.

        Raises:
            ValueError, TypeError: a number outside its range, or a nucleus of which nothing is
                drawn.
        """
        check_temperature(temperature)
        check_top_p(top_p)
        chosen = self.tokens or Tokens()
        if temperature is None:
            temperature = chosen.temperature
        if temperature is None:
            temperature = self.which.temperature
        chosen = replace(
            chosen, temperature=temperature, top_p=chosen.top_p if top_p is None else top_p
        )
        if chosen.top_p < 1.0 and chosen.temperature == 0.0:
            raise ValueError(
                f"top_p = {chosen.top_p} has no effect at temperature 0; give a temperature above 0"
            )
        return chosen

    def cached(self, kv_cache: str | None, refresh: int | None) -> KVCache:
        """The cache of a decode: the caller's word goes before the strategy's.

        Raises:
            ValueError: there is no such cache, or it cannot be refreshed.
        """
        if kv_cache is not None or self.cache is None:
            return cache_named(kv_cache or "none", refresh)
        return self.cache if refresh is None else replace(self.cache, refresh=refresh)

    @property
    def ruled(self) -> tuple[Ruled, ...]:
        """The parts that need a rule."""
        return tuple(part for part in (self.verifier, self.backtrack) if part is not None)

    def keeping_to(self, violated: Violated) -> Strategy:
        """This strategy with a rule for the parts that need one and have none."""
        verifier, backtrack = self.verifier, self.backtrack
        if verifier is not None and verifier.violated is None:
            verifier = replace(verifier, violated=violated)
        if backtrack is not None and backtrack.violated is None:
            backtrack = replace(backtrack, violated=violated)
        return replace(self, verifier=verifier, backtrack=backtrack)

    @property
    def keep(self) -> Keep:
        """What a forward keeps for the gradient of the same step."""
        return self.which.keep

    def steers(self, clock: Clock) -> bool:
        if self.count is not None:
            # It reveals what it finds itself, and leaves any number of them to the policy.
            clock = replace(clock, change=0)
        return self.which.steers(clock)

    def plan(self, planned: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens per step of a block, from what the budget has planned."""
        own = self.which.plan(planned)
        return own if self.remask is None else self.remask.plan(own)

    def duration(self, plan: tuple[int, ...]) -> int:
        """How many steps a block with this plan is expected to take."""
        return self.which.duration(plan)

    def least_steps(self, plan: tuple[int, ...]) -> int:
        """How many steps of a block are taken though no mask be left."""
        if self.which.takes_back or (self.remask is not None and isinstance(self.which, Ancestral)):
            return self.duration(plan)
        return max((k + 1 for k, change in enumerate(plan) if change < 0), default=0)

    @property
    def takes_back(self) -> bool:
        """Whether written tokens of the current block may become masks again."""
        return self.which.takes_back or any((self.remask, self.proofread))

    def observes(self, clock: Clock) -> bool:
        return self.which.observes(clock) or (
            self.remask is not None and self.remask.observes(clock)
        )

    def move(self, step: Step) -> Move:
        """What a step reveals, writes and takes back."""
        move = self._chosen(step)
        check_move(move, self.which, step)
        return move if self.verifier is None else self.verifier.allow(step, move)

    def _chosen(self, step: Step) -> Move:
        if self.count is None and self.remask is None:
            return self.which.move(step)
        if isinstance(self.which, Sampler):
            return choose(step, self.which, self.count, self.remask)
        assert isinstance(self.which, Ancestral)
        assert isinstance(self.remask, Renoise)
        return self.which.transition(step, self.remask)


def _named(part: Count | Remask | None) -> str:
    return "none" if part is None else part.name
