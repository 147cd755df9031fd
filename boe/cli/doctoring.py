"""``boe doctor``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from boe.cli.output import check_json_path, console_for, emit_json, silence_transformers
from boe.denoisers.doctor import TEXT, Examination, Finding
from boe.denoisers.placement import dtype_named, require_device

SCHEMA = "boe/doctor/1"
_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red", "unknown": "cyan"}


def run_doctor(
    model: Path,
    shapes: Sequence[str],
    device: str,
    dtype: str,
    mask_id: int | None,
    tokenizer: str | None,
    text: str | None,
    allow_pickle: bool,
    trust_remote_code: bool,
    json_path: Path | None,
) -> bool:
    """Examine a checkpoint directory; whether no check failed."""
    check_json_path(json_path)
    if not model.is_dir():
        raise FileNotFoundError(f"{model} is not a directory")
    examination = Examination(
        model,
        device=require_device(device),
        dtype=dtype_named(dtype),
        mask_id=mask_id,
        tokenizer=tokenizer,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
        shapes=tuple(parse_shape(shape) for shape in shapes),
        text=TEXT if text is None else text,
    )
    console = console_for(json_path)
    silence_transformers()
    findings = []
    for finding in examination.findings():
        findings.append(finding)
        _show(console, finding)
    healthy = all(finding.verdict != "failed" for finding in findings)
    emit_json(
        json_path,
        {
            "schema": SCHEMA,
            "model": str(model),
            "healthy": healthy,
            "findings": [asdict(finding) for finding in findings],
        },
    )
    return healthy


def parse_shape(text: str) -> tuple[int, int]:
    """(batch, length) from "4x1024".

    Raises:
        ValueError: it has another form.
    """
    batch, found, length = text.lower().partition("x")
    if not (found and batch.strip().isdigit() and length.strip().isdigit()):
        raise ValueError(f"shape must be BATCHxLENGTH such as 4x1024, got {text!r}")
    return int(batch), int(length)


def _show(console: Console, finding: Finding) -> None:
    line = Text(f"{finding.verdict:8}", style=_STYLES[finding.verdict])
    line.append(f"{finding.check:12} ", style="bold")
    line.append(finding.detail, style="default")
    console.print(line, soft_wrap=True)
    if finding.advice:
        console.print(Text(f"{'':21}→ {finding.advice}", style="dim"), soft_wrap=True)
