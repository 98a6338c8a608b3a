"""The explorer: its numbers against the model and against plain counting, its page in a real Chromium."""

import dataclasses
import json
import os
import re
import stat

import av
import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stts_mini.data.batches import TOKENIZER, collate
from stts_mini.data.clips import WORLD_ID, load_clips, prepare
from stts_mini.data.video import Video, read_video, write_video
from stts_mini.lab import explore
from stts_mini.lab.explore import LADDER, film, jpeg, known_questions, main, page, pick_scorers
from stts_mini.model import VLM
from stts_mini.packing import select
from stts_mini.sequence import Layout, prefix_ids
from stts_mini.training import checkpoint
from tests.lab.browser import Browser
from tests.tiny import tiny

ARROW_RIGHT = "\ue014"


def moving(T: int, size: int = 48) -> np.ndarray:
    """Frames (T, size, size, 3) in which something moves, and something flickers."""
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(60, 90, (1, size, size, 3)), T, axis=0)
    for t in range(T):
        left = (3 * t) % (size - 12)
        frames[t, 4:16, left : left + 12] = (230, 60, 60)
        frames[t, -12:, -12:] = rng.integers(0, 255, 3)
    return frames.astype(np.uint8)


def save(path, config, **rest):
    torch.manual_seed(0)
    model = VLM(config.model)
    torch.nn.init.normal_(model.scorer.mlp[-1].weight)  # scores that differ
    checkpoint.save(path, model, world=WORLD_ID, train_config=dataclasses.asdict(config), step=7, **rest)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a clip of 12 frames, a checkpoint, and what the explorer makes of them."""
    folder = tmp_path_factory.mktemp("explore")
    write_video(folder / "clip.mp4", moving(12), fps=2)
    save(folder / "model.pt", tiny(folder))
    arguments = ["clip.mp4", "--checkpoint", "model.pt", "--ask", "what moves ?"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main([*arguments, "-o", "pages/out.html", "--mp4", "out.mp4", "--json", "out.json", "--k", "0.35"])
    return folder


@pytest.fixture(scope="module")
def data(place):
    return json.loads((place / "out.json").read_text())


# ------------------------------------------------------------------------------------------- the numbers


def test_what_is_kept_and_where_is_what_the_model_does(place, data):
    model, _ = checkpoint.load_model(place / "model.pt")
    frames = collate([read_video(place / "clip.mp4", 32, size=48)], [[]]).frames
    assert data["ladder"] == sorted([*LADDER, 0.35]) and list(data["scorers"]) == ["stts", "cosine", "random"]
    for name, scorer in pick_scorers(model, []).items():
        for k, level in zip(data["ladder"], data["scorers"][name]["levels"], strict=True):
            torch.manual_seed(0)
            with torch.no_grad():
                encoded = model.encode_video(frames, k=k, scorer=scorer)
            keep = [[c == "1" for c in frame] for frame in level["keep"]]
            assert level["k"] == k and keep == encoded.keep[0].tolist() and level["kept"] == encoded.kept[0].tolist()
            assert (level["rows"], level["least_rows"]) == (len(encoded.packed.frame), encoded.packed.least_rows)
            for t, (row, offset, kept) in enumerate(zip(level["row"], level["offset"], level["kept"], strict=True)):
                assert (encoded.packed.frame == t).nonzero().tolist() == [[row, offset + i] for i in range(4 * kept)]
            assert level["tokens"] == sum(level["kept"]) + 3 * 12  # a stamp of one token and two markers


def test_scores_in_the_file_are_exact(data):
    for own in data["scorers"].values():
        scores = torch.tensor(own["scores"], dtype=torch.float32)
        assert scores.shape == (12, 9) and len(scores.unique()) > 20
        for level in own["levels"]:
            assert ["".join("01"[c] for c in f) for f in select(scores[None], level["k"])[0].tolist()] == level["keep"]


def counted(function) -> float:
    """Multiply-adds of the matrix products that a function really makes, by PyTorch's own counter."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        function()
    return counter.get_total_flops() / 2


def test_cost_is_what_a_counter_counts(tmp_path):
    config = tiny(tmp_path, vit_width=16, vit_mlp=24, vit_depth=5, score_after=1).model
    model, T = VLM(config).eval(), 5
    video = Video(moving(T), [t / 2 for t in range(T)], 2.0)
    scorers = pick_scorers(model, [])
    full, part = explore.explore(model, video, scorers, ladder=(0.0, 0.5))["scorers"]["stts"]["levels"]
    frames, x = torch.zeros(1, T, 3, 48, 48, dtype=torch.uint8), torch.zeros(1, T, 36, 16)
    cost = full["cost"]
    assert counted(lambda: model.encode_video(frames, k=0.0)) == cost["stem"] + cost["packed"] + cost["connector"]
    assert part["cost"]["stem"] == cost["stem"] and cost["score"] == 0
    assert counted(lambda: model.scorer(x)) == part["cost"]["score"]
    alone = [counted(lambda n=n: model.vit.blocks[-1](torch.zeros(1, 4 * n, 16))) for n in part["kept"] if n]
    assert part["cost"]["packed"] == 2 * sum(alone)  # two packed blocks, every frame on its own
    assert counted(lambda: model.connector(torch.zeros(sum(part["kept"]), 4, 2 * 16))) == part["cost"]["connector"]


@pytest.mark.parametrize("stamps", [[[9]] * 5, [[9, 8, 7], [9, 8], [9, 8, 7, 6], [9], [9, 8]]])
def test_the_llm_s_cost_is_that_of_what_its_mask_lets_through(tmp_path, stamps):
    """Time stamps of any length: a real LLM writes 9.5 with fewer tokens than 12.5."""
    config, scores = tiny(tmp_path).model, torch.rand(5, 9)
    found = explore.level(config, stamps, scores, 0.5)
    prefix = prefix_ids([stamps], torch.tensor([found["kept"]]), torch.ones(1, 5).bool(), config.marks)
    layout = Layout.build(prefix, [[]], "cpu", config.marks)
    assert found["tokens"] == layout.tokens
    llm, model = config.llm, VLM(config)
    every = counted(lambda: model.llm(torch.zeros(1, layout.tokens, llm.width), mask=layout.mask))
    hidden = int((~layout.mask).sum()) * 2 * llm.heads * llm.head_dim * llm.depth
    assert found["cost"]["llm"] == every - hidden and hidden > 0


def test_shares_are_of_the_unpruned_model(data):
    for name, own in data["scorers"].items():
        shares = [level["share"] for level in own["levels"]]
        assert shares[0] == 1 and shares[1:] == sorted(shares[1:], reverse=True)
        assert [level["cost"]["score"] > 0 for level in own["levels"]] == [name == "stts" and k > 0 for k in LADDER_35]


LADDER_35 = sorted([*LADDER, 0.35])


def test_one_frame_is_never_pruned(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    write_video("image.mp4", moving(1), fps=2)
    main(["image.mp4", "--checkpoint", "model.pt", "--json", "image.json", "--mp4", "image-out.mp4", "-o", "i.html"])
    assert "never pruned" in capsys.readouterr().out
    found = json.loads((place / "image.json").read_text())
    assert any("never pruned" in note for note in found["notes"])
    for own in found["scorers"].values():
        assert own["scores"] is None
        assert all((one["keep"], one["rows"], one["share"]) == (["1" * 9], 1, 1) for one in own["levels"])


def test_without_a_checkpoint_it_says_so(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    main(["clip.mp4", "--frames", "3"])
    assert "scores mean nothing" in capsys.readouterr().out.replace("\n", " ")
    assert "weights are random" in (place / "clip.html").read_text()


def test_questions_of_the_world_and_their_answers(place, data):
    index = prepare(place / "data", "test", {"short": 1, "brief": 1}, 48)
    short, brief = load_clips(index)
    (index.parent / "others.jsonl").write_text("not a clip\n")
    asked = known_questions(short.video)
    assert len(asked) == 6 and set(asked) <= {(qa.question, qa.answer) for qa in short.qa}
    assert known_questions(brief.video) and known_questions(place / "clip.mp4") == []
    one = data["questions"][0]
    assert (one["question"], one["answer"]) == ("what moves ?", None)
    model, _ = checkpoint.load_model(place / "model.pt")
    batch = collate([read_video(place / "clip.mp4", 32, size=48)], [[(TOKENIZER.prompt("what moves ?"), [])]])
    for i, k in enumerate(data["ladder"]):
        assert one["said"]["stts"][i] == TOKENIZER.decode(model.generate(batch, k)[0][0])
    assert {len(said) for said in one["said"].values()} == {11}


def test_a_scorer_of_one_s_own_is_one_more_choice(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    lines = ["import torch", "", "class Late(torch.nn.Module):", "    def __init__(self, config):"]
    lines += ["        super().__init__()", "    def forward(self, x, num_frames=None):"]
    lines += ["        return torch.arange(x.shape[1] * 9.0).view(1, -1, 9)"]
    (place / "mine.py").write_text("\n".join(lines) + "\n")
    main(["clip.mp4", "--checkpoint", "model.pt", "--scorer", "mine.py:Late", "--json", "mine.json"])
    own = json.loads((place / "mine.json").read_text())["scorers"]["mine.py:Late"]
    assert own["levels"][5]["keep"] == ["1" * 9] + ["0" * 9] * 6 + ["1" * 9] * 5 and own["scores"][2][1] == 19
    said = capsys.readouterr().out
    assert "mine.py:Late" in said and own["levels"][5]["cost"]["score"] == 0 and "fresh" not in said
    lines.insert(5, "        self.a = torch.nn.Linear(2, 1)")
    (place / "weights.py").write_text("\n".join(lines) + "\n")
    main(["clip.mp4", "--checkpoint", "model.pt", "--scorer", "weights.py:Late", "--json", "mine.json"])
    assert "note: The weights of weights.py:Late are fresh, not trained" in capsys.readouterr().out


def test_a_film_dims_what_goes(place, data):
    white = np.full((12, 48, 48, 3), 200, np.uint8)
    pages = film(data, white, 0.35)
    assert pages.shape == (12, 136, 4 * 52, 3)
    for column, own in enumerate(data["scorers"].values(), start=1):
        dim = (pages[:, 20:68, 52 * column : 52 * column + 48] == 40).all(3)
        gone = [frame.count("0") for frame in own["levels"][data["ladder"].index(0.35)]["keep"]]
        assert dim.sum((1, 2)).tolist() == [n * 16 * 16 for n in gone]
    with av.open(str(place / "out.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 12


def test_a_jpeg_is_the_picture():
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:, 16:] = (250, 20, 20)
    decoder = av.CodecContext.create("mjpeg", "r")
    shown = [*decoder.decode(av.Packet(jpeg(picture))), *decoder.decode(None)][0].to_ndarray(format="rgb24")
    assert abs(shown.astype(int) - picture)[:, [2, 29]].max() < 12


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["nowhere.mp4"], 1, "no such file"),
        (["model.pt"], 1, "not a video"),
        (["clip.mp4", "--k", "1.5"], 2, "not in"),
        (["clip.mp4", "--k", "1"], 2, "not in"),
        (["clip.mp4", "-o", "./clip.mp4"], 1, "is also an input"),
        (["clip.mp4", "--checkpoint", "model.pt", "--json", "model.pt"], 1, "is also an input"),
        (["clip.mp4", "-o", "x", "--json", "x"], 1, "twice"),
        (["clip.mp4", "-o", "."], 1, "folder"),
        (["clip.mp4", "--checkpoint", "none.pt"], 1, "no checkpoint"),
        (["clip.mp4", "--checkpoint", "other.pt"], 1, "another world"),
        (["clip.mp4", "--scorer", "mine"], 1, "mine"),
        (["clip.mp4", "--ask", "what ?"], 1, "--checkpoint"),
        (["clip.mp4", "--frames", "0"], 1, "--frames 0: give 1 or more"),
        (["clip.mp4", "--fps", "nan"], 1, "--fps nan: give more than 0"),
        (["clip.mp4", "--ask", " "], 1, "give no empty question"),
        (["clip.mp4", "--scorer", "mine.py:S", "--json", "mine.py"], 1, "mine.py is also an input"),
        (["clip.mp4", "--json", "lines.jsonl"], 1, "lines.jsonl is the name of a list of clips: give another"),
        (["clip.mp4"], 1, "clip.html is there, and no page of ours: give -o NAME"),
        (["nowhere.mp4", "-o", "new/a.html"], 1, "no such file: nowhere.mp4"),
    ],
)
def test_what_is_refused_and_how(arguments, code, text, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    if arguments == ["clip.mp4"]:
        (place / "clip.html").write_text("<p>My holiday")
    before = (place / "clip.mp4").read_bytes()
    if "other.pt" in arguments:
        state = checkpoint.load("model.pt")
        torch.save({**state, "world": "another world"}, "other.pt")
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    said = capsys.readouterr().err if code == 2 else stopped.value.code
    assert (stopped.value.code == 2 or code == 1) and not (place / "new").exists()
    assert text in said and (place / "clip.mp4").read_bytes() == before and "Traceback" not in said
    (place / "clip.html").unlink(missing_ok=True)


@pytest.mark.parametrize("flag", ["-o", "--json", "--mp4"])
def test_outputs_go_through_links_and_never_in_place_of_a_pipe(flag, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    os.symlink("pipe", "to-pipe")
    os.symlink("real", "link")
    words = [str(place / "clip.mp4"), "--checkpoint", str(place / "model.pt"), "--frames", "2", flag]
    for name in ("pipe", "to-pipe"):
        with pytest.raises(SystemExit, match=f"{name} is no regular file"):
            main([*words, name])
    main([*words, "link"])
    assert sorted(os.listdir()) == ["link", "pipe", "real", "to-pipe"] and os.path.getsize("real") > 100
    assert os.path.islink("link") and stat.S_ISFIFO(os.stat("to-pipe").st_mode)


def test_names_of_any_bytes_are_shown_and_printed_in_one_line(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"a\xe9\n\x1b[31m.mp4")
    (tmp_path / name).write_bytes((place / "clip.mp4").read_bytes())
    os.mkfifo("others.jsonl")  # beside it: looked at for questions, and not waited for
    main([name, "--checkpoint", str(place / "model.pt"), "-o", f"{name}.html", "--json", f"{name}.json"])
    said = capsys.readouterr().out
    assert said.replace("\n", "").isprintable() and said.startswith(r"a\udce9\n\x1b[31m.mp4: 12 frames")
    assert json.loads((tmp_path / f"{name}.json").read_text())["video"] == name
    assert (tmp_path / f"{name}.html").exists()


def test_the_page_loads_nothing_and_no_name_ends_its_script(data):
    text = page({**data, "video": "</script><b>.mp4"}, moving(12))
    assert explore.TITLE in text.encode() and "default-src 'none'" in text and "__DATA__" not in text
    assert not re.search(r"https?:|//[a-z]|\bsrc=|@import|url\(", re.sub('base64,[^"]*', "", text))
    assert text.count("</script>") == 2 and json.loads(re.search(r'id="data">(.*)</script>', text)[1])


# ---------------------------------------------------------------------------------------------- the page

SHOWN = """return {
  status: document.getElementById("status").textContent,
  veiled: [...document.querySelectorAll(".tile .veil")].map((canvas) => {
    const alpha = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return Array.from({length: canvas.width * canvas.height}, (_, c) => alpha[4 * c + 3] ? "0" : "1").join("");
  }),
  kept: [...document.querySelectorAll(".tile b")].map((one) => parseInt(one.textContent)),
  rows: [...document.querySelectorAll(".bin")].map((bin) => [...bin.querySelectorAll(".seg")].map((seg) => [
    Number(seg.dataset.t), Math.round(seg.offsetLeft / seg.parentElement.offsetWidth * 36)])),
  current: document.querySelector("#levels [aria-current]").innerText.split(/\\s+/),
}"""
CHOOSE = """const input = document.querySelector(`[value=${arguments[0]}]`), k = document.getElementById("k");
if (!input.checked) input.click();
k.value = arguments[1]; k.dispatchEvent(new Event("input"));"""
PLACE = "const box = document.querySelector(arguments[0]).getBoundingClientRect(); return [box.x, box.y];"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def opened(browser, place):
    browser.window(1280)
    browser.open(place / "pages" / "out.html")
    yield browser
    assert browser.log() == []


def test_every_count_of_the_page_is_the_data_s(opened, data):
    for name, own in data["scorers"].items():
        for i, level in enumerate(own["levels"]):
            opened.run(CHOOSE, name, i)
            shown, kept = opened.run(SHOWN), sum(level["kept"])
            rows = f"{level['rows']} {'rows' if level['rows'] > 1 else 'row'}"
            assert shown["status"].startswith(f"k = {100 * level['k']:.0f} %: {kept} of 108 cells kept in {rows} ")
            assert f"{level['tokens']} LLM tokens" in shown["status"]
            assert shown["veiled"] == level["keep"] and shown["kept"] == level["kept"]
            assert shown["current"][:2] == [f"{100 * level['k']:.0f}", "%"] and str(kept) in shown["current"]
            places = sorted(
                (r, o, t) for t, (r, o) in enumerate(zip(level["row"], level["offset"], strict=True)) if r >= 0
            )
            assert [(r, o, t) for r, row in enumerate(shown["rows"]) for t, o in row] == places


def test_keys_move_the_slider_and_the_frames(opened):
    opened.run("document.getElementById('k').focus()")
    before = opened.run(SHOWN)
    opened.press(ARROW_RIGHT)
    after = opened.run(SHOWN)
    assert after["veiled"] != before["veiled"] and after["status"] != before["status"]
    assert opened.run("return document.getElementById('k').getAttribute('aria-valuetext')") in after["status"].replace(
        ":", " removed:"
    )
    opened.run("document.querySelector('.tile').focus()")
    opened.press(ARROW_RIGHT)
    assert opened.run("return document.activeElement.getAttribute('aria-label')").startswith("Frame 1, 0.5 s: ")
    assert opened.run("return document.querySelector('.seg.chosen').dataset.t") == "1"
    names = "return [...document.querySelectorAll('button, input')].filter((one) => one.tabIndex >= 0 &&"
    names += " !(one.textContent || one.getAttribute('aria-label') || one.labels?.[0]?.textContent)).length"
    assert opened.run(names) == 0  # whatever can be reached has a name


def test_pointing_links_a_cell_of_a_frame_with_its_place_in_the_bins(opened, data):
    opened.run(CHOOSE, "cosine", data["ladder"].index(0.5))
    rings = "return [...document.querySelectorAll('.ring')].map((one) => one.parentElement.className.split(' ')[0])"
    x, y = opened.run(PLACE, ".seg[data-t='0']")
    opened.point(x + 5, y + 5)  # its first place: cell 0
    assert opened.run("return document.querySelector('.tile.near').dataset.t") == "0"
    assert opened.run(rings) == ["pic", "map", "seg", "pic", "map"]
    assert "cell 0" in opened.run("return document.getElementById('closer-text').textContent")
    x, y = opened.run(PLACE, ".tile[data-t='0'] .pic")
    opened.point(x + 5, y + 5)
    assert opened.run("return document.querySelector('.seg.near').dataset.t") == "0"


def test_from_phone_to_wide_screen_in_both_themes(opened):
    paper = "return getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)"
    cut = """const edge = document.getElementById("strip").getBoundingClientRect().right;
    return [...document.querySelectorAll(".tile")].map((tile) => tile.getBoundingClientRect())
      .some((tile) => tile.left + 20 < edge && edge < tile.right);"""
    for width in (320, 360, 390, 768, 1280, 2560):
        for theme, light in (("light", True), ("dark", False)):
            opened.window(width, theme=theme)
            assert opened.run("return document.documentElement.scrollWidth") <= width
            assert (sum(opened.run(paper)) > 3 * 128) == light
            assert opened.run(cut) or width > 700  # on a phone the edge cuts a frame: there are more


def test_an_image_s_page_works(browser, place):
    test_one = place / "i.html"
    write_video(place / "image.mp4", moving(1), fps=2)
    main([str(place / "image.mp4"), "--checkpoint", str(place / "model.pt"), "-o", str(test_one)])
    browser.open(test_one)
    browser.run(CHOOSE, "cosine", 9)
    assert browser.run(SHOWN)["status"].startswith("k = 90 %: 9 of 9 cells kept in 1 row ") and browser.log() == []


def test_64_frames_of_81_cells_stay_small_and_smooth(browser, tmp_path):
    config = tiny(tmp_path, image_size=54, patch_size=6, w=1)
    model = VLM(config.model)
    frames = moving(64, 162)
    video = Video(moving(64, 54), [t / 2 for t in range(64)], 31.5)
    found = explore.explore(model, video, pick_scorers(model, []))
    names = dict(format=explore.FORMAT, video="long.mp4", model="tiny", notes=[], start=0.5)
    path = tmp_path / "long.html"
    path.write_text(page({**names, **found}, frames), encoding="utf-8")
    browser.window(1280)
    browser.open(path)
    script = """const k = document.getElementById("k"), times = [];
    for (const at of [0, 9, 5, 1, 7, 3]) {
      const start = performance.now();
      k.value = at; k.dispatchEvent(new Event("input")); document.body.offsetHeight;
      times.push(performance.now() - start);
    }
    return times;"""
    times = browser.run(script)
    print(
        f"\n64 frames, 81 cells: {path.stat().st_size / 1e6:.1f} MB; a step of the slider takes",
        *(f"{t:.0f}" for t in times),
        "ms",
    )
    assert path.stat().st_size < 2.5e6 and browser.log() == []  # how long it takes depends on what else runs
    assert sum(browser.run(SHOWN)["kept"]) == sum(found["scorers"]["stts"]["levels"][3]["kept"])


def test_a_model_that_spreads_is_shown_as_it_prunes(tmp_path):
    config = dataclasses.replace(tiny(tmp_path).model, spread=0.5)
    model, video = VLM(config).eval(), Video(np.zeros((12, 48, 48, 3), np.uint8), [i / 2 for i in range(12)], 5.5)
    shown = explore.explore(model, video, {"stts": model.scorer}, ladder=(0.5,))
    (level,) = shown["scorers"]["stts"]["levels"]
    frames = torch.zeros(1, 12, 3, 48, 48, dtype=torch.uint8)
    keep = model.encode_video(frames, None, 0.5).keep[0]
    assert level["keep"] == ["".join("01"[cell] for cell in frame) for frame in keep.tolist()]
    assert any("spread = 0.5" in note for note in explore.remarks(model, {"train_config": {"k": 0.5}}, video, {}))
