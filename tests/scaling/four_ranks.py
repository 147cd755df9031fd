"""What each of four ranks computes, whole and shared out. Run by ``test_four_ranks.py``.

``python four_ranks.py FOLDER``, as ``two_ranks.py``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from published_checkpoints import load_published
from torch.distributed.device_mesh import init_device_mesh
from two_ranks import compared, sharded_attention

from boe.denoisers.tensor_parallel import parallelise
from boe_kernels.sharding import register_sharding_rules


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "part"))
    line = init_device_mesh("cpu", (4,))
    register_sharding_rules()
    whole = load_published("dream", folder / f"whole{dist.get_rank()}").denoiser
    try:
        parallelise(whole, line)
        refusal = ""
    except ValueError as error:
        refusal = str(error)
    together = [("batch", "heads"), ("heads", "batch"), ("heads", "heads")]
    found = {
        "attention": sharded_attention(square, *together),
        "refusal": refusal,
        "two replicas of two parts": compared("llada", folder, square["part"]),
        "four parts": compared("dream", folder, line, num_attention_heads=8, num_key_value_heads=4),
    }
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(found, indent=1))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
