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
import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from stts_mini.data.batches import TOKENIZER, AnyTokenizer
from stts_mini.data.tokenizer import PretrainedTokenizer
from stts_mini.llm import LLMConfig, from_qwen3
from stts_mini.model import VLM
from stts_mini.train import job
from stts_mini.training import checkpoint
from stts_mini.training.config import TrainConfig, parse_flags
from stts_mini.training.logging import one_line_errors
from stts_mini.vit import ViTConfig, from_siglip, resized_positions

# the paper's rates (§4): LLM 1e-5, ViT and connector half of it, scorer ten times it; all by AdamW
RECIPE = dict(
    out="runs/pretrained", lr=1e-5, muon_lr=0.0, vision_lr_ratio=0.5, scorer_lr_ratio=10.0, warmup=200, steps=2000,
    batch_size=4, score_after=3, max_frames=64, stages={}, save_every=500,
    recompute=True,  # without it, activations alone take some 180 GB
)  # fmt: skip


class WeightsError(ValueError):
    """Weights that do not fit; the message names what is missing, unexpected or of another shape."""


def require(holds: bool, why: str) -> None:
    """Raise WeightsError unless it holds."""
    if not holds:
        raise WeightsError(why)


def folder_of(name: str) -> Path:
    """The local folder of that name, or the snapshot that huggingface_hub downloads."""
    if Path(name).is_dir():
        return Path(name)
    online = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    require(online, f"{name} is no folder here, and no name like Qwen/Qwen3-0.6B either")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # whatever the network raises
        raise WeightsError(f"could not download {name}: {str(error).splitlines()[0]}") from error


def read_config(folder: Path, kind: str) -> dict:
    """The part of config.json that describes a model of this kind: "siglip_vision_model", "qwen3" or "stts_mini"."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    config = config.get("vision_config", config) if kind.startswith("siglip") else config
    found = config.get("model_type", kind)
    require(found == kind, f"{path} describes a {found!r}: this reads {kind!r} models")
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, in one file or in several with an index."""
    from safetensors.torch import load_file

    index, weights = folder / "model.safetensors.index.json", {}
    files = json.loads(index.read_text())["weight_map"].values() if index.exists() else ["model.safetensors"]
    for name in sorted(set(files)):
        try:
            weights |= load_file(folder / name)
        except Exception as error:  # safetensors raises an error of its own
            raise WeightsError(f"{folder / name} cannot be read: {error}") from error
    return weights


def vit_config(folder: Path, image_size: int | None = None, depth: int | None = None) -> ViTConfig:
    """The sizes of a SigLIP vision tower. Without `image_size`: its own, less what fills no patch (384 → 378)."""
    c = read_config(folder, "siglip_vision_model")
    patch, size = c.get("patch_size", 16), image_size or c.get("image_size", 224)
    blocks, activation = c.get("num_hidden_layers", 12), c.get("hidden_act", "gelu_pytorch_tanh")
    require(size % patch == 0 or not image_size, f"image_size {size} is not a multiple of the patch size {patch}")
    require(activation == "gelu_pytorch_tanh", f"{folder} has the activation {activation!r}, not gelu_pytorch_tanh")
    require(not depth or depth <= blocks, f"vit_depth {depth}, but {folder} has {blocks} blocks")
    return ViTConfig(
        size // patch * patch, patch, c.get("hidden_size", 768), depth or blocks, c.get("num_attention_heads", 12),
        c.get("intermediate_size", 3072), c.get("layer_norm_eps", 1e-6),
    )  # fmt: skip


def llm_config(folder: Path) -> LLMConfig:
    """The sizes of a Qwen3 model."""
    c = read_config(folder, "qwen3")
    scaling = c.get("rope_scaling")
    require(not c.get("attention_bias"), f"{folder} has biases in its attention: Qwen3 has none")
    require(not scaling, f"{folder} scales its rotary positions ({scaling}): only plain ones are known")
    rope = (c.get("rope_parameters") or {}).get("rope_theta", c.get("rope_theta", 1e6))
    heads = c["num_attention_heads"]
    return LLMConfig(
        c["vocab_size"], c["hidden_size"], c["num_hidden_layers"], heads, c.get("num_key_value_heads", heads),
        c.get("head_dim", c["hidden_size"] // heads), c["intermediate_size"], rope, c.get("rms_norm_eps", 1e-6),
        c.get("tie_word_embeddings", False),
    )  # fmt: skip


def fit(module: torch.nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Load a folder's weights, all of them and no others. Raises WeightsError that names the misfits."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        misfits = textwrap.shorten(str(error), 1000, placeholder=" …")
        raise WeightsError(f"the weights of {folder} do not fit: {misfits}") from error


def load_vit(vit: torch.nn.Module, folder: Path) -> None:
    """Put a SigLIP's weights into a `ViT`: its text tower, pooling head, further blocks and final norm (which the
    connector does not read) are left out, and its positions resized if our grid is another."""
    own, left_out = vit.state_dict(), ("text_model.", "logit_", "post_layernorm.")
    later = lambda name: name.startswith("blocks.") and int(name.split(".")[1]) >= len(vit.blocks)
    weights = {
        name: weight
        for name, weight in from_siglip(read_weights(folder)).items()
        if name in own or not (later(name) or name.startswith(left_out))
    }
    positions, patches = weights.get("position_embedding"), len(vit.position_embedding)
    if positions is not None and len(positions) != patches:
        weights["position_embedding"] = resized_positions(positions, patches)
    fit(vit, weights, folder)


def load_llm(llm: torch.nn.Module, folder: Path) -> None:
    """Put a Qwen3's weights into an `LLM`."""
    fit(llm, from_qwen3(read_weights(folder), llm.config.tied), folder)


def load_tokenizer(folder: Path) -> PretrainedTokenizer:
    """The LLM's own tokenizer."""
    path = folder / "tokenizer.json"
    try:
        return PretrainedTokenizer(path.read_text())
    except Exception as error:  # tokenizers raises bare ones
        raise WeightsError(f"{path}, the fast tokenizer's file, cannot be used: {error}") from error


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

    folder.mkdir(parents=True, exist_ok=True)
    require(not any(folder.iterdir()), f"{folder} is not empty: give another")
    save_file({name: w.contiguous() for name, w in model.state_dict().items()}, folder / "model.safetensors")
    config = dict(model_type="stts_mini", model=dataclasses.asdict(model.config))
    if tokenizer is not TOKENIZER:
        (folder / "tokenizer.json").write_text(tokenizer.json_text)
        config["tokenizer_marks"] = tokenizer.names
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def load_folder(folder: Path) -> tuple[VLM, AnyTokenizer]:
    """The model and tokenizer of an exported folder."""
    config = read_config(folder, "stts_mini")
    model = VLM(checkpoint.model_config(dict(model_config=config["model"])))
    fit(model, read_weights(folder), folder)
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
    if not args.export and not (args.vit and args.llm):
        parser.error("give --vit and --llm, or --export")
    beside = [f"--{name.replace('_', '-')}" for name, value in vars(args).items() if value is not None]
    if args.export and (others := [flag for flag in (*beside, *rest) if flag != "--export"]):
        parser.error(f"--export has no use for {' '.join(others)}: leave it out")
    with one_line_errors(parser.prog):
        if args.export:
            model, _, tokenizer = checkpoint.load_trained(args.export[0])
            return save_folder(Path(args.export[1]), model, tokenizer)
        vit_folder, llm_folder = folder_of(args.vit), folder_of(args.llm)
        sizes = settings_of(vit_config(vit_folder, args.image_size, args.vit_depth), llm_config(llm_folder))
        config, flags = parse_flags(rest, {**RECIPE, **sizes})
        for name in sizes.keys() - {"w", "connector_mlp"}:  # these two are of no pretrained part
            own, flag = getattr(config, name), name.replace("_", "-")
            require(own == sizes[name], f"--{flag} {own}, but the weights have {sizes[name]}: leave it out")
        model, tokenizer = build(config, vit_folder, llm_folder)
        job(parser.prog, config, flags, model, tokenizer)


if __name__ == "__main__":
    main()
