"""Wrong on purpose: spare room counts as one more frame, and its slots see each other."""


def block_mask(frame):
    return (frame[:, :, None] == frame[:, None, :])[:, None]
