def draw_clips(model, clips, reader, k, out):
    return []
