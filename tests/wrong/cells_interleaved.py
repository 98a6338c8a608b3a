"""Wrong on purpose: a frame's kept tokens are dealt out in two hands, so that the runs of w² tokens that are
cells come apart."""

from stts_mini.packing import Packed
from stts_mini.packing import pack as right_pack


def pack(x, keep):
    packed = right_pack(x, keep)
    slot = packed.slot.clone()
    for f in range(len(keep)):
        mine = slice(int(keep[:f].sum()), int(keep[: f + 1].sum()))
        run = packed.slot[mine]
        order = [*range(0, len(run), 2), *range(1, len(run), 2)]
        slot[mine] = run[order]
    rows = packed.x.flatten(0, 1).clone()
    rows[slot] = x[keep]
    return Packed(rows.view_as(packed.x), packed.frame, slot)
