"""Run as a program, with a GPU: after a warm-up every op is captured in a CUDA graph at once.

Its first calls are those that are captured: what they needed would have to be compiled then.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from op_calls import HEADS, KEY_HEADS, OP_CALLS, WIDTH, Size
from triton import knobs

from boe_kernels import AttentionPlan, VocabularyPlan, warmup

SIZE = Size(batch=2, length=300, active=17, vocabulary=131)
ATTENTION = AttentionPlan(HEADS, WIDTH, SIZE.length, kv_heads=KEY_HEADS, ragged=True)
QUERY = replace(ATTENTION, ops=("active_query_attention",))
ROWS = SIZE.batch * SIZE.active
PLANS = (
    ATTENTION,
    replace(QUERY, window=19, compact_dq=True),
    replace(QUERY, block_size=16, grad_rows="keys"),
    VocabularyPlan(SIZE.vocabulary, 48, ROWS, top_k=5, gate="positive", normalise="zscore"),
    VocabularyPlan(SIZE.vocabulary, 48, ROWS, suppressed=1, ops=("entropy_stats",)),
)
FUSED = VocabularyPlan(SIZE.vocabulary, 48, ROWS, ops=("inject_soft_embeddings",))


def main() -> None:
    device = torch.device("cuda")
    report = warmup(*PLANS, backend="triton")
    print(report)
    assert report.compiled > 20, report.compiled
    again = warmup(*PLANS, backend="triton")
    assert again.compiled == 0, f"a second warm-up made {again.compiled} binaries"
    assert again.binaries == report.binaries
    warmup(FUSED, backend="triton_fused")

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # What PyTorch sets up at its own first product and backward is its own affair.
        x = torch.ones(16, 16, device=device, dtype=torch.bfloat16, requires_grad=True)
        (x @ x).sum().backward()
    stream.synchronize()

    made: list[str] = []
    knobs.runtime.jit_post_compile_hook = lambda **facts: made.append(str(facts["repr"]))
    for name, call in OP_CALLS.items():
        with torch.cuda.stream(stream):
            inputs = call.draw(SIZE, torch.bfloat16, device, 0)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = call.run(*inputs)
        assert not made, f"{name} compiled {made}"
        graph.replay()
        torch.cuda.synchronize()
        for number, (mine, eager) in enumerate(zip(captured, call.run(*inputs), strict=True)):
            same = torch.equal(mine.nan_to_num(), eager.nan_to_num())
            assert same, f"{name}: result {number} of the graph is another"
        graph.reset()
        print(f"captured {name}", flush=True)
    print("all captured")


if __name__ == "__main__":
    main()
