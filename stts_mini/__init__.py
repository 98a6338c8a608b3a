"""Spatio-Temporal Token Scoring (STTS, arXiv 2603.18004): a video VLM that prunes its vision tokens inside the ViT.

The method stands on the top shelf. Read it in this order: `packing`, `scorer`, `vit`, `llm`, `sequence`, `model`.
`model.VLM.encode_video` is the paper's Figure 3, from top to bottom. Everything else has a room of its own:

    toy        the toy world: what happens in it, and how it looks
    data       from video files to a `Batch`
    training   what the training loop needs
    report     tables and pictures of what was scored and pruned
    lab        tools on top of all: speed, the paper's tables, a page to look inside, real backbones

Two commands: `python -m stts_mini.train` and `python -m stts_mini.eval`. The course is in tutorials/, and a fork begins
at tutorials/fork_me.md. The names below can be imported from here.
"""

from importlib import import_module

_HOME = {  # public names, and the module of each: imported when asked for, for PyTorch takes a second to load
    "packing": ("Packed", "block_mask", "first_fit_descending", "num_removed", "pack", "select"),
    "scorer": ("Scorer", "ScorerConfig", "attention_bias", "find_scorer", "similarity_loss", "temporal_target"),
    "sequence": ("Batch",),
    "model": ("VLM", "Encoded", "VLMConfig"),
}
__all__ = sorted(name for names in _HOME.values() for name in names)


def __getattr__(name: str):
    """A public name, from its module."""
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"stts_mini.{module}"), name)
    if name in _HOME:
        return import_module(f"stts_mini.{name}")
    raise AttributeError(f"stts_mini has no {name!r}; it has {', '.join(__all__)}")
