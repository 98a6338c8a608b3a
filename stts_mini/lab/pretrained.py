"""Real weights in our modules: a SigLIP vision tower and a Qwen3 language model, from Hugging Face folders.

    python -m stts_mini.lab.pretrained --vit google/siglip2-so400m-patch14-384 --llm Qwen/Qwen3-0.6B \\
        --data train.jsonl --val val.jsonl                      every flag of stts_mini.train
    python -m stts_mini.lab.pretrained --export runs/pretrained/checkpoint.pt folder

`--vit` and `--llm` are local folders (config.json, *.safetensors, for the LLM tokenizer.json), read without any
network, or names that huggingface_hub downloads. Weights are renamed, nothing else; positions are resized where
`--image-size` asks for another grid; `--vit-depth` takes the first blocks only (the paper reads no further than
25 of 27). Connector and scorer start fresh. Needs `pip install -e '.[pretrained]'`.

An exported folder holds model.safetensors (the whole VLM), config.json (its `VLMConfig`) and tokenizer.json;
`load_folder` makes the same model of it.

What this file does not do: define the architectures (`vit.py`, `llm.py`), train (`train.py`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from stts_mini.data.batches import TOKENIZER, AnyTokenizer, tokenizer_of
from stts_mini.data.tokenizer import PretrainedTokenizer
from stts_mini.llm import LLMConfig, from_qwen3
from stts_mini.model import VLM
from stts_mini.train import job
from stts_mini.training import checkpoint
from stts_mini.training.config import TrainConfig, parse_flags
from stts_mini.vit import ViTConfig, from_siglip, resized_positions

# the paper's rates (§4): LLM 1e-5, ViT and connector half of it, scorer ten times it; all by AdamW
RECIPE = dict(
    out="runs/pretrained", lr=1e-5, muon_lr=0.0, vision_lr_ratio=0.5, scorer_lr_ratio=10.0, warmup=200, steps=2000,
    batch_size=4, score_after=3, max_frames=64, image_steps=0, brief_steps=0, save_every=500,
    recompute=True,  # without it, activations alone take some 180 GB
)  # fmt: skip


class WeightsError(ValueError):
    """Weights that do not fit; the message names what is missing, unexpected or of another shape."""


def folder_of(name: str) -> Path:
    """The local folder of that name, or the snapshot that huggingface_hub downloads."""
    if Path(name).is_dir():
        return Path(name)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise WeightsError(f"{name} is no folder here, and no name like Qwen/Qwen3-0.6B either")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise WeightsError(f"to download {name}: pip install -e '.[pretrained]'") from error
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # whatever the network raises
        raise WeightsError(f"could not download {name}: {str(error).splitlines()[0]}") from error


def read_config(folder: Path, kind: str) -> dict:
    """The part of config.json that describes a model of this kind: "siglip_vision_model" or "qwen3"."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    config = config.get("vision_config", config) if kind.startswith("siglip") else config
    if config.get("model_type", kind) != kind:
        raise WeightsError(f"{path} describes a {config['model_type']!r}: this reads {kind!r} models")
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, in one file or in several with an index."""
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise WeightsError("weights are read by the package safetensors: pip install -e '.[pretrained]'") from error
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else [single.name]
    weights = {}
    for name in files:
        if not (folder / name).exists():
            raise WeightsError(f"{folder} has no {name}")
        try:
            weights |= load_file(folder / name)
        except Exception as error:  # safetensors raises an error of its own
            raise WeightsError(f"{folder / name} cannot be read: {error}") from error
    return weights


def vit_config(folder: Path, image_size: int | None = None, depth: int | None = None) -> ViTConfig:
    """The sizes of a SigLIP vision tower. Without `image_size`: its own, less what fills no patch (384 → 378)."""
    c = read_config(folder, "siglip_vision_model")
    patch, size = c.get("patch_size", 16), image_size or c.get("image_size", 224)
    if image_size and image_size % patch:
        raise WeightsError(f"image_size {image_size} is not a multiple of the patch size {patch} of {folder}")
    if c.get("hidden_act", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
        raise WeightsError(f"{folder} has the activation {c['hidden_act']!r}: only gelu_pytorch_tanh is known")
    blocks = c.get("num_hidden_layers", 12)
    if depth and depth > blocks:
        raise WeightsError(f"vit_depth {depth}, but {folder} has {blocks} blocks")
    return ViTConfig(
        size // patch * patch, patch, c.get("hidden_size", 768), depth or blocks, c.get("num_attention_heads", 12),
        c.get("intermediate_size", 3072), c.get("layer_norm_eps", 1e-6),
    )  # fmt: skip


def llm_config(folder: Path) -> LLMConfig:
    """The sizes of a Qwen3 model."""
    c = read_config(folder, "qwen3")
    if c.get("attention_bias"):
        raise WeightsError(f"{folder} has biases in its attention: Qwen3 has none")
    if c.get("rope_scaling"):
        raise WeightsError(f"{folder} scales its rotary positions ({c['rope_scaling']}): only plain ones are known")
    rope = (c.get("rope_parameters") or {}).get("rope_theta", c.get("rope_theta", 1e6))
    heads = c["num_attention_heads"]
    return LLMConfig(
        c["vocab_size"], c["hidden_size"], c["num_hidden_layers"], heads, c.get("num_key_value_heads", heads),
        c.get("head_dim", c["hidden_size"] // heads), c["intermediate_size"], rope, c.get("rms_norm_eps", 1e-6),
        c.get("tie_word_embeddings", False),
    )  # fmt: skip


def fit(module: torch.nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Load weights, all of them and no others. Raises WeightsError that names up to five of each kind of misfit."""
    own = module.state_dict()
    shape = lambda w: tuple(w.shape)
    misfits = {
        "missing": [name for name in own if name not in weights],
        "unexpected": [name for name in weights if name not in own],
        "of another shape": [
            f"{name} ({shape(weights[name])} there, {shape(own[name])} here)"
            for name in own
            if name in weights and shape(weights[name]) != shape(own[name])
        ],
    }
    said = [
        f"{len(names)} {what}: {', '.join(names[:5])}{', …' * (len(names) > 5)}"
        for what, names in misfits.items()
        if names
    ]
    if said:
        raise WeightsError(f"the weights of {source} do not fit: {'; '.join(said)}")
    module.load_state_dict(weights)


def load_vit(vit: torch.nn.Module, folder: Path) -> None:
    """Put a SigLIP's weights into a `ViT`: its text tower, pooling head, further blocks and final norm (which the
    connector does not read) are left out, and its positions resized if our grid is another."""
    weights = {k: w for k, w in read_weights(folder).items() if not k.startswith(("text_model.", "logit_"))}
    weights = from_siglip(weights)
    depth = len(vit.blocks)
    later = lambda name: name.startswith("blocks.") and int(name.split(".")[1]) >= depth
    has_norm = isinstance(vit.post_layernorm, torch.nn.LayerNorm)
    weights = {
        k: w for k, w in weights.items() if not later(k) and (has_norm or not k.startswith("post_layernorm."))
    }  # fmt: skip
    if len(weights.get("position_embedding", vit.position_embedding)) != len(vit.position_embedding):
        weights["position_embedding"] = resized_positions(weights["position_embedding"], len(vit.position_embedding))
    fit(vit, weights, str(folder))


def load_llm(llm: torch.nn.Module, folder: Path) -> None:
    """Put a Qwen3's weights into an `LLM`."""
    fit(llm, from_qwen3(read_weights(folder), llm.config.tied), str(folder))


def load_tokenizer(folder: Path) -> PretrainedTokenizer:
    """The LLM's own tokenizer."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise WeightsError(f"{folder} has no tokenizer.json, the fast tokenizer's file")
    try:
        return PretrainedTokenizer(path.read_text())
    except ValueError:
        raise
    except Exception as error:  # tokenizers raises bare ones
        raise WeightsError(f"{path} is not a tokenizer: {error}") from error


def settings_of(vit: ViTConfig, llm: LLMConfig) -> dict:
    """The sizes of both as settings of a training run; w = 3 where the grid allows it, as the paper has it."""
    return dict(
        image_size=vit.image_size, patch_size=vit.patch_size, vit_width=vit.width, vit_depth=vit.depth,
        vit_heads=vit.heads, vit_mlp=vit.mlp, w=3 if vit.grid % 3 == 0 else 2, llm_width=llm.width,
        llm_depth=llm.depth, llm_heads=llm.heads, llm_kv_heads=llm.kv_heads, llm_head_dim=llm.head_dim,
        llm_mlp=llm.mlp, connector_mlp=llm.mlp,
    )  # fmt: skip


def build(config: TrainConfig, vit_folder: Path, llm_folder: Path) -> tuple[VLM, PretrainedTokenizer]:
    """The VLM of a training run, with both backbones' weights, and the tokenizer that goes with it."""
    tokenizer = load_tokenizer(llm_folder)
    vit = vit_config(vit_folder, config.image_size, config.vit_depth)
    torch.manual_seed(config.seed)
    model = VLM(dataclasses.replace(config.model, vit=vit, llm=llm_config(llm_folder), marks=tokenizer.marks))
    load_vit(model.vit, vit_folder)
    load_llm(model.llm, llm_folder)
    return model, tokenizer


def save_folder(folder: Path, model: VLM, tokenizer: AnyTokenizer = TOKENIZER) -> None:
    """Write model.safetensors, config.json and, for a real LLM, tokenizer.json; the config comes last, so a folder
    that was broken off does not load. Raises WeightsError for a folder that holds something already."""
    from safetensors.torch import save_file

    if folder.exists() and any(folder.iterdir()):
        raise WeightsError(f"{folder} is not empty: give another")
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: w.contiguous() for name, w in model.state_dict().items()}, folder / "model.safetensors")
    config = dict(model_type="stts_mini", model=dataclasses.asdict(model.config))
    if tokenizer is not TOKENIZER:
        (folder / "tokenizer.json").write_text(tokenizer.json_text)
        config["tokenizer_marks"] = tokenizer.names
    partial = folder / "config.json.partial"
    partial.write_text(json.dumps(config, indent=1) + "\n")
    os.replace(partial, folder / "config.json")


def load_folder(folder: Path) -> tuple[VLM, AnyTokenizer]:
    """The model and tokenizer of an exported folder."""
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") != "stts_mini":
        raise WeightsError(f"{folder} holds a {config.get('model_type')!r}, not a whole model of ours")
    model = VLM(checkpoint.model_config(dict(model_config=config["model"])))
    fit(model, read_weights(folder), str(folder))
    text = folder / "tokenizer.json"
    tokenizer = PretrainedTokenizer(text.read_text(), config["tokenizer_marks"]) if text.exists() else TOKENIZER
    return model.eval(), tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the module's docstring."""
    parser = argparse.ArgumentParser(
        "python -m stts_mini.lab.pretrained", description=__doc__.split("\n")[0], allow_abbrev=False,
        epilog="All flags of python -m stts_mini.train may follow.",
    )  # fmt: skip
    parser.add_argument("--vit", metavar="FOLDER|NAME", help="a SigLIP or SigLIP 2 (fixed resolution)")
    parser.add_argument("--llm", metavar="FOLDER|NAME", help="a Qwen3")
    parser.add_argument("--image-size", type=int, help="side of a frame in pixels, if not the ViT's own")
    parser.add_argument("--vit-depth", type=int, help="how many of the ViT's blocks to use, if not all")
    parser.add_argument("--export", nargs=2, metavar=("CHECKPOINT", "FOLDER"), help="write a checkpoint as a folder")
    args, rest = parser.parse_known_args(argv)
    try:
        if args.export:
            model, state = checkpoint.load_model(args.export[0])
            save_folder(Path(args.export[1]), model, tokenizer_of(state))
            return
        if not args.vit or not args.llm:
            parser.error("give --vit and --llm, or --export")
        vit_folder, llm_folder = folder_of(args.vit), folder_of(args.llm)
        sizes = settings_of(vit_config(vit_folder, args.image_size, args.vit_depth), llm_config(llm_folder))
        config, flags = parse_flags(rest, {**RECIPE, **sizes})
        model, tokenizer = build(config, vit_folder, llm_folder)
    except (ValueError, OSError) as error:
        sys.exit(f"{parser.prog}: error: {error}")
    job(parser.prog, config, flags, model, tokenizer)


if __name__ == "__main__":
    main()
