"""Checkpoint directories: what is said when one is damaged or does not fit, conversion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from published_checkpoints import (
    CONFIGS,
    DREAM,
    LLADA,
    LLADA2,
    MASK,
    MODELS,
    SDAR,
    WORDS,
    random_state,
    save_words,
    write_checkpoint,
)
from safetensors.torch import load_file, save_file
from tiny_checkpoints import save_tiny_bert
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2ForCausalLM

import boe.denoisers.checkpoint as checkpoint_module
from boe import load_model
from boe.canvas import Canvas
from boe.denoisers import UnsupportedModel
from boe.denoisers.attention_denoiser import AttentionDenoiser
from boe.denoisers.checkpoint import Checkpoint, CheckpointError
from boe.denoisers.conversion import convert
from boe.denoisers.intercepted_model import InterceptedDenoiser
from boe.denoisers.loading import build_published
from boe.denoisers.published import blueprint_of
from boe.denoisers.weights import load_weights

INDEX = "model.safetensors.index.json"
IDS = torch.arange(12) % WORDS
IDS[3::4] = MASK
POSITIONS = torch.tensor([[3, 7, 11]])


def built(folder: Path, **options: object) -> AttentionDenoiser:
    checkpoint = Checkpoint.open(folder, **options)
    blueprint = blueprint_of(checkpoint.config)
    assert blueprint is not None
    return build_published(checkpoint, blueprint, MASK)


def logits(denoiser: AttentionDenoiser) -> Tensor:
    return denoiser.predict(Canvas.of(IDS), POSITIONS).logits


def shard(folder: Path, number: int = 1) -> Path:
    return folder / f"model-{number:05d}-of-00003.safetensors"


# --- whole and damaged checkpoints ----------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_arrive_unchanged_in_their_own_dtype(
    dtype: torch.dtype, shards: int, tmp_path: Path
) -> None:
    state = random_state(LLADA, dtype)
    model = built(write_checkpoint(tmp_path, LLADA, state, shards)).model
    ours = model.state_dict()
    assert {t.dtype for t in ours.values()} == {dtype}
    assert torch.equal(ours["lm_head.weight"], state["model.transformer.ff_out.weight"])
    name = "model.transformer.blocks.2.up_proj.weight"
    assert torch.equal(ours["model.layers.2.mlp.up_proj.weight"], state[name])


def test_a_dtype_can_be_asked_for(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, LLADA, random_state(LLADA)))
    blueprint = blueprint_of(LLADA)
    assert blueprint is not None
    model = blueprint.build()
    load_weights(checkpoint, model, blueprint.keys, dtype=torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_mixed_dtypes_ask_for_one(tmp_path: Path) -> None:
    state = random_state(LLADA, torch.float32)
    name = "model.transformer.wte.weight"
    state[name] = state[name].to(torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"several floating dtypes.*bfloat16, float32.*give"):
        built(write_checkpoint(tmp_path, LLADA, state))


def test_tensors_are_read_one_at_a_time_shard_by_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path, LLADA, random_state(LLADA))
    order: list[str] = []
    read = checkpoint_module._read_safetensors

    def watched(file: Path, *others: object):
        order.append(file.name)
        yield from read(file, *others)

    monkeypatch.setattr(checkpoint_module, "_read_safetensors", watched)
    model = built(folder).model
    assert order == [shard(folder, k).name for k in (1, 2, 3)]
    assert not any(p.is_meta for p in model.parameters())


def test_weights_outlive_the_files_they_came_from(tmp_path: Path) -> None:
    denoiser = built(write_checkpoint(tmp_path, LLADA, random_state(LLADA)))
    before = logits(denoiser)
    for file in tmp_path.glob("*.safetensors"):
        file.write_bytes(b"\0" * file.stat().st_size)
    assert torch.equal(logits(denoiser), before)


@pytest.mark.parametrize("name", MODELS)
def test_missing_unexpected_and_misshaped_weights_are_named_before_any_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIGS[name]
    state = random_state(config)
    names = [k for k in state if not k.endswith("inv_freq")]
    state["extra.weight"] = torch.zeros(2)
    del state[names[4]]
    state[names[5]] = torch.zeros(7, 3)
    folder = write_checkpoint(tmp_path, config, state)
    monkeypatch.setattr(Checkpoint, "stream", lambda *a: pytest.fail("weights were read"))
    with pytest.raises(CheckpointError) as caught:
        built(folder)
    message = str(caught.value)
    assert f"1 missing: {names[4]}" in message
    assert "1 unexpected: extra.weight" in message
    assert f"1 of another shape: {names[5]} is [7, 3], not [" in message


def test_a_layer_too_many_is_unexpected_and_long_lists_are_cut(tmp_path: Path) -> None:
    state = random_state({**LLADA, "n_layers": 4})
    with pytest.raises(CheckpointError, match=r"9 unexpected: .* and 4 more"):
        built(write_checkpoint(tmp_path, LLADA, state))


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, LLADA, random_state(LLADA))
    content = shard(folder, 2).read_bytes()
    for length in (len(content) - 100, 40, 0):
        shard(folder, 2).write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"00002-of-00003.*damaged or incomplete"):
            Checkpoint.open(folder)


def test_a_shard_that_is_cut_off_while_it_is_read_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, LLADA, random_state(LLADA))
    checkpoint = Checkpoint.open(folder)
    shard(folder, 3).write_bytes(shard(folder, 3).read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="00003-of-00003"):
        list(checkpoint.stream())


def test_an_absent_shard_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, LLADA, random_state(LLADA))
    shard(folder, 2).unlink()
    with pytest.raises(CheckpointError, match=r"shard model-00002-of-00003\.safetensors is absent"):
        Checkpoint.open(folder)


def test_tensors_that_the_index_promises_and_no_shard_holds_are_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, LLADA, random_state(LLADA))
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["ghost.weight"] = shard(folder).name
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"names tensors no shard holds: ghost\.weight"):
        Checkpoint.open(folder)


def test_of_a_tensor_in_two_shards_the_one_that_the_index_names_is_read(tmp_path: Path) -> None:
    state = random_state(LLADA)
    folder = write_checkpoint(tmp_path, LLADA, state)
    name = next(iter(json.loads((folder / INDEX).read_text())["weight_map"]))
    stale = load_file(shard(folder, 3)) | {name: torch.full_like(state[name], 7.0)}
    save_file(stale, shard(folder, 3))
    stored = Checkpoint.open(folder)
    assert stored.tensors[name].file == shard(folder, 1)
    assert torch.equal(dict(stored.stream())[name], state[name])


def test_a_model_whose_weights_are_nan_is_refused_as_that(tmp_path: Path) -> None:
    state = random_state(LLADA)
    state["model.transformer.blocks.1.ff_out.weight"][0, 0] = torch.nan
    with pytest.raises(UnsupportedModel, match="logits of LlamaForCausalLM are NaN"):
        built(write_checkpoint(tmp_path, LLADA, state))


def test_a_published_checkpoint_without_its_tokenizer_is_told_apart_from_a_damaged_one(
    tmp_path: Path,
) -> None:
    folder = write_checkpoint(tmp_path, LLADA, random_state(LLADA))
    with pytest.raises(
        FileNotFoundError, match=r"holds no tokenizer \(tokenizer\.json, .+\); give"
    ):
        load_model(folder)
    (folder / "tokenizer.json").write_text("{not json")
    with pytest.raises(FileNotFoundError, match="cannot load the tokenizer of"):
        load_model(folder)


@pytest.mark.parametrize("place", ["../outside.safetensors", "/outside.safetensors", "a/b"])
def test_an_index_that_leads_outside_the_folder_is_refused(place: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, LLADA, random_state(LLADA))
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": place}}))
    with pytest.raises(CheckpointError, match="leads outside"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("content", ["{not json", "[]", "{}"])
def test_a_damaged_index_is_named(content: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, LLADA, random_state(LLADA))
    (folder / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        Checkpoint.open(folder)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLADA))
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        Checkpoint.open(tmp_path)


# --- pickles --------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 2])
def test_pickled_weights_are_refused_unless_they_are_allowed(shards: int, tmp_path: Path) -> None:
    state = random_state(LLADA)
    expected = logits(built(write_checkpoint(tmp_path / "safe", LLADA, state)))
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLADA))
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        names, where = list(state), {}
        for k in range(2):
            torch.save({n: state[n] for n in names[k::2]}, folder / f"pytorch_model-{k}.bin")
            where |= dict.fromkeys(names[k::2], f"pytorch_model-{k}.bin")
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    with pytest.raises(CheckpointError, match="a pickle can run code"):
        Checkpoint.open(folder)
    assert torch.equal(logits(built(folder, allow_pickle=True)), expected)


def test_a_pickle_with_code_is_not_run_even_if_pickles_are_allowed(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple:
            return (Path.write_text, (tmp_path / "harmed", "yes"))

    (tmp_path / "config.json").write_text(json.dumps(LLADA))
    torch.save({"x": Harm()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        Checkpoint.open(tmp_path, allow_pickle=True)
    assert not (tmp_path / "harmed").exists()


def test_a_pickle_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLADA))
    torch.save({"step": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="not a mapping of names to tensors"):
        Checkpoint.open(tmp_path, allow_pickle=True)


def test_transformers_own_models_are_not_loaded_from_pickles_either(tmp_path: Path) -> None:
    save_tiny_bert(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="a pickle can run code"):
        load_model(tmp_path)
    assert load_model(tmp_path, allow_pickle=True).denoiser.facts.mask_id == 4


# --- load_model -----------------------------------------------------------------------


def test_llada_loads_with_its_tokenizer_and_only_unnamed_rows_are_suppressed(
    tmp_path: Path,
) -> None:
    folder = write_checkpoint(tmp_path, LLADA, random_state(LLADA))
    save_words(folder, mask="<|mdm_mask|>")
    loaded = load_model(folder)
    facts = loaded.denoiser.facts
    assert facts.mask_id == MASK
    # 38 words and the mask have names; 44 rows exist. The end of text stays writable.
    assert facts.suppressed_ids == (38, 39, 40, 41, 42, 43)
    assert loaded.tokenizer.mask_token == "<|mdm_mask|>"
    assert loaded.tokenizer("w1 <|mdm_mask|>").input_ids == [1, MASK]


def test_dreams_tokenizer_is_qwen2s_and_its_own_code_is_not_run(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, DREAM, random_state(DREAM))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:WORDS]
    (folder / "vocab.json").write_text(json.dumps({c: k for k, c in enumerate(alphabet)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": {
            "38": {"content": "<|endoftext|>", "special": True},
            "39": {"content": "<|beginoftext|>", "special": True},
            "40": {"content": "<|mask|>", "special": True},
        },
        "mask_token": "<|mask|>",
        "pad_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    harm = f"open({str(tmp_path / 'harmed')!r}, 'w').write('yes')"
    (folder / "tokenization_dream.py").write_text(harm)
    (folder / "modeling_dream.py").write_text(harm)
    loaded = load_model(folder)
    assert type(loaded.tokenizer).__name__.startswith("Qwen2Tokenizer")
    assert loaded.denoiser.facts.logits_shift == -1
    assert loaded.denoiser.facts.mask_id == MASK
    assert MASK in loaded.tokenizer("!<|mask|>!").input_ids
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("name", ["mdlm", "sedd"])
def test_mdlm_and_sedd_need_a_tokenizer_and_give_it_a_mask(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    folder = write_checkpoint(tmp_path / "model", config, random_state(config))
    with pytest.raises(FileNotFoundError, match="without one; give tokenizer, usually 'gpt2'"):
        load_model(folder)
    (tmp_path / "words").mkdir()
    save_words(tmp_path / "words", count=MASK)
    loaded = load_model(folder, tokenizer=tmp_path / "words")
    assert loaded.denoiser.facts.mask_id == MASK
    assert loaded.denoiser.facts.suppressed_ids == (MASK,)
    assert loaded.tokenizer("w1 [MASK]").input_ids == [1, MASK]


def test_llada2_loads_with_its_tokenizer_and_in_blocks_of_the_length_that_is_given(
    tmp_path: Path,
) -> None:
    folder = write_checkpoint(tmp_path / "llada2", LLADA2, random_state(LLADA2))
    save_words(folder, mask="<|mask|>")
    facts = load_model(folder).denoiser.facts
    assert (facts.mask_id, facts.block_length, facts.max_length) == (MASK, 8, 40)
    assert load_model(folder, block_length=16).denoiser.facts.block_length == 16
    with pytest.raises(ValueError, match="block_length must be at least 1, got 0"):
        load_model(folder, block_length=0)
    llada = write_checkpoint(tmp_path / "llada", LLADA, random_state(LLADA))
    with pytest.raises(UnsupportedModel, match="block_length is for block-causal models"):
        load_model(llada, tokenizer=folder, block_length=16)


def test_ids_and_block_lengths_are_the_published_ones_where_the_config_is_silent() -> None:
    silent = ("mask_token_id", "block_size")
    for config, mask, length in ((LLADA2, 156895, 32), (SDAR, 151669, 4)):
        blueprint = blueprint_of({k: v for k, v in config.items() if k not in silent})
        assert blueprint is not None
        assert (blueprint.mask_id, blueprint.default_mask_id) == (None, mask)
        assert blueprint.block_length == length


def test_a_mask_that_config_and_tokenizer_disagree_about_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, LLADA, random_state(LLADA))
    save_words(folder)
    words = PreTrainedTokenizerFast.from_pretrained(folder)
    words.mask_token = "w7"
    words.save_pretrained(folder)
    with pytest.raises(UnsupportedModel, match=r"mask is id 40, the tokenizer says 7"):
        load_model(folder)
    assert load_model(folder, mask_id=7).denoiser.facts.mask_id == 7


def test_a_mask_that_nobody_names_is_asked_for(tmp_path: Path) -> None:
    config = {**LLADA, "mask_token_id": None}
    folder = write_checkpoint(tmp_path, config, random_state(config))
    save_words(folder)
    with pytest.raises(UnsupportedModel, match="neither config nor tokenizer"):
        load_model(folder)


REMOTE = """
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

open({sentinel!r}, "w").write("run")

class StrangeConfig(PretrainedConfig):
    model_type = "strange"

class StrangeModel(PreTrainedModel):
    config_class = StrangeConfig

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(44, 16)
        self.qkv = nn.Linear(16, 48)
        self.last = nn.Linear(16, 44, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.words

    def get_output_embeddings(self):
        return self.last

    def forward(self, input_ids, attention_mask=None):
        x = self.words(input_ids)
        q, k, v = (h.unsqueeze(1) for h in self.qkv(x).chunk(3, dim=-1))
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        x = x + scaled_dot_product_attention(q, k, v, attn_mask=mask).squeeze(1)
        return MaskedLMOutput(logits=self.last(x))
"""


def test_a_checkpoints_own_code_is_run_only_when_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.dynamic_module_utils as dynamic

    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path / "cache")
    folder, sentinel = tmp_path / "strange", tmp_path / "sentinel"
    generator = torch.Generator().manual_seed(0)
    shapes = {"words.weight": (44, 16), "last.weight": (44, 16)}
    shapes |= {"qkv.weight": (48, 16), "qkv.bias": (48,)}
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    config = {
        "model_type": "strange",
        "architectures": ["StrangeModel"],
        "auto_map": {
            "AutoConfig": "modeling_strange.StrangeConfig",
            "AutoModelForMaskedLM": "modeling_strange.StrangeModel",
        },
    }
    write_checkpoint(folder, config, state, shards=1)
    save_words(folder, mask="[MASK]")
    (folder / "modeling_strange.py").write_text(REMOTE.format(sentinel=str(sentinel)))
    with pytest.raises(UnsupportedModel, match="run only with trust_remote_code=True"):
        load_model(folder, mask_id=MASK)
    assert not sentinel.exists()
    loaded = load_model(folder, mask_id=MASK, trust_remote_code=True)
    assert sentinel.exists()
    assert isinstance(loaded.denoiser, InterceptedDenoiser)
    assert logits(loaded.denoiser).isfinite().any()


# --- conversion -----------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_converted_checkpoint_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    state = random_state(config, torch.float32)
    source = write_checkpoint(tmp_path / "published", config, state)
    save_words(source)
    written = convert(source, tmp_path / "converted", shard_bytes=30_000)
    assert written.format == name
    assert len(written.files) > 1
    assert (tmp_path / "converted" / "tokenizer.json").exists()
    again = convert(tmp_path / "converted", tmp_path / "again")
    assert again.files == ("model.safetensors",)
    expected = logits(built(source))
    assert torch.equal(logits(built(tmp_path / "converted")), expected)
    assert torch.equal(logits(built(tmp_path / "again")), expected)


@pytest.mark.parametrize(
    ("name", "loader"), [("llada", LlamaForCausalLM), ("dream", Qwen2ForCausalLM)]
)
def test_plain_transformers_loads_a_converted_checkpoint_whole(
    name: str, loader: type, tmp_path: Path
) -> None:
    config = CONFIGS[name]
    source = write_checkpoint(tmp_path / "p", config, random_state(config, torch.float32))
    convert(source, tmp_path / "c")
    model, report = loader.from_pretrained(
        tmp_path / "c", output_loading_info=True, attn_implementation="sdpa"
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.is_causal is False
    rows = POSITIONS[0] + (-1 if name == "dream" else 0)
    theirs = model(input_ids=IDS.unsqueeze(0)).logits[0, rows]
    words = list(range(MASK))
    torch.testing.assert_close(logits(built(source))[0][:, words], theirs[:, words])


def test_a_conversion_changes_the_dtype_when_asked_and_turns_pickles_safe(tmp_path: Path) -> None:
    source = tmp_path / "pickled"
    source.mkdir()
    config = CONFIGS["sedd"]
    (source / "config.json").write_text(json.dumps(config))
    torch.save(random_state(config, torch.float32), source / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        convert(source, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    convert(source, tmp_path / "safe", allow_pickle=True, dtype=torch.bfloat16)
    stored = load_file(tmp_path / "safe" / "model.safetensors")
    assert stored["output_layer.linear.weight"].dtype == torch.bfloat16
    assert stored["rotary_emb.inv_freq"].dtype == torch.float32, "angles need their precision"
    assert not list((tmp_path / "safe").glob("*.bin"))
    assert built(tmp_path / "safe").embedding_table.dtype == torch.bfloat16


def test_an_interrupted_conversion_leaves_nothing_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "p", LLADA, random_state(LLADA))
    stream = Checkpoint.stream

    def interrupted(self: Checkpoint, device: str = "cpu"):
        for k, item in enumerate(stream(self, device)):
            if k == 20:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(Checkpoint, "stream", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "c", shard_bytes=20_000)
    monkeypatch.undo()
    assert list((tmp_path / "c").iterdir())
    with pytest.raises(CheckpointError):
        Checkpoint.open(tmp_path / "c")


def test_a_conversion_does_not_overwrite(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "p", LLADA, random_state(LLADA))
    with pytest.raises(FileExistsError, match="holds something already"):
        convert(source, source)


def test_a_conversion_of_something_else_is_refused(tmp_path: Path) -> None:
    formats = "llada, dream, llada2, sdar, sdar_moe, mdlm, bd3lm, sedd"
    with pytest.raises(UnsupportedModel, match=f"none of the formats {formats}"):
        convert(save_tiny_bert(tmp_path / "bert"), tmp_path / "c")


def test_a_conversion_of_weights_that_do_not_fit_is_refused_before_it_starts(
    tmp_path: Path,
) -> None:
    state = random_state(LLADA)
    del state["model.transformer.ln_f.weight"]
    source = write_checkpoint(tmp_path / "p", LLADA, state)
    with pytest.raises(CheckpointError, match=r"1 missing: model\.transformer\.ln_f\.weight"):
        convert(source, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_file_that_is_no_safetensors_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, LLADA, random_state(LLADA), shards=1)
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"30 missing: .*; 1 unexpected: x"):
        built(folder)
