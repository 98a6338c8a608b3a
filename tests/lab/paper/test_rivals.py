"""Each rival against a plain loop, and all against what every pruner must do: ours, and one of yours.

python -m stts_mini.lab.grade --rival my_file.py:Mine
"""

import copy
import functools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from stts_mini.lab.paper.rivals import clock
from stts_mini.lab.paper.rivals.clock import cost
from stts_mini.lab.paper.rivals.dycoke import run_means
from stts_mini.lab.paper.rivals.known import RIVALS, applied, find_rival
from stts_mini.lab.paper.rivals.protocol import Rival, Scoring
from stts_mini.lab.speed.flops import evenly_kept, multiply_adds, needed
from stts_mini.llm import LLMConfig, rotary, rotate
from stts_mini.model import VLM, VLMConfig
from stts_mini.packing import num_removed, select
from stts_mini.scorer import cell_major
from stts_mini.sequence import CELL, Layout, prefix_ids
from stts_mini.vit import ViTConfig
from tests.test_model import batch_of

C, FRAMES = 9, (8, 1, 5)
CONFIG = VLMConfig(
    ViTConfig(image_size=12, patch_size=2, width=8, depth=4, heads=2, mlp=12),
    LLMConfig(vocab_size=40, width=8, depth=4, heads=2, kv_heads=1, head_dim=4, mlp=12),
    w=2, scorer_heads=2, scorer_mlp=6, taps=(-2, -1),
)  # fmt: skip


def pytest_generate_tests(metafunc):
    if "name" in metafunc.fixturenames:
        own = metafunc.config.getoption("--rival")
        metafunc.parametrize("name", [own] if own else [*RIVALS])


@functools.cache
def untouched():
    torch.manual_seed(0)
    model = VLM(CONFIG).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return model.eval()


def build():
    """Random weights everywhere, in float64. A copy, because a rival may change its model. One that draws when it is
    made draws the same each time."""
    torch.manual_seed(0)
    return copy.deepcopy(untouched())


def logits(name, batch, k):
    model, encode = applied(name, build())
    with torch.no_grad():
        return model(batch, k, encode)


def alone(batch, b):
    """Video b of a batch, without padding."""
    n = int(batch.num_frames[b])
    parts = batch.frames[b : b + 1, :n], batch.num_frames[b : b + 1], batch.stamps[b : b + 1], batch.branches[b : b + 1]
    return type(batch)(*parts)


# ------------------------------------------------------------------------- what every pruner must do


@pytest.mark.parametrize("k", [0.3, 0.5, 0.8, 0.9])
def test_the_budget_and_frame_0_are_as_stated(name, k):
    model, encode = applied(name, build())
    if encode is None:
        pytest.skip("inside the LLM: its layers are counted below")
    batch = batch_of(model, FRAMES)
    encoded = model.encode(batch, k, encode)
    kept = encoded.kept.sum(1).tolist()
    lost, budget = [C * n - of for n, of in zip(FRAMES, kept, strict=True)], [num_removed(k, C, n) for n in FRAMES]
    if getattr(encode, "exact", True):
        assert lost == budget
    assert all(0.75 * most <= n <= most for n, most in zip(lost, budget, strict=True))
    assert kept[1] == C and kept[0] < 8 * C and kept[2] < 5 * C  # an image loses nothing, a video does
    if getattr(encode, "frame_0", True):
        assert (encoded.kept[:, 0] == C).all()
    assert not any(encoded.kept[b, n:].any() for b, n in enumerate(FRAMES))
    if encoded.keep is not None:
        assert torch.equal(encoded.keep.sum(2).cpu(), encoded.kept)
        assert torch.equal(encoded.keep.nonzero().cpu(), encoded.place.cpu())


def counted(name, k):
    """Tokens at every stage, of one video: rows of each ViT block, cells in the connector, length of each LLM layer."""
    model, encode = applied(name, build()) if name else (build(), None)
    seen = []
    parts = [*model.vit.blocks, model.connector, *model.llm.layers]
    hooks = [part.register_forward_pre_hook(lambda part, args: seen.append((part, args[0]))) for part in parts]
    with torch.no_grad():
        model(alone(batch_of(model, FRAMES, questions=1), 0), k, encode)
    for hook in hooks:
        hook.remove()
    vit, llm = {*model.vit.blocks}, {*model.llm.layers}
    rows, lengths = [len(x) for part, x in seen if part in vit], [x.shape[1] for part, x in seen if part in llm]
    return rows, next(len(x) for part, x in seen if part is model.connector), lengths


def test_tokens_are_gone_from_the_stated_stage_on(name):
    """No silent no-op: rows fall in the ViT, cells in the connector, tokens in the LLM."""
    model, encode = applied(name, build())
    stated = encode or model
    at, stages = getattr(stated, "gone_from", "packed"), ["stem", "packed", "connected", "llm"]
    (rows, cells, lengths), (whole_rows, whole_cells, whole_lengths) = counted(name, 0.5), counted(None, 0.0)
    gone = num_removed(0.5, C, 8)
    first = {"stem": 0, "packed": 2, "connected": 4, "llm": 4}[at]
    assert rows[:first] == whole_rows[:first] and all(n < 8 for n in rows[first:])
    assert cells < whole_cells if stages.index(at) < 2 else cells == whole_cells
    if at != "llm":
        assert lengths[0] == lengths[-1] < whole_lengths[0]
    else:
        assert lengths[0] == whole_lengths[0]
    if getattr(stated, "exact", True):
        assert whole_lengths[-1] - lengths[-1] == gone and cells in (whole_cells, whole_cells - gone)


@pytest.mark.parametrize("k", [0.5, 0.8])
@torch.no_grad()
def test_a_video_alone_is_as_in_a_batch(name, k):
    model, encode = applied(name, build())
    batch = batch_of(model, FRAMES)
    together = model(batch, k, encode)
    for b in range(3):
        own = model(alone(batch, b), k, encode)
        mine = together.branch // 2 == b
        torch.testing.assert_close(together.logits[mine], own.logits)


def test_k_0_is_the_unpruned_model(name):
    batch, model = batch_of(build(), FRAMES), build()
    with torch.no_grad():
        torch.testing.assert_close(logits(name, batch, 0.0).logits, model(batch, 0.0).logits)


def test_the_gradient_reaches_every_part_but_ours_give_scores_none(name):
    model, encode = applied(name, build())
    output = model(batch_of(model, FRAMES), 0.5, encode)
    output.task_loss.backward()
    for part in (*model.vit.blocks, model.connector, *model.llm.layers):
        grads = [p.grad for p in part.parameters()]
        assert all(g.isfinite().all() for g in grads) and any(g.abs().sum() > 0 for g in grads)
    assert not isinstance(encode, Scoring) or not output.encoded.scores.requires_grad


@pytest.mark.parametrize("k", [0.0, 0.5])
def test_generated_answers_are_those_of_a_whole_pass(name, k):
    """The KV cache holds what it should, in every layer."""
    model, encode = applied(name, build())
    batch, steps, logits = batch_of(model, FRAMES), [], model.llm.logits
    model.llm.logits = lambda hidden: steps.append(logits(hidden)) or steps[-1]
    said = model.generate(batch, k, 5, encode)
    model.llm.logits = logits
    for own, answers in zip(batch.branches, said, strict=True):
        own[:] = [(prompt, answer) for (prompt, _), answer in zip(own, answers, strict=True)]
    with torch.no_grad():
        output = model(batch, k, encode)
    for q, answer in enumerate(answer for answers in said for answer in answers):
        whole = output.logits[output.branch == q]
        for step, expected in enumerate(whole[:5]):  # the answer, and the end if it came
            torch.testing.assert_close(steps[step].view(6, -1)[q], expected)
        assert whole.argmax(1).tolist()[: len(answer)] == answer
    longest = max(len(a) for answers in said for a in answers)
    assert len(steps) == min(longest + 1, 5) and longest <= 5  # no pass more than is asked for
    assert len({tuple(a) for answers in said for a in answers}) > 1


# ------------------------------------------------------------------------- each against a plain loop


def scored(rival, frames=(4, 3)):
    """Its scores of a batch, the pixels, the tokens after block l (B, T, C, w², D), and the model."""
    model = build()
    batch = batch_of(model, frames)
    with torch.no_grad():
        flat = model.stem(batch.frames.flatten(0, 1))
        x = flat.unflatten(0, batch.frames.shape[:2])
        scores = RIVALS[rival](model).score(batch.frames, x, batch.num_frames)
    return scores, batch.frames, x.unflatten(2, (C, 4)), model


def test_evs_is_a_loop_over_pixels():
    scores, frames, *_ = scored("evs")
    for b, n in enumerate((4, 3)):
        for t in range(1, n):
            for i in range(C):
                y, x = 4 * (i // 3), 4 * (i % 3)
                now, before = (frames[b, s, :, y : y + 4, x : x + 4] for s in (t, t - 1))
                torch.testing.assert_close(scores[b, t, i], (now - before).abs().sum() / 48)
    bright = 255 * torch.ones(1, 2, 3, 12, 12, dtype=torch.uint8)
    bright[:, 1] = 0
    assert (RIVALS["evs"](build()).score(bright, None, None)[:, 1] == 255).all()  # bytes do not wrap around


def test_visionzip_is_a_loop_over_heads_and_queries():
    scores, _, x, model = scored("visionzip")
    block = model.vit.blocks[1]
    for b, t in ((0, 0), (0, 3), (1, 2)):
        h = block.layer_norm1(x[b, t].flatten(0, 1))
        received = torch.zeros(36, dtype=torch.float64)
        for head in (slice(0, 4), slice(4, 8)):
            q, key = block.attention.q_proj(h)[:, head], block.attention.k_proj(h)[:, head]
            for query in q:
                received += torch.softmax(key @ query / 2, 0) / (2 * 36)
        torch.testing.assert_close(scores[b, t], received.view(C, 4).sum(1))
    torch.testing.assert_close(scores.sum(2), torch.ones(2, 4, dtype=torch.float64))


def test_vidcom2_shares_the_budget_among_frames():
    scores, _, x, _ = scored("vidcom2")
    cells, cos = x.mean(3), lambda a, b: float(torch.cosine_similarity(a, b, dim=0))
    for b, n in enumerate((4, 3)):
        video = cells[b, :n].mean((0, 1))
        u = [[1 - cos(cells[b, t, i], video) for i in range(C)] for t in range(n)]
        unusual = torch.tensor([sum(frame) / C / 0.01 for frame in u], dtype=torch.float64).softmax(0)
        for t in range(n):
            both = [u[t][i] + 1 - cos(cells[b, t, i], cells[b, t].mean(0)) for i in range(C)]
            for i in range(C):
                rank = sum(other > both[i] for other in both)
                share = 1 + float(unusual[t]) - 1 / n
                assert float(scores[b, t, i]) == pytest.approx(-(rank + 0.5) / share)


def test_divprune_is_a_greedy_loop():
    scores, _, x, _ = scored("divprune")
    for b, n in enumerate((4, 3)):
        cells = {(t, i): x[b, t, i].flatten() for t in range(n) for i in range(C)}
        far = lambda a, other: 1 - float(torch.cosine_similarity(cells[a], cells[other], dim=0))  # noqa: B023
        kept, order = [(0, i) for i in range(C)], []
        while len(kept) < len(cells):
            waiting = [c for c in cells if c not in kept]
            order.append(max(waiting, key=lambda c: min(far(c, other) for other in kept)))
            kept.append(order[-1])
        assert sorted(order, key=lambda c: -float(scores[b, c[0], c[1]])) == order


def test_contrast_is_the_spread_within_a_cell():
    scores, _, x, _ = scored("contrast")
    patches = x[1, 2, 5]  # (w², D)
    by_channel = [(p - p.mean()).square().mean().sqrt() for p in patches.T]
    torch.testing.assert_close(scores[1, 2, 5], sum(by_channel) / 8)


def test_rlt_runs_every_block_on_what_changed():
    model = build()
    batch = batch_of(model, (4, 3))
    batch.frames[0, 2] = batch.frames[0, 1]  # frame 2 holds still, and of frame 3 all but its first cell
    batch.frames[0, 3] = batch.frames[0, 1]
    batch.frames[0, 3, :, :4, :4] += 5
    encoded = model.encode(batch, 0.5, RIVALS["rlt"](model))
    assert encoded.kept[0].tolist() == [9, 8, 0, 1] and encoded.keep[0, 3].nonzero().tolist() == [[0]]
    frame, kept, w2 = batch.frames[:1, 1], encoded.keep[0, 1], 4
    x = cell_major(model.vit.embed(frame), 2).unflatten(1, (C, w2))[:, kept].flatten(1, 2)  # its other cells are gone
    outputs = [x := block(x) for block in model.vit.blocks]
    tokens = model.connector(torch.cat(outputs[-2:], -1).view(-1, w2, 16))
    torch.testing.assert_close(encoded.tokens[9:17], tokens)


def test_dycoke_joins_a_cell_to_the_one_that_it_looks_like():
    model, k = build(), 0.5
    batch, rival = batch_of(model, (5, 3)), RIVALS["dycoke"](model)
    encoded = model.encode(batch, k, rival)
    with torch.no_grad():
        x = model.vit.blocks[1](model.stem(batch.frames.flatten(0, 1))).view(2, 5, C, 32)
        for b, n in enumerate((5, 3)):
            alike = {
                (t, i): torch.cosine_similarity(x[b, t, i], x[b, t - 1, i], 0) for t in range(1, n) for i in range(C)
            }
            gone = sorted(alike, key=alike.get)[-num_removed(k, C, n) :]
            assert gone and sorted(gone) == [tuple(at) for at in (~encoded.keep[b, :n]).nonzero().tolist()]
            runs = {(t, i): [x[b, t, i]] for t in range(n) for i in range(C) if (t, i) not in gone}
            for t, i in sorted(gone):
                runs[max(s for s in range(t) if (s, i) in runs), i].append(x[b, t, i])
            means = run_means(x[b : b + 1], encoded.keep[b : b + 1], torch.arange(5)[None] < n)[0]
            for (t, i), cells in runs.items():
                torch.testing.assert_close(means[t, i], sum(cells) / len(cells))
            tokens, _ = model.encode_kept(means[:n].view(n, 36, 8), encoded.keep[b, :n], 2)
            torch.testing.assert_close(encoded.tokens[encoded.place[:, 0] == b], tokens)
    still = batch.frames[:, :1].expand_as(batch.frames)  # a still video: merged, it is its first frame
    tokens = rival(still, torch.tensor([5, 5]), 0.8).tokens.view(2, C, -1)
    torch.testing.assert_close(tokens.flatten(0, 1), rival(still[:, :1], None, 0.8).tokens)


@torch.no_grad()
def test_fastv_is_a_loop_over_questions():
    """Two layers on everything, the attention of the prompt's last token head by head, and two layers on the rest."""
    model, k = build(), 0.5
    batch, llm = batch_of(model, (5, 3)), model.llm
    for own in batch.branches:  # the second question has two answers to weigh
        own[1:] = [([31, 8], [14]), ([31, 8], [17])]
    output, kept = RIVALS["fastv"](model)(batch, k), []
    whole = model.encode(batch, 0.0)
    by_video = iter(whole.tokens.split(whole.kept.sum(1).tolist()))
    logits = iter(output.logits)
    for b, n in enumerate((5, 3)):
        cells = next(by_video)
        for prompt, answer in batch.branches[b]:
            prefix = prefix_ids(batch.stamps[b : b + 1], whole.kept[b : b + 1], whole.shown[b : b + 1])
            layout = Layout.build(prefix, [[(prompt, answer)]], "cpu")
            x, rope = model.fill_cells(layout.ids, cells), rotary(layout.positions, 4, 1e6, torch.float64)
            before, end = llm.layers[0](x, rope, layout.mask, None, 0), len(prefix[0]) + len(prompt) - 1
            h, attention = llm.layers[1].input_layernorm(before), llm.layers[1].self_attn
            received = torch.zeros(x.shape[1], dtype=torch.float64)
            for head in range(2):
                q, key = attention.q_proj(h)[0, :, 4 * head : 4 * head + 4], attention.k_proj(h)[0]  # one key head
                q, key = (rotate(norm(y)[None, None], *rope)[0, 0] for norm, y in (
                    (attention.q_norm, q), (attention.k_norm, key)))  # fmt: skip
                received[: end + 1] += torch.softmax(key[: end + 1] @ q[end] / 2, 0) / 2
            places = (layout.ids[0] == CELL).nonzero().flatten().tolist()
            gone = sorted(places, key=lambda j: float(received[j]))[: num_removed(k, C, n)]
            stay = [j for j in range(x.shape[1]) if j not in gone]
            x, mask = llm.layers[1](before, rope, layout.mask, None, 1)[:, stay], layout.mask[:, :, stay][..., stay]
            for layer in llm.layers[2:]:
                x = layer(x, tuple(r[:, :, stay] for r in rope), mask, None, 0)
            ends = [stay.index(c) for c in layout.answers[1].tolist()]
            for expected in llm.logits(llm.norm(x))[0, ends]:
                torch.testing.assert_close(next(logits), expected)
            kept.append(set(places) - set(gone))
    assert kept[0] != kept[1] == kept[2]  # each question keeps its own cells, whatever the answer


@torch.no_grad()
def test_fastv_prunes_no_pictures():
    """Video 0 is several pictures: its answers are the unpruned model's, and the other's are as ever."""
    model, batch = build(), batch_of(build(), (5, 3))
    pictures = replace(batch, still=torch.tensor([True, False]))
    (ours, pruned), whole = (RIVALS["fastv"](model)(b, 0.5) for b in (pictures, batch)), model(batch, 0.0)
    for first, expected in ((True, whole), (False, pruned)):
        mine = (ours.branch < 2) == first
        torch.testing.assert_close(ours.logits[mine], expected.logits[mine])


def test_fastv_ranks_in_float32(monkeypatch):
    """In half precision many cells would have the same score."""
    model, seen, real = build().bfloat16(), [], RIVALS["fastv"].received
    monkeypatch.setattr(RIVALS["fastv"], "received", lambda *args: seen.append(real(*args)) or seen[-1])
    RIVALS["fastv"](model)(batch_of(model, FRAMES), 0.5)
    assert seen[0].dtype == torch.float32 and (seen[0].bfloat16() != seen[0]).any()


def test_a_model_that_a_rival_cannot_prune_is_refused():
    with pytest.raises(ValueError, match="FastV prunes after layer 2, and this LLM has 2"):
        RIVALS["fastv"](VLM(replace(CONFIG, llm=replace(CONFIG.llm, depth=2))))
    with pytest.raises(ValueError, match=r"DivPrune cannot prune a model with spread = 0\.3"):  # of scores in (0, 1)
        RIVALS["divprune"](VLM(replace(CONFIG, spread=0.3)))


# ------------------------------------------------------------------------------------ what it saves


def test_the_counted_cost_of_a_pass():
    """With every cell kept it is the unpruned model's; the sooner cells go, the more is saved."""
    text, full, half = [[(14, 0)]], [[C] * 8], [[C, *[4] * 7]]
    whole = cost(CONFIG, full, text)
    stages = ("stem", "packed", "connected", "llm")
    stem, packed, connected, llm = (cost(CONFIG, half, text, at) for at in stages)
    assert {cost(CONFIG, full, text, at) for at in stages} == {whole}
    assert stem < packed < connected < llm < whole
    plain = replace(CONFIG, scored_by="random")
    a, b = (multiply_adds(plain, needed(plain, kept, 0.0, text)) for kept in (full, half))
    assert packed == sum(b.values()) and whole - llm == (a["llm"] - b["llm"]) // 2  # two layers of four
    assert whole - connected == a["llm"] - b["llm"]
    embedded = 8 * 36 * 12 * 8  # patches of 12 numbers, width 8
    assert stem == sum(b.values()) - a["stem"] + embedded + b["packed"]  # two blocks of four, once more


def test_a_pass_is_timed_beside_unpruned(monkeypatch):
    """Under a clock of our own: 8 s unpruned and 2 s pruned, whoever prunes; the limit by where cells go."""
    now, model = [0.0], build()
    monkeypatch.setattr(clock, "time", SimpleNamespace(process_time=lambda: now[0], perf_counter=None))
    batch, limits = alone(batch_of(model, FRAMES, questions=1), 0), []
    for name in ("fastv", "vidcom2", "rlt"):
        asked, encode = applied(name, model)
        model.generate = asked.generate = lambda _, k, *rest: now.__setitem__(0, now[0] + (2 if k else 8))
        took = clock.timed(model, asked, encode, 0.5, [batch], rounds=3)
        assert took["speedup"] == 4 and took["seconds"] == [8, 2]
        limits.append(took["limit"])
    whole, least = (cost(CONFIG, kept, [[(3, 0)]], "llm") for kept in ([[C] * 8], [evenly_kept(0.5, C, 8)]))
    assert limits == sorted({*limits}) and limits[0] == round(whole / least, 3)


# ----------------------------------------------------------------------------- rivals of your own


class KeepsEverything(Rival):
    def __call__(self, frames, num_frames=None, k=0.5):
        return self.model.encode_video(frames, num_frames, 0.0)


class KeepsTooMuch(Rival):
    exact = False

    def __call__(self, frames, num_frames=None, k=0.5):
        return self.model.encode_video(frames, num_frames, k / 2)


class SeesItsNeighbours(Scoring):
    def score(self, frames, x, num_frames):
        score = x.unflatten(2, (C, -1)).std(dim=3).mean(-1)
        return (score - score.mean(0)).abs()  # over the videos of the batch


class DrawsWhenItIsMade(Scoring):
    def __init__(self, model):
        super().__init__(model)
        self.direction = torch.randn(8, dtype=torch.float64)

    def score(self, frames, x, num_frames):
        return x.unflatten(2, (C, -1)).mean(3) @ self.direction


def test_a_rival_may_draw_when_it_is_made(monkeypatch):
    monkeypatch.setitem(RIVALS, "DrawsWhenItIsMade", DrawsWhenItIsMade)
    batch = batch_of(build(), FRAMES)
    one, again = (logits("DrawsWhenItIsMade", batch, 0.5).logits for _ in range(2))
    assert torch.equal(one, again)  # made twice


class AfterTheConnector(Rival):
    gone_from = "connected"

    def __call__(self, frames, num_frames=None, k=0.5):
        whole = self.model.encode_video(frames, num_frames, 0.0)
        keep = select(torch.arange(whole.keep.numel()).view(whole.keep.shape).float(), k, num_frames)
        left = keep[whole.place.unbind(1)]
        return replace(whole, tokens=whole.tokens[left], kept=keep.sum(2), place=whole.place[left], keep=keep)


def test_a_rival_may_prune_between_the_vit_and_the_llm(monkeypatch):
    monkeypatch.setitem(RIVALS, "AfterTheConnector", AfterTheConnector)
    test_the_budget_and_frame_0_are_as_stated("AfterTheConnector", 0.5)
    test_tokens_are_gone_from_the_stated_stage_on("AfterTheConnector")
    monkeypatch.setattr(AfterTheConnector, "gone_from", "packed")  # a claim that is not true
    with pytest.raises(AssertionError):
        test_tokens_are_gone_from_the_stated_stage_on("AfterTheConnector")


def test_wrong_rivals_are_caught(monkeypatch):
    for wrong in (KeepsEverything, KeepsTooMuch, SeesItsNeighbours):
        monkeypatch.setitem(RIVALS, wrong.__name__, wrong)
    with pytest.raises(AssertionError):
        test_the_budget_and_frame_0_are_as_stated("KeepsEverything", 0.5)
    with pytest.raises(AssertionError):
        test_the_budget_and_frame_0_are_as_stated("KeepsTooMuch", 0.5)
    with pytest.raises(AssertionError):
        test_tokens_are_gone_from_the_stated_stage_on("KeepsEverything")
    test_the_budget_and_frame_0_are_as_stated("SeesItsNeighbours", 0.5)
    with pytest.raises(AssertionError):
        test_a_video_alone_is_as_in_a_batch("SeesItsNeighbours", 0.5)


def test_a_rival_that_cannot_be_found_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text("from nowhere_at_all import x\n")
    for wrong, message in (
        ("nobody", "know evs, visionzip"),
        (f"{tmp_path}/none.py:Mine", "FileNotFoundError"),
        (f"{tmp_path}/mine.py:Mine", "nowhere_at_all"),
    ):
        with pytest.raises(ValueError, match=message):
            find_rival(wrong)
