"""Real backbones, on random weights saved by transformers in exactly the format of the released ones.

Needs `pip install -e '.[backbones,pretrained]'`; skipped without it.
"""

import json

import pytest
import torch

from stts_mini import eval as evaluation
from stts_mini.data.tokenizer import PretrainedTokenizer
from stts_mini.lab import ask, pretrained
from stts_mini.lab.paper.train import PaperConfig
from stts_mini.lab.pretrained import WeightsError, llm_config, load_llm, load_vit, vit_config
from stts_mini.llm import LLM
from stts_mini.training import checkpoint
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
    with pytest.raises(WeightsError, match=r"model.safetensors cannot be used"):
        load_vit(ViT(vit_config(tmp_path / "vit")), tmp_path / "vit")
    with pytest.raises(WeightsError, match="neither a folder here nor a name like"):
        pretrained.folder_of("./nowhere")


def edited(path, **changes):
    """A JSON file with other values; None takes one out."""
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(rope_parameters=dict(rope_type="yarn", factor=4.0)), "rope_parameters = .*yarn"),
        (dict(rope_parameters=dict(rope_theta=1e6, partial_rotary_factor=0.5)), "partial_rotary_factor"),
        (dict(rope_scaling=dict(type="linear", factor=2.0)), "rope_scaling = .*linear"),
        (dict(rope_parameters=dict(rope_type="proportional", rope_theta=1e4)), "rope_parameters = .*proportional"),
        (dict(rope_theta=5e5), r"more than one rope_theta: \[500000.0, 10000.0\]"),
        (dict(use_sliding_window=True, sliding_window=8), "use_sliding_window = True"),
        (dict(layer_types=["full_attention", "sliding_attention"]), "sliding_attention"),
        (dict(hidden_act="gelu"), "hidden_act = gelu, which is not done here: only 'silu' is"),
        (dict(attention_bias=True), "attention_bias = True"),
        (dict(is_causal=False), "is_causal = False"),
        (dict(final_logit_softcapping=30.0), "final_logit_softcapping = 30.0.* take it out of the file"),
        (dict(quantization_config=dict(quant_method="fp8")), "quantization_config = .*fp8"),
        (dict(auto_map=dict(AutoModel="own.Model")), "auto_map"),
        (dict(model_type="qwen3_moe"), "describes a 'qwen3_moe'"),
        (dict(model_type=None), "describes a None"),
        (dict(hidden_size=None), "hidden_size = None: give a whole number above 0"),
        (dict(num_hidden_layers=2.5), "num_hidden_layers = 2.5"),
        (dict(vocab_size=True), "vocab_size = True"),
        (dict(num_key_value_heads=3), "heads 4 is not a multiple of kv_heads 3"),
        (dict(rms_norm_eps=-1), "rms_norm_eps = -1: give a number above 0"),
        (dict(tie_word_embeddings="false"), "tie_word_embeddings = false"),
    ],
)
def test_what_an_llm_folder_asks_for_and_is_not_done_is_refused(tmp_path, changes, message):
    language(tmp_path)
    edited(tmp_path / "config.json", **changes)
    with pytest.raises(WeightsError, match=message) as caught:
        llm_config(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(model_type="siglip2_vision_model", num_patches=36), "describes a 'siglip2_vision_model'"),
        (dict(num_patches=36), "num_patches = 36"),
        (dict(hidden_act="gelu"), "hidden_act = gelu"),
        (dict(num_channels=1), "num_channels = 1"),
        (dict(image_size=[24, 36]), r"image_size = \[24, 36\]: give a whole number"),
        (dict(num_attention_heads=5), "width 12 is not a multiple of heads 5"),
        (dict(vision_config=[1]), "vision_config that is no object"),
        (dict(vision_config={}), "describes a 'siglip_vision_model': this reads 'siglip' models"),
        (dict(vision_config={}, model_type="siglip2"), "describes a 'siglip2'"),
        (dict(vision_config={}, model_type="siglip", quantization_config=dict(bits=4)), "quantization_config"),
    ],
)
def test_what_a_vision_folder_asks_for_and_is_not_done_is_refused(tmp_path, changes, message):
    vision(tmp_path)
    edited(tmp_path / "config.json", **changes)
    with pytest.raises(WeightsError, match=message):
        vit_config(tmp_path)


def test_what_changes_no_number_is_let_pass(tmp_path):
    """Among it the names of transformers 4, as the released folders have them."""
    vision(tmp_path / "vit")
    language(tmp_path / "llm")
    config = llm_config(tmp_path / "llm")
    edited(
        tmp_path / "llm" / "config.json", rope_parameters=None, layer_types=None, dtype=None, torch_dtype="bfloat16",
        rope_theta=10000, sliding_window=32768, attention_dropout=0.1, _name_or_path="x", unsloth_version="1",
    )  # fmt: skip
    assert llm_config(tmp_path / "llm") == config and config.rope_theta == 10000
    edited(tmp_path / "llm" / "config.json", rope_theta=None, rope_scaling=dict(type="default"))
    assert llm_config(tmp_path / "llm") == config  # transformers' own default
    edited(tmp_path / "llm" / "config.json", rope_parameters=dict(rope_theta=7e5, rope_type="default"))
    assert llm_config(tmp_path / "llm").rope_theta == 7e5
    edited(tmp_path / "vit" / "config.json", vision_use_head=False, quantization_config={})
    pixels = dict(image_mean=[0.5, 0.5, 0.5], rescale_factor=0.00392156862745098, do_resize=True, resample=2)
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(pixels))
    load_vit(ViT(vit_config(tmp_path / "vit")), tmp_path / "vit")
    for name, said in (("preprocessor", pixels), ("processor", dict(image_processor=pixels))):
        path = tmp_path / "vit" / f"{name}_config.json"
        pixels["image_mean"] = [0.48, 0.46, 0.41]
        path.write_text(json.dumps(said))
        with pytest.raises(WeightsError, match=r"image_mean = \[0.48, 0.46, 0.41\] instead of \[0.5, 0.5, 0.5\]"):
            load_vit(ViT(vit_config(tmp_path / "vit")), tmp_path / "vit")
        path.unlink()


@pytest.mark.parametrize(
    "text, message",
    [
        ("[]", "no object in curly brackets"),
        ("{", "cannot be used"),
        ("[" * 99999, "recursion"),
        ("\udcff", "utf-8"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_damaged_json_file_is_named(tmp_path, name, text, message):
    language(tmp_path, shard="5KB")
    (tmp_path / name).write_text(text, errors="surrogateescape")
    with pytest.raises(WeightsError, match=f"{name}.*{message}") as caught:
        load_llm(LLM(llm_config(tmp_path)), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("index", [{}, dict(weight_map=3), dict(weight_map=dict(a=5)), dict(weight_map=dict(a="none"))])
def test_a_damaged_index_is_named(tmp_path, index):
    language(tmp_path, shard="5KB")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=f"{tmp_path}.* cannot be used"):
        load_llm(LLM(llm_config(tmp_path)), tmp_path)


def test_weights_that_are_not_what_the_config_says_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    def load(folder, name, change):
        path = folder / "model.safetensors"
        weights = load_file(path)
        key = next(key for key in weights if key.endswith(name))
        save_file({**weights, **change(weights[key], key)}, path)
        try:
            if folder.name == "vit":
                load_vit(ViT(vit_config(folder, depth=3)), folder)
            else:
                load_llm(LLM(llm_config(folder)), folder)
        finally:
            save_file(weights, path)

    vision(tmp_path / "vit")
    language(tmp_path / "llm")
    for name, change, message in (
        (
            "position_embedding.weight",
            lambda w, key: {key: w[:30].clone()},
            r"is \(30, 12\), but \(36, 12",
        ),
        ("position_embedding.weight", lambda w, key: {key: w[:25].clone()}, r"is \(25, 12\)"),  # a smaller square
        ("position_embedding.weight", lambda w, key: {key: w[0, 0].clone()}, r"is \(\), but"),
        (
            "patch_embedding.weight",
            lambda w, key: {key: w.flatten(1)},
            r"is \(12, 48\), but \(12, 3, 4, 4",
        ),
        ("layers.4.mlp.fc2.bias", lambda w, key: {key.replace("s.4", "s.7"): w.clone()}, "blocks.7.mlp.fc2.bias"),
    ):
        with pytest.raises(WeightsError, match=message):
            load(tmp_path / "vit", name, change)
    for name, change, message in (
        ("model.norm.weight", lambda w, key: {key: w.to(torch.int8)}, "norm.weight is torch.int8: quantised"),
        ("model.norm.weight", lambda w, key: {key: w.to(torch.float8_e4m3fn)}, "quantised"),
        ("model.norm.weight", lambda w, key: {key: w / 0}, "norm.weight holds NaN or infinity"),
        ("embed_tokens.weight", lambda w, key: {"lm_head.weight": w + 1}, "an lm_head.weight that differs"),
    ):
        with pytest.raises(WeightsError, match=message):
            load(tmp_path / "llm", name, change)
    load(
        tmp_path / "llm", "embed_tokens.weight", lambda w, key: {"lm_head.weight": w.clone()}
    )  # a copy changes nothing
    (tmp_path / "llm" / "model.safetensors.index.json").write_text("{")  # left from before: the one file counts
    load(tmp_path / "llm", "model.norm.weight", lambda w, key: {})


@pytest.mark.parametrize("size", [8, 12, 32, 48])
def test_another_grid_gets_positions_as_siglip_makes_them(tmp_path, size):
    theirs = vision(tmp_path)
    ours, frames = ViT(vit_config(tmp_path, image_size=size)), torch.randn(2, 3, size, size)
    load_vit(ours, tmp_path)
    expected = theirs(pixel_values=frames, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(ours(frames), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [dict(truncation=dict(max_length=3, strategy="LongestFirst", stride=0, direction="Right")),
     dict(padding=dict(strategy=dict(Fixed=99), direction="Left", pad_id=0, pad_type_id=0, pad_token="<|endoftext|>",
                       pad_to_multiple_of=None))],
)  # fmt: skip
def test_a_tokenizer_neither_truncates_nor_pads(tmp_path, changes):
    language(tmp_path)
    plain = pretrained.load_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(plain.json_text), **changes}))
    tokenizer, text = pretrained.load_tokenizer(tmp_path), "what colour is the red circle, and how many are there?"
    assert tokenizer.encode(text) == plain.encode(text) and tokenizer.prompt(text, "ab") == plain.prompt(text, "ab")


def test_a_tokenizer_that_does_not_go_with_the_llm_is_refused(tmp_path):
    vision(tmp_path / "vit")
    language(tmp_path / "llm")
    path = tmp_path / "llm" / "tokenizer.json"
    good = path.read_text()
    vocab = max(pretrained.load_tokenizer(tmp_path / "llm").fast.get_vocab().values()) + 1
    pretrained.load_tokenizer(tmp_path / "llm", vocab)
    with pytest.raises(WeightsError, match=rf"has the token {vocab - 1}, but the LLM has {vocab - 1} embeddings"):
        pretrained.load_tokenizer(tmp_path / "llm", vocab - 1)
    path.write_text(json.dumps({**json.loads(good), "normalizer": {"type": "NFC"}}))
    pretrained.load_tokenizer(tmp_path / "llm")  # as Qwen3's does
    for changes in ({"normalizer": {"type": "Lowercase"}}, {"normalizer": {"type": "NFKC"}}, {"decoder": None}):
        path.write_text(json.dumps({**json.loads(good), **changes}))
        with pytest.raises(WeightsError, match="needs a tokenizer that keeps texts"):
            pretrained.load_tokenizer(tmp_path / "llm")
    path.write_text(good)
    small = {**json.loads((tmp_path / "llm" / "config.json").read_text()), "vocab_size": vocab - 1}
    (tmp_path / "llm" / "config.json").write_text(json.dumps(small))
    config = PaperConfig(
        **{
            **pretrained.RECIPE,
            **pretrained.settings_of(vit_config(tmp_path / "vit"), llm_config(tmp_path / "llm")),
            "score_after": 0,
        }
    )
    with pytest.raises(WeightsError, match="embeddings: resize those"):
        pretrained.build(config, tmp_path / "vit", tmp_path / "llm")


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
    marks = json.loads((tmp_path / "folder" / "config.json").read_text())["tokenizer_marks"]
    for changes, message in (
        (dict(model=None), "config.json cannot be used"),
        (dict(tokenizer_marks={**marks, "end": "<|endoftext|>"}), "marks are not those of its model"),
    ):
        kept = (tmp_path / "folder" / "config.json").read_text()
        edited(tmp_path / "folder" / "config.json", **changes)
        with pytest.raises(WeightsError, match=message):
            pretrained.load_folder(tmp_path / "folder")
        (tmp_path / "folder" / "config.json").write_text(kept)
    (tmp_path / "folder" / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"tokenizer.json, the fast tokenizer's file, cannot be used"):
        pretrained.load_folder(tmp_path / "folder")


def test_flags_without_an_effect_are_refused(tmp_path, capsys):
    for others in (["--steps", "3"], ["--vit-depth", "2"], ["--llm", "a"]):
        with pytest.raises(SystemExit):
            pretrained.main(["--export", "a.pt", "folder", *others])
        assert f"--export has no use for {others[0]}" in capsys.readouterr().err
    vision(tmp_path / "vit")
    language(tmp_path / "llm")
    words = ["--vit", str(tmp_path / "vit"), "--llm", str(tmp_path / "llm"), "--dry-run", "--score-after", "0"]
    for flag in ("--vit-depth", "--image-size"):  # not the same as leaving it out
        with pytest.raises(SystemExit, match=f"{flag} 0: give 1 or more"):
            pretrained.main([*words, flag, "0"])
    for flag, own, kept in (("--llm-mlp", 64, 24), ("--vit-heads", 2, 3), ("--llm-width", 32, 16)):
        with pytest.raises(SystemExit, match=f"{flag} {own}, but the weights have {kept}: leave it out"):
            pretrained.main([*words, flag, str(own)])
    with pytest.raises(SystemExit):
        pretrained.main([*words, "--no-such-flag"])
    assert "usage: python -m stts_mini.lab.pretrained" in capsys.readouterr().err
    pretrained.main([*words, "--llm-mlp", "24", "--w", "3"])


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
    config = PaperConfig(**{**pretrained.RECIPE, **sizes, "vit_depth": 6})
    assert config.w == 3 and config.model.cells == 9 and config.model.vit.width == 12
