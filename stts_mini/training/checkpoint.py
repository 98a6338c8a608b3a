"""Checkpoints: written atomically, read without running any code from the file.

A checkpoint is one file. It holds the configs as plain dicts and the model's weights. For resuming it also holds the
optimisers' state, the step and, for each process, the state of torch's generator on the CPU. No other generator's
state is kept. The file is written beside its place and then moved there. So the last whole checkpoint stays, whatever
interrupts the writing. While a run lives, its folder is locked (`alone`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch

try:
    import fcntl
except ImportError:  # Windows: folders are not locked there
    fcntl = None

from stts_mini.data.batches import TOKENIZER, AnyTokenizer
from stts_mini.data.clips import WORLD_ID
from stts_mini.data.files import printable, replacing, require, sweep, writable
from stts_mini.data.tokenizer import PretrainedTokenizer
from stts_mini.llm import LLMConfig
from stts_mini.model import VLM, VLMConfig
from stts_mini.scorer import SCORERS, find_scorer
from stts_mini.sequence import Marks
from stts_mini.training import distributed
from stts_mini.training.config import TrainConfig, upgraded, without_effect
from stts_mini.vit import ViTConfig, resized_positions

FORMAT = "stts_mini 1"
RESULTS = ("result.json", "result-val.json")
FILES = ("checkpoint.pt", "config.json", "log.csv", "curve.png", "pruned.png", *RESULTS)  # of a run
LOCK = "lock"  # in a run's folder while it lives, with the number of its process
READ = ("k", "max_frames", "fps", "image_size", "seed", "data", "train_clips")  # settings that commands ask for


class CheckpointError(ValueError):
    """A file that cannot be used as a checkpoint. The message says why and what to do."""


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
    except (OSError, RuntimeError) as error:
        kept = f"; the last good one is still there: {path}" if path.exists() else ""
        raise CheckpointError(f"could not write {path} ({error}){kept}") from error


def load(path: str | os.PathLike, *parts: str) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. It is plain data: no code in the file is executed. Raises CheckpointError, also
    for a checkpoint that lacks any of `parts`, or that holds NaN or infinity."""
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: give {path / 'checkpoint.pt'}")
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: `python -m stts_mini.train` makes one")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise almost anything
        reason = type(error).__name__  # torch's own message may advise to load the file unsafely
        raise CheckpointError(f"{path} is not a checkpoint of this project, or is damaged ({reason})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this project (expected format {FORMAT!r})")
    need = ("model_config", "model", *parts)
    lacks = [name for name in need if state.get(name) is None]
    for name in {"model_config", "model", "train_config"} & state.keys() - {*lacks}:
        lacks += [name] * (not isinstance(state[name], dict))
    if not lacks and "train_config" in state:
        state["train_config"] = upgraded(state["train_config"])
        lacks += [
            f"the setting {name}" for name in READ if "train_config" in parts and name not in state["train_config"]
        ]
    if lacks:
        raise CheckpointError(f"{path} lacks {', '.join(lacks)}: it is damaged, or of another version of this code")
    if wrong := next(no_numbers(state), None):
        raise CheckpointError(f"{path} is damaged: {wrong} is not a finite number everywhere")
    return state


def no_numbers(value: Any, name: str = "") -> Iterator[str]:
    """Where in nested dicts and lists there is a NaN or an infinity.

    >>> list(no_numbers(dict(step=3, model={"vit.bias": torch.tensor([0.0, torch.nan])})))
    ['model.vit.bias']
    """
    if isinstance(value, float | torch.Tensor) and not torch.as_tensor(value).isfinite().all():
        yield name
    children = value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list | tuple) else ())
    for key, child in children:
        yield from no_numbers(child, f"{name}.{key}".removeprefix("."))


def model_config(state: dict[str, Any]) -> VLMConfig:
    """The model's config from a loaded checkpoint. Raises CheckpointError for one of another version."""
    try:
        parts = dict(state["model_config"])
        vit, llm, marks = ViTConfig(**parts.pop("vit")), LLMConfig(**parts.pop("llm")), Marks(**parts.pop("marks", {}))
        return VLMConfig(vit=vit, llm=llm, marks=marks, **{**parts, "taps": tuple(parts["taps"])})
    except ValueError as error:  # such as a scorer in a user's file
        raise CheckpointError(f"the checkpoint's model cannot be made: {error}") from error
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"the checkpoint was written by another version of this code ({error})") from error


def load_weights(model: VLM, state: dict[str, Any], path: str | os.PathLike) -> None:
    """Put a checkpoint's weights into a model of the same shape. Raises CheckpointError that names the first weight
    that does not fit."""
    own = model.state_dict()
    for name in sorted({*own, *state["model"]}, key=str):
        here, there = (
            tuple(getattr(w.get(name), "shape", ())) if name in w else "nothing" for w in (own, state["model"])
        )
        if here != there:
            raise CheckpointError(
                f"{path} has another shape: {name} is {there} there and {here} in this model, whose scorer is"
                f" {model.config.scored_by}. Give the flags it was trained with, or another --out or --init"
            )
    model.load_state_dict(state["model"])  # this keeps the model's own types


def start_from(model: VLM, state: dict[str, Any], path: str | os.PathLike) -> None:
    """Begin where an unpruned model stopped. Takes the ViT, connector and LLM of a loaded checkpoint. The scorer
    stays fresh. Positions are resized if the model has another grid. Raises CheckpointError if weights do not fit, or
    for what their shapes may not tell, such as another number of heads."""
    untold = ("heads", "kv_heads", "head_dim", "rope_theta", "eps")
    for part, name in itertools.product(("vit", "llm"), untold):
        here = getattr(getattr(model.config, part), name, None)
        there = state.get("model_config", {}).get(part, {}).get(name, here)  # older files may lack some
        if there != here:
            cure = "Give the flags it was trained with, or another --init"
            raise CheckpointError(f"{path} is another model: {part}.{name} is {there} there and {here} here. {cure}")
    scorer = {name: weight for name, weight in model.state_dict().items() if name.startswith("scorer.")}
    others = {name: weight for name, weight in state["model"].items() if not name.startswith("scorer.")}
    name, patches = "vit.position_embedding", model.config.vit.num_patches
    if name in others and len(others[name]) != patches:
        others[name] = resized_positions(others[name], patches, antialias=True)
    load_weights(model, {"model": {**others, **scorer}}, path)


def load_model(
    path: str | os.PathLike, device: torch.device | str = "cpu", scorer: str | None = None, needs: Sequence[str] = ()
) -> tuple[VLM, dict[str, Any]]:
    """The model of a checkpoint, ready to use, and everything else that the file holds, at least the parts in `needs`.
    `scorer`: the scorer to use if the model's own is not known. A class in a file is known by its name, because the
    file may have moved. If the file has changed since, a line says so. Raises CheckpointError."""
    state, put = load(path, *needs), load_weights
    parts = state["model_config"]
    own = str(parts.get("scored_by", "stts"))
    named = (scorer, *[own] * (own in SCORERS), *SCORERS)
    if here := next((name for name in named if name and class_of(name) == class_of(own)), None):
        parts["scored_by"] = here
        then = state.get("scorer_file")
        if then and then != (now := contents(here)):
            print(printable(f"note: {path} was trained with {own} (contents {then}); {here} has contents {now}"))
    elif scorer:
        parts["scored_by"], put = scorer, start_from
    else:
        raise CheckpointError(
            f"{path} was trained with {own}, and that file is not imported unless you name it: give --scorer {own}, or"
            " where this class is now. To judge with another: --scorer cosine"
        )
    model = VLM(model_config(state)).to(device)
    put(model, state, path)
    return model.eval(), state


def class_of(scorer: str) -> str:
    """The name that identifies a scorer, wherever its file is.

    >>> class_of("a/mine.py:MyScorer"), class_of("stts")
    (':MyScorer', 'stts')
    """
    return "".join(str(scorer).rpartition(":")[1:])


def contents(scorer: str) -> str:
    """12 hex digits that identify the contents of a scorer's file. Raises CheckpointError if it cannot be read."""
    try:
        return digest_of(Path(scorer.rpartition(":")[0]))
    except OSError as error:
        raise CheckpointError(f"the file of scorer {scorer} cannot be read ({error})") from error


def digest_of(path: Path, digits: int = 12) -> str:
    """Hex digits that identify the contents of a file. Raises OSError if it cannot be read."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:digits]


def load_trained(
    path: str | os.PathLike, device: torch.device | str = "cpu", scorer: str | None = None
) -> tuple[VLM, dict[str, Any], AnyTokenizer]:
    """The model of a checkpoint, everything else that the file holds, and the model's tokenizer. `scorer`: the
    name of a scorer to use instead of the trained one, whose file is then not needed. Raises ValueError for a model of
    another world."""
    other = find_scorer(scorer) if scorer else None  # before the checkpoint, which may name it
    model, state = load_model(path, device, scorer, needs=("step", "train_config"))
    check_world(state, path)
    if other and scorer != model.config.scored_by:
        model.scorer = other(model.config.scorer).to(device)
        model.config = dataclasses.replace(model.config, scored_by=scorer)
    trained = state["train_config"].get("scorer", "stts")
    if other and class_of(scorer) != class_of(trained) and any(True for _ in model.scorer.parameters()):
        print(printable(f"note: {path} was trained with {trained}: the weights of {scorer} are fresh, not trained"))
    real = state.get("tokenizer")  # an LLM's own
    return model, state, PretrainedTokenizer(real["json"], real["marks"]) if real else TOKENIZER


def locked(file: IO, wait: bool = False) -> bool:
    """Lock a file until it is closed or its process ends. False if another process has it, unless we `wait`. Where
    there are no locks, True without one."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


@contextmanager
def alone(out: str | os.PathLike) -> Iterator[None]:
    """Lock a run's folder against any other run until the block ends. The folder is made if it does not exist. The lock
    ends with its process, however that ends. A run inside a run may use the same folder. Raises ValueError for a
    folder that another process has locked, or that cannot be written to."""
    require(os.fspath(out), "out is empty: give --out a folder")
    if distributed.rank():  # process 0 locks it for all
        yield
        return
    lock, me = Path(out) / LOCK, f"{os.getpid()} on {platform.node()}"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = open(lock, "a+")  # noqa: SIM115
    except OSError as error:
        raise ValueError(f"cannot write to the folder {out} ({error}): give another --out") from error
    inner = ours = False
    with file:
        if not locked(file):
            file.seek(0)
            inner = (other := file.read()) == me
            require(inner, "{} is in use by process {}: wait for its end, or give another --out", out, other)
        with suppress(FileNotFoundError):  # another run has just ended: its lock is gone, or is a third run's
            ours = os.path.samestat(os.fstat(file.fileno()), lock.stat())
        require(ours, "{} was in use just now: try again", out)
        try:
            for name in FILES:
                writable(lock.with_name(name))
            if not inner:
                sweep(lock.parent.resolve())
                file.truncate(0)
                file.write(me)
                file.flush()
            yield
        finally:
            if not inner:
                with suppress(OSError):  # an empty folder is removed, too
                    lock.unlink()
                    lock.parent.rmdir()


def keep_old_run(out: Path) -> None:
    """Move an earlier run in `out` aside, to out.1, out.2, … Nothing is overwritten, and what is not a run's stays."""
    if (out / "checkpoint.pt").exists():
        out = out.resolve()
        aside = next(p for n in itertools.count(1) if not (p := out.with_name(f"{out.name}.{n}")).exists())
        aside.mkdir()
        try:
            for name in reversed(FILES):  # checkpoint.pt is the last to go
                if (out / name).exists():
                    (out / name).rename(aside / name)
        except OSError as error:  # `out` may be a disk of its own
            with suppress(OSError):
                for file in aside.iterdir():
                    file.rename(out / file.name)
                aside.rmdir()
            raise ValueError(
                f"cannot move the run in {out} aside ({error}): give another --out, or --resume"
            ) from error
        print(printable(f"the run in {out} was moved to {aside} (--resume would have continued it)"))


def check_world(state: dict, path: str | Path) -> None:
    """Raise CheckpointError for a model that was trained in another world, or with other words."""
    if state.get("world") != WORLD_ID and not state.get("tokenizer"):  # a real LLM does not depend on our world
        raise CheckpointError(
            f"{path} was trained in {state.get('world', 'an older world')}; this code has {WORLD_ID}: train again, or"
            " use the code that it was trained with"
        )


def save_run(
    path: Path,
    step: int,
    model: VLM,
    optimizers: list[torch.optim.Optimizer],
    config: TrainConfig,
    began: dict[str, Any],
    rng: Sequence[torch.Tensor],
) -> None:
    """Write the checkpoint from which a run can be resumed. `began`: see `origin`. `rng`: the random state of every
    process."""
    save(
        path, model, step=step, train_config=dataclasses.asdict(config), world=WORLD_ID,
        optimizers=[o.state_dict() for o in optimizers], rng=list(rng), **began,
    )  # fmt: skip


def origin(config: TrainConfig, clips: str, tokenizer: AnyTokenizer, given: VLM | None) -> dict[str, Any]:
    """What a run began with, besides its settings. A resumed run must have the same. `clips`: the fingerprint of the
    training clips. `given`: the model that the run started from, if that was not made from the seed."""
    began: dict[str, Any] = dict(clips=clips)
    if tokenizer is not TOKENIZER:
        began["tokenizer"] = dict(json=tokenizer.json_text, marks=tokenizer.names)
    if ":" in config.scorer:
        began["scorer_file"] = contents(config.scorer)
    if config.init and Path(config.init).is_file():  # it need not be there any more when the run is resumed
        began["init_file"] = digest_of(Path(config.init))
    if given is not None:
        digest = hashlib.sha256()
        for w in (*given.vit.parameters(), *given.llm.parameters()):
            digest.update(w.detach().cpu().contiguous().view(torch.uint8).numpy())
        began["weights"] = digest.hexdigest()[:12]
    return began


def restore(
    path: Path, model: VLM, optimizers: list[torch.optim.Optimizer], config: TrainConfig, began: dict[str, Any]
) -> int:
    """Load a run's last checkpoint into model and optimisers. Returns the next step. `began`: see `origin`. The file of
    `init` may have moved or be gone, and what it was is kept in `began`. Raises CheckpointError for whatever would make
    it another run."""
    # on the CPU: load_state_dict moves what belongs elsewhere
    state = load(path, "step", "train_config", "clips", "optimizers", "rng")
    check_world(state, path)
    if class_of(state["train_config"].get("scorer", "stts")) == class_of(config.scorer):  # perhaps by another path
        state["train_config"]["scorer"] = state["model_config"]["scored_by"] = config.scorer
    then, now, usual = state["train_config"], dataclasses.asdict(config), dataclasses.asdict(type(config)())
    if then.get("init") and config.init and began.get("init_file") in (None, state.get("init_file")):
        then["init"] = config.init  # the file has moved, or is gone
    began["init_file"] = state.get("init_file")
    free = {
        "out", "data", "val", "device", "compile", "recompute", "cache_gb", "save_every", "accumulate", "test_clips",
        "varlen", "workers",
    }  # fmt: skip
    free |= without_effect(config, {**now, **then}).keys()
    names = [name for name in {**now, **then} if name not in free]
    now |= {name: getattr(config, name, None) for name in then.keys() - now.keys()}  # settings of the lab
    values = {name: (then.get(name, usual.get(name)), now.get(name)) for name in names}  # an old run may lack some
    changed = [f"{name} was {old!r}, is {new!r}" for name, (old, new) in values.items() if old != new]
    changed += [
        f"the model's {f.name} was {old}, is {new}"
        for f in dataclasses.fields(model.config)
        if (old := getattr(model_config(state), f.name, None)) != (new := getattr(model.config, f.name))
    ]
    for name, what in (("clips", "the training clips were"), ("scorer_file", "the contents of the scorer's file were"),
                       ("weights", "the first weights of ViT and LLM were")):  # fmt: skip
        if state.get(name, began.get(name)) != began.get(name):  # older checkpoints have clips alone
            changed.append(f"{what} {state[name]}, are {began.get(name)}")
    if state.get("tokenizer") != began.get("tokenizer"):
        changed.append("the tokenizer was another")
    if changed:
        raise CheckpointError(f"cannot resume {path} with other settings: {'; '.join(changed)}")
    load_weights(model, state, path)
    rng = state["rng"] if isinstance(state["rng"], list) else [state["rng"]]  # older ones: process 0's
    try:
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(rng[distributed.rank() % len(rng)])
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged: its optimisers or random state cannot be used ({error})") from error
    print(printable(f"resumed {path} at step {state['step']} of {config.steps}"))
    return state["step"]
