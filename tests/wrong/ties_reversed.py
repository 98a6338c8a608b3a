"""Wrong on purpose: among equal scores the largest (t, cell) goes first."""

from stts_mini.packing import select as right_select


def select(scores, k, num_frames=None):
    B, T, C = scores.shape
    keep = right_select(scores, k, num_frames)
    for b in range(B):
        frames = T if num_frames is None else int(num_frames[b])
        places = [(float(scores[b, t, c]), -t, -c) for t in range(1, frames) for c in range(C)]
        gone = int((~keep[b, :frames]).sum())
        keep[b, :frames] = True
        for _, t, c in sorted(places)[:gone]:
            keep[b, -t, -c] = False
    return keep
