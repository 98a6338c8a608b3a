"""Wrong on purpose: all tokens of a row see each other, whatever frame they come from."""


def block_mask(frame):
    real = frame >= 0
    return (real[:, :, None] & real[:, None, :])[:, None]
