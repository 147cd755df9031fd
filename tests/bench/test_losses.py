"""Where a rival was quicker: no shape is left out, and nothing counts that is no rival."""

from __future__ import annotations

import pytest

from bench.losses import losses, losses_on_cpu, losses_section, print_losses
from bench.results import Environment, Measurement, Quantiles, save


def took(provider, milliseconds, mode="backward", length=8, metric="time_ms"):
    value = None if milliseconds is None else Quantiles.of([milliseconds])
    return Measurement("attention", provider, mode, "float32", {"L": length}, metric, value)


def test_a_shape_is_lost_to_the_quickest_rival():
    found, contested = losses([took("ours", 2.0), took("dense", 1.5), took("two_call", 1.0)])
    ((loss,), count) = found, contested
    assert (loss.rival, loss.ratio, loss.shape, count) == ("two_call", 0.5, "L=8", 1)


@pytest.mark.parametrize(
    "other",
    [
        took("dense", 2.5),
        took("dense", None),
        took("dense", 1.0, mode="forward"),
        took("dense", 1.0, length=9),
        took("dense", 1.0, metric="peak_memory_mb"),
        took("roofline", 1.0),
        took("ours_by_hand", 1.0),
    ],
    ids=lambda m: f"{m.provider} {m.mode} {m.metric} {m.value and m.value.p50}",
)
def test_what_is_slower_elsewhere_or_no_rival_is_no_loss(other):
    assert losses([took("ours", 2.0), other])[0] == []


def test_the_worst_comes_first_and_what_may_be_noise_is_only_counted():
    rows = [took("ours", 1.0, length=n) for n in (1, 2, 3, 4)]
    rows += [took("dense", t, length=n) for n, t in ((1, 0.9), (2, 0.5), (3, 0.99), (4, 1.5))]
    lead, _, _, _, *lines = losses_section(rows)
    assert lead.startswith("At 2 of 4 shapes and modes a rival took, by medians, less than 95%")
    assert "at 1 more it took less" in lead
    assert [line.split(" | ")[3:] for line in lines] == [
        ["L=2", "dense", "0.50× |"],
        ["L=1", "dense", "0.90× |"],
    ]


def test_without_rivals_the_section_says_so():
    assert losses_section([took("ours", 1.0)]) == ["Nothing was timed beside a rival."]


def test_the_section_of_a_cpu_has_a_line_for_each_rival_and_mode(tmp_path):
    rows = [took("ours", 1.0, length=n) for n in (1, 2)]
    rows += [took("dense", t, length=n) for n, t in ((1, 0.9), (2, 0.5))]
    save(tmp_path / "attention-cpu.csv", rows, Environment("a CPU"))
    *_, line = losses_on_cpu(tmp_path).splitlines()
    assert line == "| attention | backward | dense | 2 | 0.50× | float32 L=2 |"


def test_the_terminal_is_told_too(capsys):
    print_losses([took("ours", 1.0), took("dense", 0.5)])
    assert "1 of 1 shapes and modes" in capsys.readouterr().out
