"""Checkpoints: written atomically, read without running any code from the file.

A checkpoint is one file with the configs as plain dicts, the model's weights, and (for resuming) the
optimisers' state, the step and torch's random state. It is written beside its place and then moved
there, so whatever interrupts the writing, the last whole one stays.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from pathlib import Path
from typing import Any

import torch

from stts_mini.data.batches import TOKENIZER, AnyTokenizer, tokenizer_of
from stts_mini.data.clips import WORLD_ID
from stts_mini.data.files import printable, replacing
from stts_mini.llm import LLMConfig
from stts_mini.model import VLM, VLMConfig
from stts_mini.scorer import find_scorer
from stts_mini.sequence import Marks
from stts_mini.training.config import TrainConfig, upgraded
from stts_mini.vit import ViTConfig, resized_positions

FORMAT = "stts_mini 1"


class CheckpointError(ValueError):
    """A file that cannot be used as a checkpoint; the message says why and what to do."""


def save(path: str | os.PathLike, model: VLM, **rest: Any) -> None:
    """Write the model and `rest` (tensors and plain Python values only) to `path`, all or nothing."""
    path = Path(path)
    state = {"format": FORMAT, "model_config": dataclasses.asdict(model.config), "model": model.state_dict(), **rest}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial, open(partial, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        kept = f"; the last good one is still there: {path}" if path.exists() else ""
        raise CheckpointError(f"could not write {path} ({error}){kept}") from error


def load(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint, onto the CPU; plain data only, nothing in the file is executed. Raises CheckpointError."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: `python -m stts_mini.train` makes one")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise almost anything
        reason = type(error).__name__  # what it says may be advice to load what should not be loaded
        raise CheckpointError(f"{path} is not a checkpoint of this project, or is damaged ({reason})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this project (expected format {FORMAT!r})")
    if "train_config" in state:
        state["train_config"] = upgraded(state["train_config"])
    return state


def model_config(state: dict[str, Any]) -> VLMConfig:
    """The model's config from a loaded checkpoint. Raises CheckpointError for one of another version."""
    try:
        parts = dict(state["model_config"])
        vit, llm, marks = ViTConfig(**parts.pop("vit")), LLMConfig(**parts.pop("llm")), Marks(**parts.pop("marks", {}))
        return VLMConfig(vit=vit, llm=llm, marks=marks, **{**parts, "taps": tuple(parts["taps"])})
    except ValueError as error:  # a scorer of somebody's file, say
        raise CheckpointError(f"the checkpoint's model cannot be made: {error}") from error
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"the checkpoint was written by another version of this code ({error})") from error


def load_weights(model: VLM, state: dict[str, Any], path: str | os.PathLike) -> None:
    """Put a checkpoint's weights into a model of the same shape. Raises CheckpointError that names the
    first weight that does not fit."""
    own = model.state_dict()
    for name in sorted({*own, *state["model"]}):
        here, there = (tuple(w[name].shape) if name in w else "nothing" for w in (own, state["model"]))
        if here != there:
            raise CheckpointError(
                f"{path} has another shape: {name} is {there} there and {here} in this model;"
                " give the flags it was trained with, or another --out or --init"
            )
    model.load_state_dict(state["model"])  # into the model's own types


def start_from(model: VLM, state: dict[str, Any], path: str | os.PathLike) -> None:
    """Begin where an unpruned model stopped: take the ViT, connector and LLM of a loaded checkpoint, but leave
    the scorer fresh. Positions are resized if the model's grid is another. Raises CheckpointError for a checkpoint
    that cannot be used."""
    scorer = {name: weight for name, weight in model.state_dict().items() if name.startswith("scorer.")}
    others = {name: weight for name, weight in state["model"].items() if not name.startswith("scorer.")}
    name, patches = "vit.position_embedding", model.config.vit.num_patches
    if name in others and len(others[name]) != patches:
        others[name] = resized_positions(others[name], patches)
    load_weights(model, {"model": {**others, **scorer}}, path)


def load_model(path: str | os.PathLike, device: torch.device | str = "cpu") -> tuple[VLM, dict[str, Any]]:
    """The model of a checkpoint, ready to use, and everything else that the file holds."""
    state = load(path)
    model = VLM(model_config(state)).to(device)
    load_weights(model, state, path)
    return model.eval(), state


def load_trained(
    path: str | os.PathLike, device: torch.device | str = "cpu", scorer: str | None = None
) -> tuple[VLM, dict[str, Any], AnyTokenizer]:
    """The model of a checkpoint, everything else that the file holds, and the model's tokenizer. `scorer`: the name of
    another scorer than in training. Raises ValueError for a model of another world."""
    other = find_scorer(scorer) if scorer else None  # before the checkpoint, which may name it
    model, state = load_model(path, device)
    check_world(state, path)
    if other and scorer != model.config.scored_by:
        model.scorer = other(model.config.scorer).to(device)
    return model, state, tokenizer_of(state)


def keep_old_run(out: Path) -> None:
    """A finished or broken-off run in `out` is moved aside, to out.1, out.2, …; nothing is overwritten."""
    if (out / "checkpoint.pt").exists():
        aside = next(p for n in itertools.count(1) if not (p := out.with_name(f"{out.name}.{n}")).exists())
        out.rename(aside)
        print(printable(f"the run in {out} was moved to {aside} (--resume would have gone on with it)"))


def check_world(state: dict, path: str | Path) -> None:
    """Raises CheckpointError for a model that was trained in another world, or with other words."""
    if state.get("world") != WORLD_ID and not state.get("tokenizer"):  # a real LLM knows no world of ours
        raise CheckpointError(
            f"{path} was trained in {state.get('world', 'an older world')}; this code has {WORLD_ID}: train anew, or"
            " take the code that it was trained with"
        )


def save_run(
    path: Path,
    step: int,
    model: VLM,
    optimizers: list[torch.optim.Optimizer],
    config: TrainConfig,
    clips: str,
    tokenizer: AnyTokenizer = TOKENIZER,
) -> None:
    """Write the checkpoint that a resumed run goes on from; `clips`: the fingerprint of what it learns from."""
    own = {} if tokenizer is TOKENIZER else dict(tokenizer=dict(json=tokenizer.json_text, marks=tokenizer.names))
    save(
        path, model, step=step, train_config=dataclasses.asdict(config), clips=clips, world=WORLD_ID,
        optimizers=[o.state_dict() for o in optimizers], rng=torch.get_rng_state(), **own,
    )  # fmt: skip


def restore(
    path: Path,
    model: VLM,
    optimizers: list[torch.optim.Optimizer],
    config: TrainConfig,
    clips: str,
) -> int:
    """Load a run's last checkpoint into model and optimisers; returns the step to go on with."""
    state = load(path)  # on the CPU: load_state_dict moves what belongs elsewhere
    check_world(state, path)
    then, now, usual = state["train_config"], dataclasses.asdict(config), dataclasses.asdict(type(config)())
    free = {
        "out", "data", "val", "device", "compile", "recompute", "cache_gb", "save_every", "accumulate", "test_clips",
        "varlen",
    }  # fmt: skip
    names = [name for name in {**now, **then} if name not in free]
    values = {name: (then.get(name, usual.get(name)), now.get(name)) for name in names}  # then: perhaps fewer settings
    changed = [f"{name} was {old!r}, is {new!r}" for name, (old, new) in values.items() if old != new]
    if state.get("clips", clips) != clips:
        changed.append(f"the training clips were {state['clips']}, are {clips}")
    if changed:
        raise CheckpointError(f"cannot resume {path} with other settings: {'; '.join(changed)}")
    load_weights(model, state, path)
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    torch.set_rng_state(state["rng"])
    print(printable(f"resumed {path} at step {state['step']} of {config.steps}"))
    return state["step"]
