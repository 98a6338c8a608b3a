"""Wrong on purpose: when a row is filled to the brim, its last token is dropped."""

from stts_mini.packing import Packed
from stts_mini.packing import pack as right_pack


def pack(x, keep):
    packed = right_pack(x, keep)
    rows, frame = packed.x.clone(), packed.frame.clone()
    full = (frame >= 0).all(1)
    rows[full, -1], frame[full, -1] = 0, -1
    return Packed(rows, frame, packed.slot)
