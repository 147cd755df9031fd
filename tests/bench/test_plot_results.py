"""Pictures of committed results."""

from __future__ import annotations

import pytest

from bench.plot import attention_on_gpu, draw_all, entropy_on_gpu, main, step_on_cpu
from bench.results import RESULTS, Environment, Measurement, Quantiles, save

H100 = Environment("NVIDIA H100 80GB HBM3")


def quantiles(value):
    return Quantiles(value, 0.9 * value, 1.1 * value)


def backward(provider, value, launch="graphed", **shape):
    config = {"B": 1, "H": 32, "Hkv": 32, "d": 128, "L": 1024, **shape}
    value = None if value is None else quantiles(value)
    return Measurement(
        "attention", provider, f"backward, {launch}", "bfloat16", config, "time_ms", value
    )


MEASURED = [
    *(backward("ours", 0.01 + active / 1e4, A=active) for active in (256, 16, 64)),
    *(backward("roofline", 0.008, A=active) for active in (16, 64, 256)),
    *(backward("gathered_aten", 0.03, A=active) for active in (16, 64)),
    backward("gathered_aten", None, A=256),
    backward("ours", 9.0, A=16, B=8),
    backward("ours", 8.0, "eager", A=16),
    backward("flash", 0.17),
    backward("cudnn", None),
]


def test_latency_is_drawn_against_the_active_rows_with_the_roofline():
    panel = next(attention_on_gpu(MEASURED, "graphed"))
    assert list(panel.curves) == ["ours", "gathered_aten", "roofline"]
    assert {at: value.p50 for at, value in panel.curves["ours"].items()} == {
        16: 0.01 + 16e-4,
        64: 0.01 + 64e-4,
        256: 0.01 + 256e-4,
    }
    assert sorted(panel.curves["gathered_aten"]) == [16, 64]
    assert {name: value.p50 for name, value in panel.levels.items()} == {"flash, dense": 0.17}


def test_entropy_is_drawn_against_the_rows():
    def row(count, provider):
        config = {"N": count, "V": 126_464}
        mode = "forward+backward, graphed"
        return Measurement(
            "entropy", provider, mode, "bfloat16", config, "time_ms", quantiles(count / 1e3)
        )

    measured = [row(count, provider) for provider in ("ours", "eager") for count in (64, 256)]
    (panel,) = entropy_on_gpu(measured)
    assert {name: sorted(points) for name, points in panel.curves.items()} == {
        "ours": [64, 256],
        "eager": [64, 256],
    }


def test_a_step_is_drawn_beside_its_ideal():
    def ratio(active):
        config = {"layers": 12, "L": 512, "A": active}
        value = quantiles(1.5)
        return Measurement("step", "replay/forward", "step", "float32", config, "ratio", value)

    (panel,) = step_on_cpu([ratio(32), ratio(256)])
    assert list(panel.curves) == ["replay", panel.bound]
    assert {at: value.p50 for at, value in panel.curves[panel.bound].items()} == {32: 1.125, 256: 2}


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_every_file_of_results_has_its_pictures(suffix, tmp_path):
    save(tmp_path / "nvidia-h100.csv", MEASURED, H100)
    save(tmp_path / "nvidia-h200-unverified.csv", MEASURED, H100)
    images = tmp_path / "img"
    drawn = draw_all(tmp_path, images, suffix)
    assert [path.name for path in drawn] == [f"nvidia-h100-attention-graphed{suffix}"]
    assert {path.name for path in images.iterdir()} == {path.name for path in drawn}


def test_the_same_results_give_the_same_file(tmp_path):
    save(tmp_path / "nvidia-h100.csv", MEASURED, H100)
    (first,) = draw_all(tmp_path, tmp_path / "a", ".svg")
    (second,) = draw_all(tmp_path, tmp_path / "b", ".svg")
    assert first.read_bytes() == second.read_bytes()
    text = first.read_text()
    assert "gathered_aten" in text
    assert "NVIDIA H100 80GB HBM3" in text


def test_the_committed_results_can_be_drawn(tmp_path):
    drawn = {path.name for path in draw_all(RESULTS, tmp_path, ".svg")}
    assert {"attention-cpu.svg", "step-cpu.svg"} <= drawn


def test_without_results_there_is_nothing_to_draw(tmp_path):
    with pytest.raises(SystemExit, match="nothing to draw"):
        main(["--results", str(tmp_path), "--output", str(tmp_path)])
