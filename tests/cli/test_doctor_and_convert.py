"""``boe doctor`` and ``boe convert``: what they find, print, write and exit with."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from foreign_models import ForeignModel
from published_checkpoints import CONFIGS, LLADA, MODELS, WORDS, random_state, write_checkpoint
from safetensors.torch import load_file, save_file
from tiny_checkpoints import save_tiny_bert
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

import boe.cli
import boe.denoisers.doctor.behaviour as behaviour_module
import boe.denoisers.doctor.peak_memory as peak_memory_module
from boe.cli.app import app
from boe.cli.doctoring import parse_shape
from boe.denoisers.attention_denoiser import AttentionDenoiser
from boe.denoisers.base import EntropyGradient
from boe.denoisers.doctor import Examination, Finding
from boe.denoisers.doctor.peak_memory import PeakMemory
from boe.denoisers.intercepted_model import InterceptedDenoiser

CHECKS = ["files", "format", "weights", "values", "vocabulary", "ids", "head"]
CHECKS += ["forward", "shift", "gradient"]
SENTENCE = " ".join(f"w{k}" for k in range(1, 20))


def save_words(folder: Path, count: int = WORDS) -> None:
    inner = Tokenizer(models.WordLevel({f"w{k}": k for k in range(count)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner).save_pretrained(folder)


def published(folder: Path, name: str = "llada", **changes: object) -> Path:
    config = {**CONFIGS[name], **changes}
    write_checkpoint(folder, config, random_state(CONFIGS[name], torch.float32))
    save_words(folder)
    return folder


def findings(folder: Path, **options: object) -> dict[str, Finding]:
    options.setdefault("text", SENTENCE)
    options.setdefault("shapes", ())
    return {finding.check: finding for finding in Examination(folder, **options).findings()}


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# --- what is found --------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_sound_checkpoint_passes_every_check(name: str, tmp_path: Path) -> None:
    found = findings(published(tmp_path, name), shapes=((2, 8),))
    assert list(found) == [*CHECKS, "step 2x8"]
    verdicts = {check: finding.verdict for check, finding in found.items()}
    # Random weights predict nothing, so that no reading of the logits stands out clearly.
    assert verdicts.pop("shift") in ("unknown", "ok", "failed")
    assert set(verdicts.values()) == {"ok"}
    assert "replay" in found["gradient"].detail
    assert "ms" in found["step 2x8"].detail


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its peak")
def test_the_peak_of_a_process_is_since_it_was_asked_for() -> None:
    mebibyte = 1 << 20
    torch.ones(256 * mebibyte, dtype=torch.uint8)
    before = PeakMemory(torch.device("cpu"))
    resting = before.so_far()
    if resting is None:
        pytest.skip("this kernel does not let a process reset its peak")
    memory = PeakMemory(torch.device("cpu"))
    torch.ones(128 * mebibyte, dtype=torch.uint8)
    assert 100 * mebibyte < memory.so_far() - resting < 200 * mebibyte


def test_the_peak_is_left_out_where_nothing_says(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(peak_memory_module, "_RESET", tmp_path / "absent" / "clear_refs")
    assert PeakMemory(torch.device("cpu")).so_far() is None


def test_transformers_own_models_are_examined_too(tmp_path: Path) -> None:
    found = findings(save_tiny_bert(tmp_path), text="the cat sat on a mat the dog ran to a house")
    assert found["format"].verdict == "ok"
    assert "replay, late, dense" in found["format"].detail
    assert found["gradient"].verdict == "ok"


def test_damaged_files_end_the_examination(tmp_path: Path) -> None:
    file = sorted(published(tmp_path).glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-8])
    found = findings(tmp_path)
    assert list(found) == ["files"]
    assert found["files"].verdict == "failed"
    assert file.name in found["files"].detail


def test_pickled_weights_are_a_finding_with_advice(tmp_path: Path) -> None:
    torch.save(random_state(LLADA, torch.float32), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(LLADA))
    save_words(tmp_path)
    refused = findings(tmp_path)["files"]
    assert refused.verdict == "failed"
    assert "--allow-pickle" in refused.advice
    allowed = findings(tmp_path, allow_pickle=True)
    assert allowed["files"].verdict == "warning"
    assert allowed["gradient"].verdict == "ok"


def test_weights_that_do_not_fit_end_the_examination(tmp_path: Path) -> None:
    found = findings(published(tmp_path, n_layers=2))
    assert list(found) == ["files", "format", "weights"]
    assert "9 unexpected" in found["weights"].detail


def test_an_unsupported_variant_is_named(tmp_path: Path) -> None:
    found = findings(published(tmp_path, alibi=True))
    assert found["format"].verdict == "failed"
    assert "alibi = True" in found["format"].detail


def test_code_of_its_own_is_not_run_without_leave(tmp_path: Path) -> None:
    folder = published(tmp_path, model_type="strange")
    found = findings(folder)
    assert found["format"].verdict == "failed"
    assert "trust_remote_code" in found["format"].detail


def test_the_wrong_tokenizer_is_noticed(tmp_path: Path) -> None:
    folder = published(tmp_path)
    save_words(folder, count=60)
    finding = findings(folder)["vocabulary"]
    assert finding.verdict == "failed"
    assert "id 44 has no row" in finding.detail


def test_without_a_tokenizer_what_needs_one_is_unknown(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, CONFIGS["mdlm"], random_state(CONFIGS["mdlm"]))
    found = findings(folder)
    assert found["vocabulary"].verdict == found["shift"].verdict == "unknown"
    assert found["vocabulary"].advice == "give --tokenizer"
    assert found["gradient"].verdict == "ok"


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"mask_token_id": 99}, "the mask is id 99, but the vocabulary has 44 rows"),
        ({"pad_token_id": 40}, "also the pad token"),
        ({"eos_token_id": [38, 40]}, "also the eos token"),
    ],
)
def test_impossible_ids_are_noticed(changes: dict, detail: str, tmp_path: Path) -> None:
    found = Examination(published(tmp_path, **changes), shapes=(), text=SENTENCE).findings()
    ids = next(finding for finding in found if finding.check == "ids")
    assert ids.verdict == "failed"
    assert detail in ids.detail


def test_ids_that_config_and_tokenizer_disagree_about_are_a_warning(tmp_path: Path) -> None:
    folder = published(tmp_path, eos_token_id=[37, 38])
    words = PreTrainedTokenizerFast.from_pretrained(folder)
    for token, verdict in (("w38", "ok"), ("w5", "warning")):
        words.eos_token = token
        words.save_pretrained(folder)
        finding = findings(folder)["ids"]
        assert finding.verdict == verdict
        assert "eos 37 or 38" in finding.detail
    assert "eos is 5 to the tokenizer" in finding.detail


def test_weights_of_transformers_own_models_are_looked_at_too(tmp_path: Path) -> None:
    state = load_file(save_tiny_bert(tmp_path) / "model.safetensors")
    name = next(name for name in state if "query.weight" in name)
    state[name][0, 0] = torch.inf
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = findings(tmp_path)
    assert list(found) == ["files", "values"]
    assert f"{name} holds NaN or infinity" in found["values"].detail


def test_an_untied_head_that_equals_the_embeddings_is_suspicious(tmp_path: Path) -> None:
    state = random_state(LLADA, torch.float32)
    state["model.transformer.ff_out.weight"] = state["model.transformer.wte.weight"].clone()
    save_words(write_checkpoint(tmp_path, LLADA, state))
    assert findings(tmp_path)["head"].verdict == "warning"


def test_weights_that_are_not_finite_end_the_examination(tmp_path: Path) -> None:
    state = random_state(LLADA, torch.float32)
    state["model.transformer.ln_f.weight"][3] = torch.nan
    save_words(write_checkpoint(tmp_path, LLADA, state))
    found = findings(tmp_path)
    assert found["values"].verdict == "failed"
    assert "ln_f.weight holds NaN" in found["values"].detail
    assert "forward" not in found


def test_matrices_of_zeros_are_suspicious(tmp_path: Path) -> None:
    state = random_state(LLADA, torch.float32)
    state["model.transformer.blocks.1.k_proj.weight"].zero_()
    save_words(write_checkpoint(tmp_path, LLADA, state))
    finding = findings(tmp_path)["values"]
    assert finding.verdict == "warning"
    assert "1 matrices of zeros: model.transformer.blocks.1.k_proj.weight" in finding.detail


def test_logits_that_overflow_are_noticed(tmp_path: Path) -> None:
    state = random_state(LLADA, torch.float32)
    state["model.transformer.ff_out.weight"] *= 1e38
    state["model.transformer.ln_f.weight"] *= 1e3
    save_words(write_checkpoint(tmp_path, LLADA, state))
    found = findings(tmp_path)
    failed = found.get("forward", found.get("loading"))
    assert failed is not None
    assert failed.verdict == "failed"
    assert "gradient" not in found


def copying_state(shift: int) -> dict[str, torch.Tensor]:
    """Blocks that add nothing: the row that holds w_k says w_{k − shift}."""
    state = random_state(LLADA, torch.float32)
    for name, tensor in state.items():
        if "blocks" in name and "norm" not in name:
            tensor.zero_()
    table = state["model.transformer.wte.weight"]
    head = state["model.transformer.ff_out.weight"]
    unit = torch.nn.functional.normalize(table, dim=1)
    head.copy_(6.0 * unit.roll(-shift, dims=0))
    return state


def test_a_reading_of_the_logits_that_fits_a_text_far_better_is_noticed(tmp_path: Path) -> None:
    # Row j − 1 holds w_{j−1} and says w_j, where row j is masked and says nothing.
    save_words(write_checkpoint(tmp_path, LLADA, copying_state(-1)))
    wrong = findings(tmp_path)["shift"]
    assert wrong.verdict == "failed"
    assert wrong.advice == "build the denoiser with logits_shift=-1"
    assert "shift 0:" in wrong.detail


def test_a_model_that_guesses_worse_than_chance_says_nothing_of_the_shift(tmp_path: Path) -> None:
    found = findings(published(tmp_path))["shift"]
    assert found.verdict == "unknown"
    assert "; chance 3.64" in found.detail, "log of the 38 words that may be written"
    assert "untrained weights" in (found.advice or "")


def test_an_engine_that_disagrees_with_the_dense_gradient_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradient = AttentionDenoiser.entropy_gradient

    def wrong(self: AttentionDenoiser, prediction: object, request: object) -> EntropyGradient:
        result = gradient(self, prediction, request)  # type: ignore[arg-type]
        if request.engine == "replay":  # type: ignore[attr-defined]
            result.gradient.mul_(1.01)
        return result

    folder = published(tmp_path)
    monkeypatch.setattr(AttentionDenoiser, "entropy_gradient", wrong)
    finding = findings(folder)["gradient"]
    assert finding.verdict == "failed"
    assert "replay 1.0e-02" in finding.detail


@pytest.mark.parametrize("variant", ["plain", "unmasked"])
def test_a_model_with_code_of_its_own_is_told_what_it_cannot_do(
    variant: str, tmp_path: Path
) -> None:
    model = ForeignModel(variant)
    denoiser = InterceptedDenoiser(model, 0, table=model.words, head=model.last)
    behaviour = Examination(tmp_path, shapes=((1, 8),))._behaviour(denoiser, None)
    found = {finding.check: finding for finding in behaviour}
    if variant == "unmasked":
        assert list(found) == ["forward"]
        assert found["forward"].advice == "decode sequences of one length together, without padding"
        return
    assert found["gradient"].verdict == "warning"
    assert "cannot be replayed" in found["gradient"].detail
    assert "late step" in found["step 1x8"].detail


def test_a_canvas_too_long_for_the_model_is_a_finding(tmp_path: Path) -> None:
    found = findings(published(tmp_path), shapes=((1, 99),))
    assert found["step 1x99"].verdict == "failed"
    assert "40 positions" in found["step 1x99"].detail


def test_running_out_of_memory_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = published(tmp_path)

    def exhausted(*args: object) -> float:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(behaviour_module, "_seconds", exhausted)
    finding = findings(folder, shapes=((1, 8),))["step 1x8"]
    assert finding.verdict == "failed"
    assert "smaller batch" in finding.advice


# --- the commands ---------------------------------------------------------------------


def test_doctor_prints_a_verdict_per_check_and_exits_with_0(tmp_path: Path) -> None:
    result = invoke("doctor", published(tmp_path), "--shape", "2x8", "--text", "w1")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    for check in CHECKS:
        assert any(line[:2] == ["ok", check] for line in lines) or check == "shift"
    assert any(line[:2] == ["unknown", "shift"] for line in lines)


def test_doctor_exits_with_1_if_a_check_fails_and_says_what_to_do(tmp_path: Path) -> None:
    result = invoke("doctor", published(tmp_path, mask_token_id=99))
    assert result.exit_code == 1
    assert "→ give --mask-id" in result.stdout


def test_doctor_writes_its_findings_as_json(tmp_path: Path) -> None:
    folder = published(tmp_path / "model")
    result = invoke("doctor", folder, "--text", "w1", "--json", "-")
    content = json.loads(result.stdout)
    assert content["schema"] == "boe/doctor/1"
    assert content["healthy"] is True
    assert [finding["check"] for finding in content["findings"]][:3] == CHECKS[:3]
    assert set(content["findings"][0]) == {"check", "verdict", "detail", "advice"}


@pytest.fixture
def fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Runs the program to its failure: (exit code, what it said on standard error)."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["boe", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            boe.cli.main()
        return int(caught.value.code), capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shape", "8"], "shape must be BATCHxLENGTH such as 4x1024, got '8'"),
        (["--shape", "0x8"], "shapes must be at least 1x4, got 0x8"),
        (["--dtype", "int8"], "dtype must be one of"),
    ],
)
def test_doctor_refuses_bad_options_in_one_line(
    options: list[str], message: str, tmp_path: Path, fail: Callable[..., tuple[int, str]]
) -> None:
    code, said = fail("doctor", published(tmp_path), *options)
    assert code == 1
    assert message in said
    assert said.count("\n") == 1


def test_doctor_of_a_folder_that_is_not_there_says_so(
    tmp_path: Path, fail: Callable[..., tuple[int, str]]
) -> None:
    assert "is not a directory" in fail("doctor", tmp_path / "nowhere")[1]


def test_a_shape_is_a_batch_and_a_length() -> None:
    assert parse_shape("4x1024") == parse_shape("4 X 1024") == (4, 1024)


def test_convert_rewrites_a_checkpoint_that_doctor_then_passes(tmp_path: Path) -> None:
    source = published(tmp_path / "published")
    result = invoke("convert", source, tmp_path / "new", "--dtype", "bfloat16", "--json", "-")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["schema"] == "boe/convert/1"
    assert content["format"] == "llada"
    stored = load_file(tmp_path / "new" / "model.safetensors")
    assert stored["lm_head.weight"].dtype == torch.bfloat16
    assert invoke("doctor", tmp_path / "new", "--text", "w1").exit_code == 0


def test_convert_refuses_a_pickle_in_one_line(
    tmp_path: Path, fail: Callable[..., tuple[int, str]]
) -> None:
    folder = published(tmp_path / "p")
    state = {}
    for file in folder.glob("*.safetensors"):
        state |= load_file(file)
        file.unlink()
    (folder / "model.safetensors.index.json").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    code, said = fail("convert", folder, tmp_path / "c")
    assert code == 1
    assert "--allow-pickle" in said
    assert said.count("\n") == 1
    assert invoke("convert", folder, tmp_path / "c", "--allow-pickle").exit_code == 0


def test_convert_splits_into_shards_of_the_asked_size(tmp_path: Path) -> None:
    source = published(tmp_path / "p")
    size = 40_000 / (1 << 30)
    result = invoke("convert", source, tmp_path / "c", "--shard-size", size)
    assert result.exit_code == 0, result.output
    shards = sorted((tmp_path / "c").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert all(file.stat().st_size < 50_000 for file in shards)
    shutil.rmtree(source)
    save_file({}, tmp_path / "unrelated.safetensors")
    assert findings(tmp_path / "c")["weights"].verdict == "ok"
