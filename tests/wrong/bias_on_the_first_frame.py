"""Wrong on purpose: frame 0, and so every image, gets a bias too."""


def attention_bias(scores, w, num_frames=None, rescale=False, eps=1e-4):
    return scores.clamp(min=eps).log().repeat_interleave(w * w, dim=-1)
