"""Spatio-Temporal Token Scoring (STTS, arXiv 2603.18004): a video VLM that prunes its vision tokens inside the ViT.

The method is in the modules beside this file. Read them in this order: `packing`, `scorer`, `vit`, `llm`, `sequence`,
`model`. `model.VLM.encode_video` is the paper's Figure 3, from top to bottom. Everything else has a folder of its own:

    toy        the toy world: what happens in it, and how it looks
    data       from video files to a `Batch`
    training   what the training loop needs
    report     tables and pictures of what was scored and pruned
    lab        tools that use all of it: speed, the paper's tables, a page to look inside, real backbones

There are two commands: `python -m stts_mini.train` and `python -m stts_mini.eval`. The course is in tutorials/.
To change the method, start with tutorials/fork_me.md. You can import the names below from here.
"""

from importlib import import_module

_HOME = {  # the public names of each module, imported on first use because PyTorch takes a second to load
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
