"""The count against PyTorch's own, and against the masks."""

import dataclasses
import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stts_mini.lab.speed.flops import PAPER, Work, decoded, evenly_kept, multiply_adds, needed, saved_floats
from stts_mini.llm import KVCache, Layer, LLMConfig, rotary
from stts_mini.model import VLM, Connector, VLMConfig
from stts_mini.packing import block_mask, num_removed
from stts_mini.scorer import Scorer
from stts_mini.sequence import Batch, Layout, prefix_ids
from stts_mini.training.step import recompute
from stts_mini.vit import Block, ViTConfig

# no two sizes alike, so that none can stand for another
CONFIG = VLMConfig(
    ViTConfig(24, 4, 12, 6, 2, 20), LLMConfig(50, 28, 3, 4, 2, 6, 36), w=2, score_after=1, scorer_heads=3,
    scorer_mlp=14, connector_mlp=22, taps=(-2, -1),
)  # fmt: skip
TEXT = [[(3, 2), (5, 1)], [(4, 3)], [(2, 2)]]


def batch(counts=(4, 6, 1)):
    torch.manual_seed(0)
    frames = torch.rand(len(counts), max(counts), 3, 24, 24)
    branches = [[([9] * p, [10] * a) for p, a in video] for video in TEXT[: len(counts)]]
    return Batch(frames, torch.tensor(counts), [[[8, 8]] * n for n in counts], branches)


def computed(config, output):
    """The Work that `VLM.forward` did in training, with spare room in rows, masked pairs and padded sequences."""
    encoded, N = output.encoded, config.vit.num_patches
    B, rows = len(encoded.kept), len(encoded.packed.frame)
    length = max(prefix + sum(p + a for p, a in text) for prefix, text in zip(read(encoded), TEXT, strict=False))
    return Work(
        frames=int(encoded.shown.sum()), scored=0 if encoded.scores is None else encoded.scores.numel(),
        slots=rows * N, pairs=rows * N * N, kept=len(encoded.tokens), tokens=B * length, seen=B * length**2,
        logits=len(output.targets),
    )  # fmt: skip


def read(encoded):
    """Tokens of each video's prefix: cells, two tokens of a stamp, two markers."""
    return (encoded.kept.sum(1) + 4 * encoded.shown.sum(1)).tolist()


def kept(output):
    encoded = output.encoded
    return [row[real].tolist() for row, real in zip(encoded.kept, encoded.shown, strict=True)]


COUNTED = [
    ({}, 0.0, False), ({}, 0.3, True), (dict(taps=(-1,), w=3), 0.8, False), (dict(bias="none"), 0.3, False),
    (dict(scored_by="random"), 0.3, False),  # at k = 0 like {}
]  # fmt: skip


@pytest.mark.parametrize("options, k, again", COUNTED)
def test_the_count_is_pytorchs(options, k, again):
    """Forward, and then forward and backward."""
    config = dataclasses.replace(CONFIG, **options)
    model = VLM(config)
    if again:
        recompute(model)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = model(batch(), k)
        forward, by_module = counter.get_total_flops(), counter.get_flop_counts()
        by_module = {name: sum(of.values()) for name, of in by_module.items()}
        (output.task_loss + output.sim_loss).backward()
    work = computed(config, output)
    learned = work.scored > 0 and config.scored_by == "stts" and config.bias != "none"
    channel = learned * 11 * 36 * 36 * 2 * config.vit.heads  # carries the key bias of block l+1; a sum would do
    step, count = sum(multiply_adds(config, work, True, again).values()), multiply_adds(config, work)
    assert 2 * (step + (3 + again) * channel) == counter.get_total_flops()
    assert 2 * (sum(count.values()) + channel) == forward
    assert 2 * count["score"] == by_module.get("VLM.scorer", 0)
    assert 2 * count["connector"] == by_module["VLM.connector"]
    logits = len(output.targets) * config.llm.width * config.llm.vocab_size
    assert 2 * (count["llm"] - logits) == by_module["VLM.llm"]
    embed = 11 * 36 * 48 * 12  # 11 real frames, 36 patches of 48 numbers, width 12
    dense = sum(by_module[f"VLM.vit.blocks.{i}"] for i in range(3))
    assert 2 * (count["stem"] - embed + channel) == dense
    assert 2 * count["packed"] == sum(by_module[f"VLM.vit.blocks.{i}"] for i in range(3, 6))


def test_one_unpruned_video_has_no_waste_but_masked_pairs():
    model = VLM(CONFIG)
    output = model(batch(counts=(5,)), k=0.0)
    must, did = needed(CONFIG, kept(output), 0.0, TEXT[:1], stamp=2), computed(CONFIG, output)
    assert must.seen < did.seen and dataclasses.replace(did, seen=must.seen) == must


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.sampled_from([0.0, 0.3, 0.6, 0.9]))
def test_needed_is_what_the_masks_let_through(counts, k):
    model = VLM(CONFIG)
    given = batch(tuple(counts))
    with torch.no_grad():
        output = model(given, k)
    work = needed(CONFIG, kept(output), k, TEXT[: len(counts)], stamp=2)
    packed = output.encoded.packed
    assert work.slots == int((packed.frame >= 0).sum())
    real = (packed.frame >= 0)[:, None, :, None]  # queries; padding keys are masked anyway
    assert work.pairs == int((block_mask(packed.frame) & real).sum())
    layout = Layout.build(prefix_ids(given.stamps, output.encoded.kept, output.encoded.shown), given.branches, "cpu")
    assert work.tokens == layout.tokens
    assert work.seen == int((layout.mask[:, 0] & (layout.segment >= 0)[:, :, None]).sum())
    assert (work.logits, work.kept, work.frames) == (len(output.targets), len(output.encoded.tokens), sum(counts))
    assert work.scored == sum(9 * n for n in counts if num_removed(k, 9, n))


def test_a_decoded_token():
    """Two rows, 7 and 4 tokens in the cache, without padding: one at a time."""
    llm = VLM(CONFIG).llm
    flops = 0
    for cached in (7, 4):
        cache = KVCache()
        x, seen = torch.rand(1, cached, 28), torch.ones(1, 1, cached, cached, dtype=torch.bool)
        llm(x, torch.arange(cached)[None], seen, cache)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            one = llm(x[:, :1], torch.tensor([[cached]]), torch.ones(1, 1, 1, cached + 1, dtype=torch.bool), cache)
            llm.logits(one)
        flops += counter.get_total_flops()
    assert 2 * sum(multiply_adds(CONFIG, decoded(CONFIG, [7, 4])).values()) == flops


@given(st.floats(0, 0.99), st.integers(2, 9), st.integers(1, 20))
def test_evenly_kept_is_the_budget(k, cells, frames):
    even = evenly_kept(k, cells, frames)
    assert sum(even) == cells * frames - num_removed(k, cells, frames) and even[0] == cells
    assert max(even[1:], default=0) - min(even[1:], default=0) <= 1


def test_the_limit_grows_with_k_and_frames():
    def limit(videos, frames, k, questions=1, stamp=1):
        works = (
            needed(PAPER, [evenly_kept(k, 81, frames)] * videos, k, [[(14, 2)] * questions] * videos, stamp)
            for k in (0.0, k)
        )
        whole, pruned = (sum(multiply_adds(PAPER, work, backward=True).values()) for work in works)
        return whole / pruned

    at = functools.partial(limit, 1)
    assert 1 == at(8, 0.0) < at(8, 0.3) < at(8, 0.5) < at(64, 0.5) < at(256, 0.5) < at(256, 0.8)
    assert at(1, 0.5) == 1  # one frame is never pruned
    molmo = [round(limit(*load, 0.5, text, stamp=4), 2) for text in (1, 150) for load in ((2, 64), (1, 256))]
    assert molmo == [1.95, 2.33, 1.71, 2.22]  # a stamp like "12.5" is four tokens; more text lowers the limit


def held(module, *inputs):
    """Numbers that autograd saves of a forward pass, each storage once, weights left out; and the result."""
    storages, weights = {}, {p.untyped_storage().data_ptr() for p in module.parameters()}

    def note(x):
        storages[x.untyped_storage().data_ptr()] = x  # alive, so that no two have one address
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        output = module(*inputs)
    own = [x.untyped_storage().nbytes() for at, x in storages.items() if at not in weights and x.dtype.itemsize == 4]
    return sum(own) / 4, output


WIDE = dataclasses.replace(
    CONFIG, vit=ViTConfig(24, 4, 48, 6, 2, 80), llm=LLMConfig(50, 64, 3, 4, 2, 16, 128), scorer_heads=2, scorer_mlp=40,
    connector_mlp=72,
)  # fmt: skip


def of_one_more(**sizes):
    """What one block or layer more adds to the floor: WIDE with deeper backbones, less WIDE."""
    deeper = {"slots": {"vit": WIDE.vit}, "tokens": {"llm": WIDE.llm}}[next(iter(sizes))]
    deeper = {name: dataclasses.replace(part, depth=part.depth + 1) for name, part in deeper.items()}
    return saved_floats(dataclasses.replace(WIDE, **deeper), Work(**sizes)) - saved_floats(WIDE, Work(**sizes))


def test_the_floor_is_what_each_part_holds():
    """To 2%, the share of statistics of norms and softmax."""
    leaf = lambda *shape: torch.randn(shape, requires_grad=True)
    floats, _ = held(Block(WIDE.vit), leaf(3, 36, 48))
    assert floats == pytest.approx(of_one_more(slots=3 * 36), rel=0.02)

    rope = rotary(torch.arange(30).expand(2, 30), 16, 1e4, torch.float32)
    floats, _ = held(Layer(WIDE.llm), leaf(2, 30, 64), rope, None, None, 0)
    floats -= sum(x.numel() for x in rope)  # shared by all layers
    twice = 2 * 30 * (2 * 64 + (4 + 2) * 16)  # PyTorch's RMSNorm keeps x and x / rms: a floor counts one
    assert floats - twice == pytest.approx(of_one_more(tokens=2 * 30), rel=0.02)

    floats, _ = held(Connector(WIDE), leaf(20, 4, 96))
    assert floats == pytest.approx(saved_floats(WIDE, Work(kept=20)), rel=0.02)

    x = leaf(2, 5, 36, 48)
    floats, _ = held(Scorer(WIDE.scorer), x, torch.tensor([5, 5]))
    assert floats - x.numel() == pytest.approx(saved_floats(WIDE, Work(scored=2 * 5 * 9)), rel=0.02)  # x is the stem's


@pytest.mark.parametrize("k", [0.0, 0.5])
def test_a_step_holds_the_counted_floor_and_not_much_more(k):
    model = VLM(WIDE)
    floats, output = held(model, batch(), k)
    floor = saved_floats(WIDE, needed(WIDE, kept(output), k, TEXT, stamp=2))
    assert floor <= floats < 1.5 * floor
