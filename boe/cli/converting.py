"""``boe convert``."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

from boe.cli.output import (
    check_json_path,
    console_for,
    emit_json,
    progress_on,
    silence_transformers,
)
from boe.denoisers.conversion import convert
from boe.denoisers.placement import dtype_named

SCHEMA = "boe/convert/1"
_GIB = 1 << 30


def run_convert(
    source: Path,
    output: Path,
    dtype: str,
    shard_gib: float,
    allow_pickle: bool,
    json_path: Path | None,
) -> None:
    """Rewrite a published checkpoint, and say what was written."""
    check_json_path(json_path)
    if not 0.0 < shard_gib < math.inf:
        raise ValueError(f"shard-size must be finite and above 0, got {shard_gib}")
    wanted = dtype_named(dtype)
    console = console_for(json_path)
    silence_transformers()
    with progress_on(console) as progress:
        bar = progress.add_task("converting", total=None)
        written = convert(
            source,
            output,
            dtype=wanted,
            shard_bytes=int(shard_gib * _GIB),
            allow_pickle=allow_pickle,
            on_tensor=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    console.print(
        f"{written.format}: {written.tensors} tensors, {written.bytes / _GIB:.2f} GiB in "
        f"{len(written.files)} file{'s' if len(written.files) > 1 else ''} in {output}"
    )
    emit_json(json_path, {"schema": SCHEMA, "output": str(output), **asdict(written)})
