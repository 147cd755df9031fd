"""The compiled library: that it is there, how it is loaded, and what happens without it."""

from __future__ import annotations

import _ctypes
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import boe_kernels
from boe_kernels import _native_library, decide, entropy_stats, linear_entropy
from boe_kernels._native import why_not_native
from boe_kernels._native_library import FILE_NAME, NativeLibrary, UnusableLibraryError, load_library
from boe_kernels.entropy import op as entropy

CPU = torch.device("cpu")
ROOT = Path(boe_kernels.__file__).parent.parent
NATIVE_OPS = ("entropy_stats", "linear_entropy", "inject_soft_embeddings(top_k)")

needs_the_library = pytest.mark.skipif(
    _native_library.LIBRARY is None, reason=f"native kernels: {_native_library.WHY_NOT}"
)


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def is_installed() -> bool:
    try:
        distribution("boe-kernels")
    except PackageNotFoundError:
        return False
    return True


@pytest.mark.skipif(not is_installed(), reason="the package is not installed")
@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler"
)
def test_where_there_is_a_compiler_the_library_was_built():
    # Otherwise every other test of the native kernels would be skipped without a word.
    assert _native_library.WHY_NOT is None


# --- a library that fits ------------------------------------------------------------


@needs_the_library
def test_the_fastest_variant_that_this_processor_runs_is_taken():
    library = _native_library.library()
    assert library.variant == next(iter(library.variants))
    assert list(library.variants.values()) == sorted(library.variants.values())


@needs_the_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("op", NATIVE_OPS)
def test_it_is_preferred_on_the_cpu(op, dtype):
    assert decide(op, "auto", CPU, dtype).path == "native"


def test_other_devices_and_float64_have_their_reason():
    assert why_not_native(torch.device("cuda"), torch.float32) == "needs the CPU, got cuda"
    assert "got torch.float64" in str(why_not_native(CPU, torch.float64))
    for op in NATIVE_OPS:
        decision = decide(op, "auto", CPU, torch.float64)
        assert decision.path == "library"
        assert decision.rejected["native"] == why_not_native(CPU, torch.float64)


@needs_the_library
def test_running_out_of_memory_is_an_error():
    library = _native_library.library()
    full = SimpleNamespace(boe_entropy_gradient=lambda *arguments: 1)
    with pytest.raises(MemoryError, match="boe_entropy_gradient"):
        NativeLibrary(full, library.variants, library.variant, True).run("boe_entropy_gradient")


@needs_the_library
def test_the_first_calls_load_it_even_if_several_threads_make_them_at_once():
    program = """
import sys, threading, torch
from boe_kernels import entropy_stats, observe_paths

assert "boe_kernels._native_library" not in sys.modules
logits = torch.randn(20, 9000)
start, results = threading.Barrier(8), []

def call():
    start.wait()
    with observe_paths() as seen:
        results.append((entropy_stats(logits).entropy, seen))

threads = [threading.Thread(target=call) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(results) == 8
assert all(torch.equal(entropy, results[0][0]) for entropy, _ in results)
assert all(seen == [("entropy_stats", "native")] for _, seen in results)
"""
    run(program)


@needs_the_library
def test_a_compiled_graph_may_be_the_first_to_load_it():
    program = """
import sys, torch
from boe_kernels import entropy_stats, observe_paths

compiled = torch.compile(
    lambda x: entropy_stats(x).entropy.sum(), fullgraph=True, backend="aot_eager"
)
assert "boe_kernels._native_library" not in sys.modules
x = torch.randn(3, 50, requires_grad=True)
with observe_paths() as seen:
    compiled(x).backward()
assert seen == [("entropy_stats", "native"), ("entropy_stats_backward", "native")]
"""
    run(program)


@needs_the_library
def test_a_forked_process_with_one_thread_computes_after_its_parent_used_several():
    # As in the workers of a data loader. (More threads would hang in any use of OpenMP.)
    program = """
import os, torch
from boe_kernels import entropy_stats

torch.set_num_threads(2)
logits = torch.randn(64, 9000)
expected = entropy_stats(logits, backend="native").entropy
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    same = torch.equal(entropy_stats(logits, backend="native").entropy, expected)
    os._exit(0 if same else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    run(program)


# --- a library that does not fit, or none -------------------------------------------


def test_a_missing_library_is_a_reason(tmp_path):
    with pytest.raises(UnusableLibraryError, match="not built"):
        load_library([tmp_path, tmp_path / "nowhere"])


def test_a_file_that_is_no_library_is_a_reason(tmp_path):
    (tmp_path / FILE_NAME).write_text("not a library")
    with pytest.raises(UnusableLibraryError, match=f"{FILE_NAME} cannot be loaded: "):
        load_library([tmp_path])


@needs_the_library
def test_a_library_of_another_version_is_a_reason(monkeypatch):
    monkeypatch.setattr(_native_library, "ABI_VERSION", 999)
    with pytest.raises(UnusableLibraryError, match=r"version \d+ where 999 is needed: install"):
        load_library(boe_kernels.__path__)


@pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="there are no sources here")
def test_the_two_interface_versions_in_the_sources_agree():
    header = (ROOT / "csrc" / "boe_kernels.h").read_text()
    (declared,) = re.findall(r"#define BOE_ABI_VERSION (\d+)", header)
    assert int(declared) == _native_library.ABI_VERSION


def test_another_library_of_the_same_name_is_a_reason(tmp_path):
    shutil.copy(_ctypes.__file__, tmp_path / FILE_NAME)
    with pytest.raises(UnusableLibraryError, match=r"cannot be loaded: .*boe_abi_version"):
        load_library([tmp_path])


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native_library, "LIBRARY", None)
    monkeypatch.setattr(_native_library, "WHY_NOT", "not built")


@pytest.mark.usefixtures("no_library")
def test_without_it_the_library_path_runs_and_says_why():
    logits = torch.randn(3, 5)
    for op in NATIVE_OPS:
        decision = decide(op, "auto", CPU, torch.float32)
        assert (decision.path, decision.rejected["native"]) == ("library", "not built")
    expected = entropy_stats(logits, backend="library")
    assert torch.equal(entropy_stats(logits).entropy, expected.entropy)
    with pytest.raises(ValueError, match="backend='native' cannot run linear_entropy: not built"):
        linear_entropy(logits, logits, backend="native")
    with pytest.raises(RuntimeError, match="the native kernels cannot run: not built"):
        entropy.forward_op(logits, None, "native")


def test_a_checkout_that_was_never_built_works():
    # The folder alone, without the import hook of an editable installation.
    program = f"""
import sys
sys.meta_path = [f for f in sys.meta_path if not type(f).__module__.startswith("_editable")]
sys.path.insert(0, {str(ROOT)!r})
import torch, boe_kernels
assert boe_kernels.__path__ == [{str(ROOT / "boe_kernels")!r}], boe_kernels.__path__
logits = torch.randn(3, 5, requires_grad=True)
with boe_kernels.observe_paths() as seen:
    boe_kernels.entropy_stats(logits).entropy.sum().backward()
print(*(path for _, path in seen))
print(boe_kernels.decide("entropy_stats", "auto", logits.device, logits.dtype))
"""
    paths, decision = run(program).splitlines()
    if (ROOT / "boe_kernels" / FILE_NAME).exists():
        assert paths == "native native"
    else:
        assert paths == "library library"
        assert "not native: not built" in decision
