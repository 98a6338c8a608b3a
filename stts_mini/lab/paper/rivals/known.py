"""The rivals by name, and yours.

Some parts of published methods would be ill-defined here, and are left out. VisionZip's contextual tokens and FastVID's
density clusters need more cells to cluster than the 9 of a frame. DyCoke prunes the KV cache while it decodes, but an
answer is one or two tokens. SparseVLM rates tokens by the question, but here several questions share a video.
"""

from __future__ import annotations

import runpy

from stts_mini.lab.paper.rivals.contrast import Contrast
from stts_mini.lab.paper.rivals.divprune import DivPrune
from stts_mini.lab.paper.rivals.dycoke import DyCoke
from stts_mini.lab.paper.rivals.evs import EVS
from stts_mini.lab.paper.rivals.fastv import FastV
from stts_mini.lab.paper.rivals.rlt import RLT
from stts_mini.lab.paper.rivals.tome import ToMe
from stts_mini.lab.paper.rivals.vidcom2 import VidCom2
from stts_mini.lab.paper.rivals.visionzip import VisionZip
from stts_mini.model import VLM, Encoder

RIVALS: dict[str, type] = {
    "evs": EVS, "visionzip": VisionZip, "vidcom2": VidCom2, "divprune": DivPrune, "contrast": Contrast,
    "rlt": RLT, "dycoke": DyCoke, "tome": ToMe, "fastv": FastV,
}  # fmt: skip


def find_rival(name: str) -> type:
    """The rival of that name, or your own class as "my_file.py:Mine". Raises ValueError for neither.

    >>> find_rival("evs").__name__
    'EVS'
    """
    path, colon, own = name.rpartition(":")
    if name not in RIVALS and colon:
        try:
            RIVALS[name] = runpy.run_path(path)[own]
        except Exception as error:  # whatever somebody's file may raise
            raise ValueError(f"rival {name!r}: {path} has none ({type(error).__name__}: {error})") from error
    if name not in RIVALS:
        raise ValueError(f"rival {name!r}: know {', '.join(RIVALS)}, or your own as my_file.py:Mine")
    return RIVALS[name]


def applied(name: str, model: VLM) -> tuple[VLM, Encoder | None]:
    """The model and the encoder that `evaluate`, `VLM.forward` and `VLM.generate` take for this rival. What prunes
    inside the LLM is a model itself, with the same weights, and needs no encoder."""
    made = find_rival(name)(model)
    return (made, None) if isinstance(made, VLM) else (model, made)
