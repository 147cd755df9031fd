"""One of two processes that evaluate one model: ``python shared_model.py CHECKPOINT FOLDER``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from toy_lm import continuation, generation

from boe.lm_eval.model import BoeLM


def answers(lm: BoeLM) -> dict[str, Any]:
    """What is asked of the model; the third prompt is too long for it."""
    prompts = ["w1 w2", "w3 w4 w5", "w1 " * 60, "w9"]
    requests = [
        generation(text, doc=k, max_gen_toks=6, do_sample=True, temperature=1.0)
        for k, text in enumerate(prompts)
    ]
    return {
        "texts": lm.generate_until(requests, disable_tqdm=True),
        "bounds": lm.loglikelihood([continuation("w1 w2", " w3 w4 w5")], disable_tqdm=True),
        "costs": [[record.doc, record.nfe_forward, record.error] for record in lm.costs.records],
    }


def lm_of(checkpoint: str, folder: str | None, processes: int) -> BoeLM:
    return BoeLM(
        pretrained=checkpoint,
        device="cpu",
        dtype="float64",
        batch_size=2,
        mc_num=4,
        costs=folder,
        failures="keep",
        tensor_parallel=processes,
    )


if __name__ == "__main__":
    lm = lm_of(sys.argv[1], sys.argv[2], 2)
    assert (lm.rank, lm.world_size) == (0, 1)
    if lm.group.leads:  # type: ignore[union-attr]
        found = answers(lm)
        lm.dismiss()
        (Path(sys.argv[2]) / "found.json").write_text(json.dumps(found))
    else:
        lm.follow()
        assert lm.costs.records == []
