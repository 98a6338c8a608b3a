"""Draw tutorials/front.png, the picture at the head of the README: one clip through STTS.

    python tutorials/front.py                       with tutorials/results/saliency-k80-seed0.pt
    python tutorials/front.py runs/cpu/checkpoint.pt --k 0.5

Everything in it is what the model did with a held-out clip; nothing is drawn by hand.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import draw
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from stts_mini.data.batches import TOKENIZER, Reader, collate
from stts_mini.data.clips import held_out
from stts_mini.eval import pick_questions
from stts_mini.report import picture
from stts_mini.training import checkpoint

SHOWN = 12  # frames


def run(model, clip, k):
    """Everything that is drawn: the video, what `encode_video` returned, the question and what was said."""
    video = Reader(SHOWN, model.config.vit.image_size, fps=3.0)(clip)
    qa, _ = pick_questions(clip)[0]
    batch = collate([video], [[(TOKENIZER.prompt(qa.question), [])]])
    with torch.no_grad():
        encoded = model.encode(batch, k)
        said = TOKENIZER.decode(model.generate(batch, k, encode=lambda *_: encoded)[0][0])
    return video, encoded, qa, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    shipped = str(Path(__file__).parent / "results" / "saliency-k80-seed0.pt")
    parser.add_argument("checkpoint", nargs="?", default=shipped, help="a model that prunes")
    parser.add_argument("--k", type=float, default=0.8)
    parser.add_argument("--clip", type=int, default=3, help="which short clip of the validation set")
    parser.add_argument("--data", default="data")
    parser.add_argument("--out", default=str(Path(__file__).parent / "front.png"))
    args = parser.parse_args()
    # the default clip is one whose answer stands in kept cells: look before you take another
    model = checkpoint.load_model(args.checkpoint)[0].float()
    clips = held_out(args.data, model.config.vit.image_size, args.clip + 1, "val", ["short"])
    video, encoded, qa, said = run(model, clips[args.clip], args.k)
    T, C = encoded.keep.shape[1:]

    figure = plt.figure(figsize=(11, 5.4), layout="constrained")
    grid = figure.add_gridspec(4, T, height_ratios=(1, 1, 1, 0.42 * len(encoded.packed.frame) + 0.3))
    scores = picture.to_pixels(encoded.scores[0].numpy(), 48)
    rows = (
        (f"{T} frames, {T * C} cells", video.frames, {}),
        ("score, 0 dark\nto 1 light", scores, dict(cmap=draw.HEAT, vmin=0, vmax=1)),
        (f"k = {args.k:g}: {int(encoded.kept.sum())} stay", draw.dimmed(video.frames, encoded.keep[0]), {}),
    )
    for i, (name, pictures, options) in enumerate(rows):
        for t in range(T):
            ax = figure.add_subplot(grid[i, t])
            ax.imshow(pictures[t], **options)
            ax.set(xticks=[], yticks=[])
            if i == 0:
                ax.set_title(f"{video.stamps[t]} s", fontsize=10)
                ax.spines[:].set(color=draw.frame_colour(t, T), linewidth=3)
            if i == 2:
                ax.set_xlabel(f"t={t}", fontsize=10)
            if t == 0:
                ax.set_ylabel(name.replace(", ", ",\n").replace(": ", ":\n"), fontsize=10)
    bins = figure.add_subplot(grid[3, :])
    title = f"packed into {len(encoded.packed.frame)} rows of one frame's length; only these go on, through ViT and LLM"
    draw.bins(encoded.packed.frame.numpy(), T, title, cell=model.config.w**2, ax=bins)
    figure.suptitle(f"{qa.question}   The model says: {said}", fontsize=12)
    figure.savefig(args.out, dpi=100)
    print(f"{args.out}: {qa.question} {said} ({'right' if said.strip() == qa.answer else f'wrong: {qa.answer}'})")


if __name__ == "__main__":
    main()
