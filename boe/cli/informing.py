"""``boe info``."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

import boe_kernels
from boe.cli.output import check_json_path, console_for, emit_json, show_table
from boe.evaluate.environment import processor_name

SCHEMA = "boe/info/1"
_PACKAGES = ("boe-kernels", "torch", "triton", "transformers", "einops", "safetensors")


def run_info(json_path: Path | None) -> None:
    """Show and store versions, devices and the path that each op takes."""
    check_json_path(json_path)
    console = console_for(json_path)
    content = collect_info()
    table = Table(title="versions", show_header=False)
    for name, value in {"python": content["python"], **content["packages"]}.items():
        table.add_row(name, value or "not installed")
    table.add_row("native kernels", content["native_kernels"])
    show_table(console, table)
    table = Table(title="devices", show_header=False)
    for device in content["devices"]:
        table.add_row(device["device"], device["name"])
    show_table(console, table)
    table = Table(title="paths of float32 data")
    table.add_column("op", no_wrap=True)
    for name in ("device", "path", "passed over"):
        table.add_column(name)
    for row in content["paths"]:
        reasons = "\n".join(f"{path}: {why}" for path, why in row["rejected"].items())
        table.add_row(row["op"], row["device"], row["path"], reasons)
    show_table(console, table)
    emit_json(json_path, content)


def collect_info() -> dict[str, Any]:
    devices = [{"device": "cpu", "name": _cpu()}]
    devices += [
        {"device": f"cuda:{k}", "name": torch.cuda.get_device_name(k)}
        for k in range(torch.cuda.device_count())
    ]
    paths = []
    for op in boe_kernels.registered_ops():
        for device in devices:
            decision = boe_kernels.decide(op, "auto", torch.device(device["device"]), torch.float32)
            paths.append(
                {
                    "op": op,
                    "device": device["device"],
                    "path": decision.path,
                    "rejected": decision.rejected,
                }
            )
    return {
        "schema": SCHEMA,
        "python": platform.python_version(),
        # PyTorch's own version names its build, too.
        "packages": {name: _version(name) for name in _PACKAGES} | {"torch": torch.__version__},
        "native_kernels": boe_kernels.native_kernels(),
        "devices": devices,
        "paths": paths,
    }


def _cpu() -> str:
    return f"{processor_name()}, {torch.get_num_threads()} threads"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
