"""Real backbones, on random weights saved by transformers in exactly the format of the released ones.

Needs `pip install -e '.[backbones,pretrained]'`; skipped without it.
"""

import json

import pytest
import torch

from stts_mini import eval as evaluation
from stts_mini.data.tokenizer import PretrainedTokenizer
from stts_mini.lab import ask, pretrained
from stts_mini.lab.pretrained import WeightsError, llm_config, load_llm, load_vit, vit_config
from stts_mini.llm import LLM
from stts_mini.training import checkpoint
from stts_mini.training.config import TrainConfig
from stts_mini.vit import ViT, resized_positions
from tests.own import write_own_clips

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")
pytestmark = pytest.mark.filterwarnings("default")  # other people's warnings are not our errors

MARKS = ("<|endoftext|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")


def vision(folder, size=24, patch=4, width=12, depth=5, heads=3, mlp=20, whole=False, shard="1GB"):
    """A SigLIP vision tower on disk, alone or inside the whole SigLIP; returns its model."""
    config = dict(
        image_size=size, patch_size=patch, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
        intermediate_size=mlp,
    )  # fmt: skip
    torch.manual_seed(0)
    if whole:
        text = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=config))
        model.save_pretrained(folder, max_shard_size=shard)
        return model.vision_model.eval()
    model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**config))
    model.save_pretrained(folder, max_shard_size=shard)
    return model.eval()


def language(folder, vocab=300, width=16, depth=2, heads=4, kv=2, head_dim=8, mlp=24, tied=True, shard="1GB"):
    """A Qwen3 on disk, with a small tokenizer of real format; returns the model."""
    torch.manual_seed(1)
    config = transformers.Qwen3Config(
        vocab_size=vocab, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
        num_key_value_heads=kv, head_dim=head_dim, intermediate_size=mlp, tie_word_embeddings=tied,
    )  # fmt: skip
    model = transformers.Qwen3ForCausalLM(config)
    model.save_pretrained(folder, max_shard_size=shard)
    fast = tokenizers.Tokenizer(tokenizers.models.BPE())
    fast.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290, special_tokens=list(MARKS), initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    fast.train_from_iterator(["what colour is the red circle", "Question: Option: Answer:"] * 3, trainer)
    fast.save(str(folder / "tokenizer.json"))
    return model.eval()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("shard", ["1GB", "5KB"])
@pytest.mark.parametrize("size, patch, width, depth, heads, mlp", [(24, 4, 12, 5, 3, 20), (26, 6, 8, 1, 1, 40)])
def test_a_siglip_folder_gives_the_same_features(tmp_path, whole, shard, size, patch, width, depth, heads, mlp):
    theirs = vision(tmp_path, size, patch, width, depth, heads, mlp, whole, shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "5KB")
    config = vit_config(tmp_path)
    assert config.image_size == size // patch * patch  # 26 pixels hold four patches of 6, as 384 hold 27 of 14
    ours = ViT(config)
    load_vit(ours, tmp_path)
    frames = torch.randn(2, 3, size, size)
    expected = theirs(pixel_values=frames).last_hidden_state
    cut = frames[..., : config.image_size, : config.image_size]
    torch.testing.assert_close(ours(cut), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard", ["1GB", "5KB"])
@pytest.mark.parametrize("width, heads, kv, head_dim", [(16, 4, 2, 8), (12, 2, 1, 10)])
def test_a_qwen3_folder_gives_the_same_logits(tmp_path, tied, shard, width, heads, kv, head_dim):
    theirs = language(tmp_path, width=width, heads=heads, kv=kv, head_dim=head_dim, tied=tied, shard=shard)
    config = llm_config(tmp_path)
    assert config.tied == tied
    ours = LLM(config)
    load_llm(ours, tmp_path)
    ids = torch.randint(300, (2, 11))
    torch.testing.assert_close(ours.logits(ours(ours.embed(ids))), theirs(ids).logits, rtol=1e-4, atol=1e-5)


def test_fewer_blocks_and_another_grid(tmp_path):
    theirs = vision(tmp_path)
    ours = ViT(vit_config(tmp_path, image_size=16, depth=3))
    load_vit(ours, tmp_path)
    assert len(ours.blocks) == 3 and ours.config.grid == 4
    own = theirs.state_dict()
    name = next(n for n in own if n.endswith("position_embedding.weight"))
    torch.testing.assert_close(ours.position_embedding, resized_positions(own[name], 16), rtol=0, atol=0)
    bias = next(w for n, w in own.items() if n.endswith("layers.2.mlp.fc2.bias"))
    assert torch.equal(ours.blocks[2].mlp.fc2.bias, bias)


def test_what_does_not_fit_is_named(tmp_path):
    vision(tmp_path / "vit")
    language(tmp_path / "llm")
    from safetensors.torch import load_file, save_file

    path = tmp_path / "llm" / "model.safetensors"
    weights = load_file(path)
    del weights["model.norm.weight"]
    weights["model.extra"] = torch.zeros(1)
    weights["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 16)
    save_file(weights, path)
    with pytest.raises(WeightsError) as caught:
        load_llm(LLM(llm_config(tmp_path / "llm")), tmp_path / "llm")
    said = str(caught.value)
    assert str(tmp_path / "llm") in said and 'Missing key(s) in state_dict: "norm.weight"' in said
    assert 'Unexpected key(s) in state_dict: "extra"' in said and "\n" not in said
    assert "size mismatch for layers.0.mlp.up_proj.weight: copying a param with shape torch.Size([3, 16])" in said
    with pytest.raises(WeightsError, match="describes a 'qwen3': this reads 'siglip_vision_model'"):
        vit_config(tmp_path / "llm")
    with pytest.raises(WeightsError, match="describes a 'siglip_vision_model': this reads 'qwen3'"):
        llm_config(tmp_path / "vit")
    with pytest.raises(WeightsError, match="image_size 15 is not a multiple of the patch size 4"):
        vit_config(tmp_path / "vit", image_size=15)
    with pytest.raises(WeightsError, match=r"vit_depth 9, but .* has 5 blocks"):
        vit_config(tmp_path / "vit", depth=9)
    (tmp_path / "llm" / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"tokenizer.json, the fast tokenizer's file, cannot be used"):
        pretrained.load_tokenizer(tmp_path / "llm")
    for path in (tmp_path / "vit").glob("*.safetensors"):
        path.unlink()
    with pytest.raises(WeightsError, match=r"model.safetensors cannot be read"):
        load_vit(ViT(vit_config(tmp_path / "vit")), tmp_path / "vit")
    with pytest.raises(WeightsError, match="no folder here, and no name like"):
        pretrained.folder_of("./nowhere")


def test_the_tokenizer_round_trips_and_knows_its_marks(tmp_path):
    language(tmp_path)
    tokenizer = pretrained.load_tokenizer(tmp_path)
    for text in ("red", "the 12.5 zébra, ¿no?", "a  b"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    prompt = tokenizer.prompt("what colour ?", ["red", "blue"])
    assert tokenizer.decode(prompt) == "Question: what colour ?\nOption: red\nOption: blue\nAnswer:"
    assert [tokenizer.fast.id_to_token(i) for i in vars(tokenizer.marks).values()] == list(MARKS)
    with pytest.raises(ValueError, match=r"has no <nothing>"):
        PretrainedTokenizer(tokenizer.json_text, dict(pad="<nothing>"))


def test_train_save_load_ask(tmp_path, capsys):
    """Both backbones, a connector and STTS: some steps on clips of one's own, a checkpoint, its evaluation, and an
    exported folder that holds the same model."""
    vision(tmp_path / "vit")
    language(tmp_path / "llm")
    data = write_own_clips(tmp_path / "clips", 6)
    flags = [
        "--vit", tmp_path / "vit", "--llm", tmp_path / "llm", "--data", data, "--val", data, "--out", tmp_path / "run",
        "--vit-depth", "4", "--score-after", "0", "--steps", "3", "--batch-size", "2", "--warmup", "1",
        "--max-frames", "4", "--device", "cpu",
    ]  # fmt: skip
    pretrained.main([str(f) for f in flags])
    said = capsys.readouterr().out
    assert "question" in said and "all done" in said and "vit_depth=4" in said
    path = tmp_path / "run" / "checkpoint.pt"
    model, state = checkpoint.load_model(path)
    assert model.config.vit.depth == 4 and model.config.llm.vocab_size == 300 and state["step"] == 3
    before = LLM(llm_config(tmp_path / "llm"))
    load_llm(before, tmp_path / "llm")
    moved = (model.llm.layers[0].mlp.up_proj.weight - before.layers[0].mlp.up_proj.weight).abs().max()
    assert 0 < moved < 1e-3  # trained, from where it started
    evaluation.main([str(path), "--data", str(data), "--json", str(tmp_path / "e.json")])
    assert "question" in json.loads((tmp_path / "e.json").read_text())["choice"]
    capsys.readouterr()
    ask.main([str(data.parent / "0.mp4"), "what ?", "--options", "red", "blue", "--checkpoint", str(path)])
    said = capsys.readouterr().out
    assert "cells kept" in said and "decode" in said and "red" in said
    pretrained.main(["--export", str(path), str(tmp_path / "folder")])
    again, tokenizer = pretrained.load_folder(tmp_path / "folder")
    assert again.config == model.config and tokenizer.marks == model.config.marks
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name
    with pytest.raises(SystemExit, match="is not empty"):
        pretrained.main(["--export", str(path), str(tmp_path / "folder")])
    with pytest.raises(WeightsError, match="describes a 'qwen3': this reads 'stts_mini'"):
        pretrained.load_folder(tmp_path / "llm")


def test_flags_without_an_effect_are_refused(tmp_path, capsys):
    for others in (["--steps", "3"], ["--vit-depth", "2"], ["--llm", "a"]):
        with pytest.raises(SystemExit):
            pretrained.main(["--export", "a.pt", "folder", *others])
        assert f"--export has no use for {others[0]}" in capsys.readouterr().err
    vision(tmp_path / "vit")
    language(tmp_path / "llm")
    words = ["--vit", str(tmp_path / "vit"), "--llm", str(tmp_path / "llm"), "--dry-run", "--score-after", "0"]
    for flag, own, kept in (("--llm-mlp", 64, 24), ("--vit-heads", 2, 3), ("--llm-width", 32, 16)):
        with pytest.raises(SystemExit, match=f"{flag} {own}, but the weights have {kept}: leave it out"):
            pretrained.main([*words, flag, str(own)])
    pretrained.main([*words, "--llm-mlp", "24", "--w", "3", "--connector-mlp", "8"])


def test_a_mark_written_in_a_text_is_text(tmp_path):
    language(tmp_path)
    tokenizer = pretrained.load_tokenizer(tmp_path)
    for mark in MARKS:
        assert not {tokenizer.fast.token_to_id(m) for m in MARKS} & {*tokenizer.encode(mark), *tokenizer.prompt(mark)}
        assert tokenizer.decode(tokenizer.encode(mark)) == mark
    for read in (tokenizer.encode, tokenizer.prompt):
        with pytest.raises(ValueError, match="no UTF-8 near"):
            read("a \ud800 b")


def test_the_largest_grid_gets_cells_of_three(tmp_path):
    vision(tmp_path / "vit", size=54, patch=6)
    language(tmp_path / "llm")
    sizes = pretrained.settings_of(vit_config(tmp_path / "vit"), llm_config(tmp_path / "llm"))
    config = TrainConfig(**{**pretrained.RECIPE, **sizes, "vit_depth": 6})
    assert config.w == 3 and config.model.cells == 9 and config.model.vit.width == 12
