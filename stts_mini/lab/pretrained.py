"""Real weights in our modules: a SigLIP vision tower and a Qwen3 language model, from Hugging Face folders.

    python -m stts_mini.lab.pretrained --vit google/siglip2-so400m-patch14-384 --llm Qwen/Qwen3-0.6B \\
        --data train.jsonl --val val.jsonl                      every flag of stts_mini.train
    python -m stts_mini.lab.pretrained --export runs/pretrained/checkpoint.pt folder [--scorer my_file.py:MyScorer]

`--vit` and `--llm` are local folders, read without any network, or names that huggingface_hub downloads. A folder has
config.json, *.safetensors and, for the LLM, tokenizer.json. Weights are only renamed. Positions are resized if
`--image-size` asks for another grid. `--vit-depth` takes only the first blocks (the paper reads 25 of 27). Connector
and scorer start fresh. A folder that needs more is refused: scaled positions, sliding windows, quantised weights, an
unknown setting. Needs `pip install -e '.[pretrained]'`.

An exported folder holds model.safetensors (the whole VLM), config.json (its `VLMConfig`) and tokenizer.json.
`load_folder` makes the same model from it.

What this file does not do: define the architectures (`vit.py`, `llm.py`), train (`train.py`).
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from stts_mini.data.batches import TOKENIZER, AnyTokenizer
from stts_mini.data.clips import normalised
from stts_mini.data.tokenizer import PretrainedTokenizer
from stts_mini.lab.paper.train import PaperConfig
from stts_mini.llm import LLMConfig, from_qwen3
from stts_mini.model import VLM
from stts_mini.train import job
from stts_mini.training import checkpoint
from stts_mini.training.config import TrainConfig, parse_flags
from stts_mini.training.logging import one_line_errors, parser_of
from stts_mini.vit import ViTConfig, from_siglip, resized_positions

# the paper's rates (§4), all with AdamW: LLM 1e-5, ViT and connector half of that, scorer ten times that
RECIPE = dict(
    out="runs/pretrained", lr=1e-5, muon_lr=0.0, vision_lr_ratio=0.5, scorer_lr_ratio=10.0, sim_weight=1.0, warmup=200,
    scorer_steps=0, steps=2000, batch_size=4, score_after=3, max_frames=64, stages={}, save_every=500,
    recompute=True,  # without it, activations alone take about 180 GB
)  # fmt: skip


class WeightsError(ValueError):
    """Weights that do not fit. The message names what is missing, unexpected or of another shape."""


def require(holds: bool, why: str) -> None:
    """Raise WeightsError unless `holds`."""
    if not holds:
        raise WeightsError(why)


def folder_of(name: str) -> Path:
    """The local folder of that name, or the snapshot that huggingface_hub downloads."""
    if Path(name).is_dir():
        return Path(name)
    online = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    require(online, f"{name} is neither a folder here nor a name like Qwen/Qwen3-0.6B")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # the network can raise anything
        raise WeightsError(f"could not download {name}: {str(error).splitlines()[0]}") from error


# What a config.json may say: we read `READ`, `ONLY` must have these values, `HARMLESS` changes no number. Everything
# else is refused, unless it is null, false, 0 or empty.
READ = dict(
    siglip_vision_model={
        "image_size", "patch_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "layer_norm_eps",
    },
    qwen3={
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "rope_parameters", "rope_scaling",
        "layer_types",
    },
)  # fmt: skip
ONLY = dict(
    siglip_vision_model=dict(hidden_act=["gelu_pytorch_tanh"], num_channels=[3]),
    qwen3=dict(hidden_act=["silu", "swish"], is_causal=[True, None], tie_word_embeddings=[True, False, None]),
)
HARMLESS = re.compile(
    r"model_type|architectures|_name_or_path|(torch_)?dtype|\w+_version|\w+_token_id|\w+_dropout|initializer_\w+"
    r"|max_position_embeddings|use_cache|sliding_window|max_window_layers|vision_use_head|tie_word_embeddings"
    r"|return_dict|id2label|label2id|pretraining_tp|text_config|vision_config"
)


@contextmanager
def using(what: object) -> Iterator[None]:
    """Any error inside becomes a WeightsError of one line that names the file or folder."""
    try:
        yield
    except (WeightsError, ImportError):
        raise
    except Exception as error:  # a damaged file can raise almost anything
        kind = "" if isinstance(error, ValueError | OSError | RuntimeError) else f"{type(error).__name__}: "
        raise WeightsError(f"{what} cannot be used: {textwrap.shorten(f'{kind}{error}', 1000)}") from error


def read_json(path: Path) -> dict:
    """The object in a JSON file."""
    with using(path):
        read = json.loads(path.read_text(encoding="utf-8"))
    require(isinstance(read, dict), f"{path} holds no object in curly brackets")
    return read


def read_config(folder: Path, kind: str) -> dict:
    """The part of config.json that describes a model of this kind: "siglip_vision_model", "qwen3" or "stts_mini".
    Raises WeightsError for another kind, and for a file that needs more than `vit.py` and `llm.py` do."""
    path = folder / "config.json"
    config, whole = read_json(path), {}
    if kind == "siglip_vision_model" and "vision_config" in config:
        whole, config = config, config["vision_config"]
        require(isinstance(config, dict), f"{path} has a vision_config that is no object in curly brackets")
        outer = whole.get("model_type")
        require(outer == "siglip", f"{path} describes a {outer!r}: this reads 'siglip' models")
    found = config.get("model_type", kind if whole else None)
    require(found == kind, f"{path} describes a {found!r}: this reads {kind!r} models")
    for name, value in (whole | config).items() if kind in READ else ():
        usual = ONLY[kind].get(name)
        known = value in usual if usual else not value or name in READ[kind] or HARMLESS.fullmatch(name)
        due = f"only {usual[0]!r} is" if usual else "if it changes no number, take it out of the file"
        require(known, f"{path} says {name} = {str(value)[:200]}, which is not done here: {due}")
    return config


def number(config: dict, name: str, usual: float | None = None, kind: type = int) -> float:
    """A number above 0 from a config, or `usual` if it has none. Raises ValueError for anything else."""
    value = usual if config.get(name) is None else config[name]
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not ((whole or (kind is float and isinstance(value, float))) and 0 < value < math.inf):
        raise ValueError(f"{name} = {value!r}: give a {'whole ' * (kind is int)}number above 0")
    return value


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder: of model.safetensors, or else of the files that an index names."""
    from safetensors.torch import load_file

    index, weights, files = folder / "model.safetensors.index.json", {}, ["model.safetensors"]
    if index.exists() and not (folder / files[0]).exists():
        with using(index):
            files = sorted(set(read_json(index)["weight_map"].values()))
    for name in files:
        with using(f"{folder}/{name}"):
            weights |= load_file(folder / name)
    return weights


def vit_config(folder: Path, image_size: int | None = None, depth: int | None = None) -> ViTConfig:
    """The sizes of a SigLIP vision tower. Without `image_size`: the tower's own, cut to whole patches (384 → 378)."""
    c = read_config(folder, "siglip_vision_model")
    with using(folder / "config.json"):
        patch, blocks = number(c, "patch_size", 16), number(c, "num_hidden_layers", 12)
        size = image_size or number(c, "image_size", 224)
        require(size % patch == 0 or not image_size, f"image_size {size} is not a multiple of the patch size {patch}")
        require(not depth or depth <= blocks, f"vit_depth {depth}, but {folder} has {blocks} blocks")
        return ViTConfig(
            size // patch * patch, patch, number(c, "hidden_size", 768), depth or blocks,
            number(c, "num_attention_heads", 12), number(c, "intermediate_size", 3072),
            number(c, "layer_norm_eps", 1e-6, float),
        )  # fmt: skip


def llm_config(folder: Path) -> LLMConfig:
    """The sizes of a Qwen3 model."""
    c = read_config(folder, "qwen3")
    layers = c.get("layer_types") or ["full_attention"]
    plain = isinstance(layers, list) and all(layer == "full_attention" for layer in layers)
    require(plain, f"{folder} has layers of the types {layers}: only full_attention is known")
    with using(folder / "config.json"):
        width, heads = number(c, "hidden_size"), number(c, "num_attention_heads")
        return LLMConfig(
            number(c, "vocab_size"), width, number(c, "num_hidden_layers"), heads,
            number(c, "num_key_value_heads", heads), number(c, "head_dim", width // heads),
            number(c, "intermediate_size"), rope_theta(c, folder), number(c, "rms_norm_eps", 1e-6, float),
            bool(c.get("tie_word_embeddings")),
        )  # fmt: skip


def rope_theta(config: dict, folder: Path) -> float:
    """θ of plain rotary positions, from config.json itself or from its `rope_parameters` (transformers 5)."""
    thetas = [config.get("rope_theta")]
    for name in ("rope_scaling", "rope_parameters"):
        rope = config.get(name) or {}
        plain = isinstance(rope, dict) and rope.keys() <= {"rope_type", "type", "rope_theta"}
        plain = plain and all(rope.get(key, "default") == "default" for key in ("rope_type", "type"))
        require(plain, f"{folder} has {name} = {rope}: rotary positions are not scaled here, only the default is known")
        thetas.append(rope.get("rope_theta"))
    thetas = [theta for theta in thetas if theta is not None]
    require(all(theta == thetas[0] for theta in thetas), f"{folder} has more than one rope_theta: {thetas}")
    return number(dict(rope_theta=thetas[0] if thetas else 10_000.0), "rope_theta", kind=float)


def fit(module: torch.nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Load exactly a folder's weights into a module. Raises WeightsError that names what does not fit."""
    for name, weight in weights.items():
        full = weight.is_floating_point() and weight.dtype.itemsize > 1
        require(full, f"{folder}: {name} is {weight.dtype}: quantised weights are not read, give 16 or 32 bits")
        require(bool(weight.isfinite().all()), f"{folder}: {name} holds NaN or infinity: the file is damaged")
    with using(f"the weights of {folder}"):
        module.load_state_dict(weights)


def load_vit(vit: torch.nn.Module, folder: Path) -> None:
    """Put a SigLIP's weights into a `ViT`. Leaves out its text tower, pooling head, further blocks and the final norm,
    which the connector does not read. Positions are resized if our grid is another."""
    check_pixels(folder)
    theirs, read, own = vit_config(folder), read_weights(folder), vit.state_dict()
    D, p = theirs.width, theirs.patch_size
    sizes = {"patch_embedding.weight": (D, 3, p, p), "position_embedding.weight": (theirs.num_patches, D)}
    for name, weight in read.items():
        found = tuple(weight.shape)
        due = sizes.get(name.removeprefix("vision_model.").removeprefix("embeddings."), found)
        require(found == due, f"{folder}: {name} is {found}, but {due} by config.json")
    further = tuple(f"blocks.{i}." for i in range(len(vit.blocks), theirs.depth))
    left_out = ("text_model.", "logit_", "post_layernorm.", *further)
    weights = {n: w for n, w in from_siglip(read).items() if n in own or not n.startswith(left_out)}
    positions, patches = weights.get("position_embedding"), len(vit.position_embedding)
    if positions is not None and len(positions) != patches:
        weights["position_embedding"] = resized_positions(positions, patches)
    fit(vit, weights, folder)


def check_pixels(folder: Path) -> None:
    """Raise WeightsError unless pixels are to be scaled to [−1, 1], as `model.normalise` does."""
    usual = dict(do_rescale=True, rescale_factor=1 / 255, do_normalize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    for path in (folder / "preprocessor_config.json", folder / "processor_config.json"):
        said = read_json(path) if path.exists() else {}
        with using(path):
            said = {**usual, **said.get("image_processor", said)}
        for name, due in usual.items():
            scaled = "pixels are scaled to [−1, 1] here"
            require(said[name] == due, f"{path} says {name} = {said[name]} instead of {due}: {scaled}")


def load_llm(llm: torch.nn.Module, folder: Path) -> None:
    """Put a Qwen3's weights into an `LLM`."""
    weights = read_weights(folder)
    head, words = weights.get("lm_head.weight"), weights.get("model.embed_tokens.weight")
    with using(folder):
        same = head is None or words is None or torch.equal(head, words)
    require(same or not llm.config.tied, f"{folder} has tie_word_embeddings, but an lm_head.weight that differs")
    fit(llm, from_qwen3(weights, llm.config.tied), folder)


def load_tokenizer(folder: Path, vocab_size: float = math.inf, marks: dict | None = None) -> PretrainedTokenizer:
    """The LLM's own tokenizer. Raises WeightsError if it has ids beyond `vocab_size`, or if it changes a text, because
    answers must come back unchanged."""
    path, text = folder / "tokenizer.json", "Red, 12.5 zébra ½"
    with using(f"{path}, the fast tokenizer's file,"):
        tokenizer = PretrainedTokenizer(path.read_text(encoding="utf-8"), marks)
        again, most = normalised(tokenizer.decode(tokenizer.encode(text))), max(tokenizer.fast.get_vocab().values())
    require(again == text, f"{path} gives {text!r} back as {again!r}: this needs a tokenizer that keeps texts")
    require(most < vocab_size, f"{path} has the token {most}, but the LLM has {vocab_size} embeddings: resize those")
    return tokenizer


def settings_of(vit: ViTConfig, llm: LLMConfig) -> dict:
    """The sizes of both as settings of a training run. w = 3, as in the paper, if the grid can be divided by 3."""
    return dict(
        image_size=vit.image_size, patch_size=vit.patch_size, vit_width=vit.width, vit_depth=vit.depth,
        vit_heads=vit.heads, vit_mlp=vit.mlp, w=3 if vit.grid % 3 == 0 else 2, llm_width=llm.width,
        llm_depth=llm.depth, llm_heads=llm.heads, llm_kv_heads=llm.kv_heads, llm_head_dim=llm.head_dim,
        llm_mlp=llm.mlp,
    )  # fmt: skip


def build(config: TrainConfig, vit_folder: Path, llm_folder: Path) -> tuple[VLM, PretrainedTokenizer]:
    """The VLM of a training run, with both backbones' weights, and the tokenizer that goes with it."""
    llm = llm_config(llm_folder)
    tokenizer = load_tokenizer(llm_folder, llm.vocab_size)
    vit = vit_config(vit_folder, config.image_size, config.vit_depth)
    torch.manual_seed(config.seed)
    model = VLM(dataclasses.replace(config.model, vit=vit, llm=llm, marks=tokenizer.marks))
    load_vit(model.vit, vit_folder)
    load_llm(model.llm, llm_folder)
    return model, tokenizer


def save_folder(folder: Path, model: VLM, tokenizer: AnyTokenizer = TOKENIZER) -> None:
    """Write model.safetensors, config.json and, for a real LLM, tokenizer.json. The config comes last, so that an
    unfinished folder does not load. Raises WeightsError for a folder that is not empty."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    require(not any(folder.iterdir()), f"{folder} is not empty: give another")
    save_file({name: w.contiguous() for name, w in model.state_dict().items()}, folder / "model.safetensors")
    config = dict(model_type="stts_mini", model=dataclasses.asdict(model.config))
    if tokenizer is not TOKENIZER:
        (folder / "tokenizer.json").write_text(tokenizer.json_text, encoding="utf-8")
        config["tokenizer_marks"] = tokenizer.names
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def load_folder(folder: Path) -> tuple[VLM, AnyTokenizer]:
    """The model and tokenizer of an exported folder."""
    config = read_config(folder, "stts_mini")
    with using(folder / "config.json"):
        model, marks = VLM(checkpoint.model_config(dict(model_config=config["model"]))), config.get("tokenizer_marks")
    fit(model, read_weights(folder), folder)
    own = marks or (folder / "tokenizer.json").exists()
    tokenizer = load_tokenizer(folder, model.config.llm.vocab_size, marks) if own else TOKENIZER
    require(tokenizer.marks == model.config.marks, f"{folder} has a tokenizer whose marks are not those of its model")
    return model.eval(), tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the module's docstring."""
    parser = parser_of("lab.pretrained", __doc__)
    parser.epilog = "All flags of python -m stts_mini.train may follow."
    parser.add_argument("--vit", metavar="FOLDER|NAME", help="a SigLIP or SigLIP 2 (fixed resolution)")
    parser.add_argument("--llm", metavar="FOLDER|NAME", help="a Qwen3")
    parser.add_argument("--image-size", type=int, help="side of a frame in pixels, if not the ViT's own")
    parser.add_argument("--vit-depth", type=int, help="how many of the ViT's blocks to use, if not all")
    parser.add_argument("--export", nargs=2, metavar=("CHECKPOINT", "FOLDER"), help="write a checkpoint as a folder")
    parser.add_argument("--scorer", help="what scores the cells (with --export: the checkpoint's my_file.py:MyScorer)")
    args, rest = parser.parse_known_args(argv)
    if not args.export and not (args.vit and args.llm):
        parser.error("give --vit and --llm, or --export")
    given = [f"--{name.replace('_', '-')}" for name, value in vars(args).items() if value is not None]
    if args.export and (others := [flag for flag in (*given, *rest) if flag not in ("--export", "--scorer")]):
        parser.error(f"--export has no use for {' '.join(others)}: leave it out")
    rest += ["--scorer", args.scorer] if args.scorer else []
    with one_line_errors(parser.prog):
        for flag, size in (("--image-size", args.image_size), ("--vit-depth", args.vit_depth)):
            require(size is None or size > 0, f"{flag} {size}: give 1 or more, or leave it out")
        if args.export:
            model, _, tokenizer = checkpoint.load_trained(args.export[0], scorer=args.scorer)
            return save_folder(Path(args.export[1]), model, tokenizer)
        vit_folder, llm_folder = folder_of(args.vit), folder_of(args.llm)
        sizes = settings_of(vit_config(vit_folder, args.image_size, args.vit_depth), llm_config(llm_folder))
        config, flags = parse_flags(rest, {**RECIPE, **sizes}, PaperConfig, prog=parser.prog)
        for name in sizes.keys() - {"w"}:  # w belongs to no pretrained part
            own, flag = getattr(config, name), name.replace("_", "-")
            require(own == sizes[name], f"--{flag} {own}, but the weights have {sizes[name]}: leave it out")
        model, tokenizer = build(config, vit_folder, llm_folder)
        job(parser.prog, config, flags, model, tokenizer)


if __name__ == "__main__":
    main()
