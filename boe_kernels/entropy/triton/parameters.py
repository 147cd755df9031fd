"""Launch parameters of the vocabulary kernels, and how a row is cut up."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from boe_kernels._triton import for_device
from boe_kernels.entropy.triton.statistics import LOADS_PER_LANE

PARTS = 8
"""Parts of a row at most: enough for a single row to occupy several multiprocessors."""

MOST_LISTED = 4
"""Up to so many suppressed ids are compared one by one; more become a byte per id."""


LOGITS_PER_THREAD = 4
"""In one load: 16 bytes of float32, 8 of the halves, whose sums need the registers."""


@dataclass(frozen=True)
class VocabularyLaunch:
    """Launch parameters of one architecture.

    Attributes:
        warps: warps per program.
        threads: threads per warp.
        whole_rows: from this many rows on, a program reads a whole row; with fewer, the
            parts of a row are read by as many programs. A matter of speed only.
        gradient_loads: loads per thread and program of the gradient kernel.
    """

    warps: int
    threads: int
    whole_rows: int
    gradient_loads: int

    @property
    def lanes(self) -> int:
        """Logits that a program reads side by side."""
        return self.warps * self.threads * LOGITS_PER_THREAD


# whole_rows: two programs per multiprocessor (compute unit). Chosen by the cost model of
# docs/kernels.md, not tuned on the hardware.
LAUNCH = {
    "sm_80": VocabularyLaunch(warps=8, threads=32, whole_rows=216, gradient_loads=4),
    "sm_90": VocabularyLaunch(warps=8, threads=32, whole_rows=264, gradient_loads=4),
    "sm_100": VocabularyLaunch(warps=4, threads=32, whole_rows=296, gradient_loads=4),
    "gfx942": VocabularyLaunch(warps=4, threads=64, whole_rows=608, gradient_loads=4),
}


@dataclass(frozen=True)
class RowCut:
    """Where a row of logits is cut: a function of the vocabulary alone."""

    part_tiles: int
    """Tiles of ``LOADS_PER_LANE`` × ``lanes`` logits in a part."""
    parts: int

    @classmethod
    def of(cls, vocabulary: int, launch: VocabularyLaunch) -> RowCut:
        tiles = -(-vocabulary // (LOADS_PER_LANE.value * launch.lanes))
        part_tiles = -(-tiles // PARTS)
        return cls(part_tiles, -(-tiles // part_tiles))


def launch_parameters(logits: torch.Tensor) -> VocabularyLaunch:
    return for_device(LAUNCH, logits.device)


def suppressed_form(
    suppressed_ids: torch.Tensor | None, logits: torch.Tensor
) -> tuple[torch.Tensor, int]:
    """The suppressed ids as the kernels take them: a list, or a byte for every id.

    Returns:
        A tensor, and how many ids it lists; −1 where it holds bytes. Without ids the
        tensor is not read.
    """
    if suppressed_ids is None or suppressed_ids.numel() == 0:
        return logits, 0
    if suppressed_ids.numel() <= MOST_LISTED:
        return suppressed_ids.contiguous(), suppressed_ids.numel()
    flags = torch.zeros(logits.shape[-1], dtype=torch.uint8, device=logits.device)
    return flags.index_fill_(0, suppressed_ids, 1), -1
