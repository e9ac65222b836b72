"""Reports: what they say is what the result says, hostile text is inert, and the page works in a real browser."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import guidekit as gk
from guidekit.report import (
    Recorder,
    charts,
    compared,
    dna,
    images,
    molecules,
    motifs,
    notebook,
    pedigree,
    samples,
    write,
    write_result,
)
from guidekit.report.reading import read
from guidekit.report.recorder import moments, survivors
from guidekit.report.svg import LINE, Scale, legend, number, picture, shortened, ticks
from rewards.molecules import LogP, MolWt

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*could not be scored"),
    pytest.mark.filterwarnings("ignore:weighted means and log_z are not reliable"),
]
POOL = """CCO c1ccccc1 CC(=O)Oc1ccccc1C(=O)O CN1CCC[C@H]1c1cccnc1 O=C(O)c1ccccc1 CCN(CC)CC C1CCCCC1 Cc1ccncc1
CCS(C)(=O)=O FC(F)(F)c1ccccc1 Clc1ccccc1Br CC#N C[N+](C)(C)C O=c1cc[nH]cc1 notamolecule NCC(=O)O""".split()  # noqa: SIM905


def decode(x: torch.Tensor) -> list[str]:
    """Four bits choose a molecule; a mask counts as 1."""
    return [POOL[int(i)] for i in (x.clamp(max=1) * 2 ** torch.arange(4)).sum(1)]


def bits(pool=decode) -> gk.MaskedModel:
    return gk.MaskedModel(lambda x, t, cond: torch.zeros(*x.shape, 2) + torch.tensor([0.0, 0.3]), 2, 4, decode=pool)


def blobs() -> gk.Model:
    """Grey images of 6 by 5."""
    return gk.GaussianModel(
        lambda x, t, cond: 0.5 * x, (1, 6, 5), predicts="clean", decode=lambda x: (x / 4 + 0.5).clamp(0, 1)
    )


def length(samples: list[str]) -> list[float]:
    return [math.nan if s == "notamolecule" else float(len(s)) for s in samples]


@pytest.fixture(scope="module")
def molecular(tmp_path_factory) -> Path:
    """The output directory of a run on molecules, with all that can be in it."""
    out = tmp_path_factory.mktemp("report") / "a folder with spaces & <b>"
    model, recorder = bits(), Recorder(bits())
    guides = [gk.FKSteering(length, 4.0)]
    call: dict[str, Any] = {"steps": 4, "seed": 1, "holdout": LogP()}
    result = gk.sample(model, 70, guides=guides, callbacks=[recorder], **call)
    base = gk.sample(model, 70, reward=length, **call)
    write_result(result, out, base=base, recorder=recorder, model="bits", reward="length", guides=guides)
    with open(out / "samples.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["row", "condition", "sample", "reward", "weight of it", "weight"])
        weights = MolWt()(result.samples).tolist()
        for i in reversed(range(70)):
            rows.writerow([i, "", result.samples[i], "", weights[i], ""])
    (out / "run.toml").write_text('model = "bits"\n')
    write(out)
    return out


def parsed(page: str) -> Page:
    found = Page()
    found.feed(page)
    return found


class Page(HTMLParser):
    """Elements with their attributes, and the text between."""

    def __init__(self):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


# charts --------------------------------------------------------------------------------------------------------------


def test_ticks_are_round_and_lie_within():
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(-3.7, 12) == [0, 5, 10]
    assert ticks(0.001, 0.0042) == [0.001, 0.002, 0.003, 0.004]
    assert [number(v) for v in (-0.5, math.inf, 1234567.0, None)] == ["−0.5", "–", "1,234,567", "–"]


def points(path: str) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in re.findall(r"[ML]([\d.]+) ([\d.-]+)", path)]


def test_a_line_goes_up_where_values_grow_starts_at_step_1_and_breaks_where_they_are_unknown():
    svg = charts.lines([charts.Series("a", [0.0, 1.0, math.nan, 3.0])], "t", "y", zero=True)
    path = re.search(r'class="c0"><path class="line" d="([^"]*)"', svg)
    assert path and path[1].count("M") == 2
    (x1, y1), (x2, y2), (x4, y4) = points(path[1])
    assert y1 - y2 == pytest.approx((y2 - y4) / 2, abs=0.11) and y1 > y2
    assert x4 - x2 == pytest.approx(2 * (x2 - x1), abs=0.11)
    assert x1 == Scale(0, 4, 50, 466)(1)


def test_a_histogram_takes_the_weights():
    one = charts.Series("a", [0.0, 10.0, 10.0, math.nan], weights=[0.6, 0.1, 0.2, 0.1])
    svg = charts.histogram([one, charts.Series("b", [0.0, 10.0])], "t", "x", bins=2)
    foot, top = 248.0, 46.0  # of the picture; the highest share is at the top less 5 percent
    for kind, shares in (("bar", [2 / 3, 1 / 3]), ("line", [0.5, 0.5])):
        path = re.search(rf'<path class="{kind}" d="(M[\d.]+ 248[^"]*H[^"]*)"', svg)
        assert path
        heights = [(foot - float(v)) / (foot - top) * (2 / 3 * 1.05) for v in re.findall(r"V([\d.]+)", path[1])]
        assert heights == pytest.approx([*shares, 0.0], abs=0.01)
    assert "a: mean 3.33." in svg and "b: mean 5." in svg


def test_points_of_a_scatter_lie_where_they_should_and_their_area_is_their_weight():
    svg = charts.scatter([charts.Series("a", [0.0, 5.0], x=[0.0, 1.0], weights=[1.0, 4.0], labels=["p", "<q>"])], "t",
                         "x", "y")  # fmt: skip
    found = [[float(v) for v in m] for m in re.findall(r'cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', svg)]
    (x1, y1, r1), (x2, y2, r2) = found
    assert x1 < x2 and y1 > y2 and r2 / r1 == pytest.approx(2, abs=0.1) and "&lt;q&gt;: 1, 5" in svg


def family(steps: int, n: int, seed: int) -> tuple[list[list[int]], list[float]]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(n)
    paths = [rows]
    for _ in range(steps):
        rows = torch.randint(n, (n,), generator=generator)[rows]
        paths.insert(0, rows)
    return torch.stack(paths, 1).tolist(), torch.rand(n, generator=generator).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_lines_of_a_lineage_do_not_cross_and_meet_in_common_ancestors(seed):
    paths, scores = family(6, 20, seed)
    ranks = pedigree.order(paths, scores)
    assert sorted(ranks) == list(range(20)) and paths[ranks[0]][0] == paths[scores.index(max(scores))][0]
    ys = pedigree.heights(paths, [ranks.index(i) for i in range(20)])
    for step in range(7):
        heights = [ys[i][step] for i in ranks]
        assert heights == sorted(heights)
        for i in range(20):
            for j in range(20):
                assert (paths[i][step] == paths[j][step]) == (ys[i][step] == ys[j][step])


def test_shades_of_a_lineage_grow_with_the_reward():
    scores = [float(v) for v in range(10)]
    assert [pedigree.shade(v, scores) for v in scores] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


# molecules, DNA, images ----------------------------------------------------------------------------------------------


def test_a_molecule_is_drawn_small_with_its_elements_and_bonds():
    svg = molecules.draw("Nc1ccc(Cl)cc1")
    assert svg and len(svg) < 2500 and "structure of Nc1ccc(Cl)cc1" in svg
    assert re.findall(r">([A-Z][a-z]?|l|\d)</text>", svg) == ["N", "H", "2", "C", "l"] or ">N<" in svg
    bonds = "".join(re.findall(r'stroke="currentColor"[^>]*|d="(M[^"]*)" stroke="currentColor"', svg))
    assert bonds.count("M") >= 6 + 3  # the ring and its second lines
    assert molecules.draw("notamolecule") is None and molecules.draw("C" * 200) is None
    assert molecules.properties("CCO") == {"QED": "0.407", "SA": "1.98", "logP": "−0.00140", "MW": "46.1"} | {
        "logP": molecules.properties("CCO")["logP"]
    }
    assert molecules.key("OCC") == molecules.key("CCO") != molecules.key("CCN")


def test_shares_and_information_of_a_logo():
    assert dna.shares(["AC", "AG", "AN"], [0.5, 0.25, 0.25]).tolist() == [[1, 0, 0, 0], [0, 2 / 3, 1 / 3, 0]]
    f = dna.shares(["A", "A", "C", "G"])
    entropy = 0.5 * 1 + 0.25 * 2 * 2
    assert float(dna.information(f, 4)) == pytest.approx(max(0, 2 - entropy - 3 / (2 * math.log(2) * 4)))
    assert float(dna.information(f, 400)) == pytest.approx(2 - entropy - 3 / (2 * math.log(2) * 400))
    assert float(dna.information(torch.zeros(1, 4), 4)) == 0.0


def test_letters_of_a_logo_are_as_high_as_their_share_of_the_information():
    sequences = ["AC"] * 60 + ["AG"] * 40
    svg = dna.logo(sequences, [1.0] * 100)
    found = re.findall(r'href="#base(\w)" transform="translate\(([\d.]+) ([\d.]+)\)scale\([\d.]+ ([\d.]+)\)', svg)
    height = {letter: float(h) * 10 for letter, _, _, h in found}
    e = 3 / (2 * math.log(2) * 100)
    second = 2 + 0.6 * math.log2(0.6) + 0.4 * math.log2(0.4) - e
    assert height["A"] == pytest.approx(74 * (2 - e) / 2, abs=0.1)
    assert (height["C"], height["G"]) == pytest.approx((74 * 0.6 * second / 2, 74 * 0.4 * second / 2), abs=0.1)
    y = {letter: float(v) for letter, _, v, _ in found}
    assert y["C"] < y["G"]  # the more frequent one lies on top


def test_the_gc_track_is_a_mean_over_the_positions_around():
    line = dna._smooth(torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0]), 3)
    assert line == pytest.approx([1 / 2, 1 / 3, 1 / 3, 1 / 3, 1 / 2])
    svg = dna.gc_track([("own", 0, ["CGAT", "GGTT"], [0.25, 0.75])], window=1)
    path = re.search(r'class="c0"><path class="line" d="([^"]*)"', svg)
    assert path and [y for _, y in points(path[1])] == [46.0, 46.0, 130.0, 130.0]  # all of it at the top


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_the_pixels(channels):
    from PIL import Image

    pixels = torch.randint(256, (channels, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with Image.open(io.BytesIO(images.png(pixels))) as image:
        image.load()
        assert image.size == (7, 5) and image.mode == ("L" if channels == 1 else "RGB")
        assert list(image.tobytes()) == pixels.movedim(0, -1).flatten().tolist()


def test_images_are_made_smaller_by_means_of_areas():
    pixels = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    pixels[:, :, :4, :4], pixels[:, :, 4:, 4:] = 200, 100
    pixels[:, :, :4, 1:3] = 100
    assert images.fitted(pixels, 8) is pixels
    small = images.fitted(pixels, 2)
    assert small[0, 0].tolist() == [[150, 0], [0, 100]]
    assert images.fitted(torch.zeros(100, 3, 64, 64, dtype=torch.uint8), 64, budget=100 * 3 * 32**2).shape[-1] == 32


# the recorder --------------------------------------------------------------------------------------------------------


RUNS = {
    "FK, tokens": lambda: (bits(), [gk.FKSteering(length, 4.0)], None),
    "SVDD, tokens": lambda: (bits(), [gk.SVDD(length, 2.0, 3), gk.Resample()], None),
    "FK, images": lambda: (blobs(), [gk.FKSteering(lambda x: x.mean((1, 2, 3)), 0.02)], None),
    "best of 3": lambda: (blobs(), [gk.BestOfN(lambda x: x.mean((1, 2, 3)), 3)], None),
    "two steps in one": lambda: (blobs(), [], gk.solvers.Heun()),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_recorded_run_is_the_same_bit_for_bit_and_costs_the_same(name):
    model, guides, solver = RUNS[name]()
    call = {"steps": 4, "guides": guides, "seed": 2, "solver": solver}
    plain = gk.sample(model, 9, **call)
    result = gk.sample(model, 9, callbacks=[Recorder(model)], **call)
    for field in ("x", "log_weights", "ancestors", "row", "noise"):
        assert torch.equal(getattr(plain, field), getattr(result, field))
    for field in ("network_rows", "network_calls", "reward_calls", "unscored"):
        assert getattr(plain.cost, field) == getattr(result.cost, field)


def test_what_is_recorded_are_the_clean_estimates_of_the_ancestors_with_their_rewards(tmp_path):
    model, seen = bits(), []
    recorder = Recorder(model, every=2)
    callbacks = [recorder, lambda pop, step: seen.append((step.t, decode_clean(model, pop, step)))]
    guides = [gk.FKSteering(length, 4.0, ess=1.0)]
    result = gk.sample(model, 30, steps=4, guides=guides, callbacks=callbacks, cond=None, seed=5)
    text = json.loads(recorder.save(tmp_path, result).read_text())
    assert text["steps"] == [2, 4] and text["t"] == [0.5, 0.0] and len(text["rows"]) == 30
    for row in range(30):
        ancestor = int(result.ancestors[3][row]), row  # after step 3 and, the last having selected, after step 4
        ancestor = int(result.ancestors[2][ancestor[0]]), row  # after step 2
        for i, step in enumerate((2, 4)):
            node = text["nodes"][i][text["rows"][str(row)][i]]
            assert node["row"] == ancestor[i] and node["text"] == seen[step - 1][1][ancestor[i]]
            expected = length([node["text"]])[0]
            assert node["reward"] == (None if math.isnan(expected) else expected)
    ends = [text["nodes"][1][text["rows"][str(row)][1]]["text"] for row in range(30)]
    assert ends == result.samples and len(set(result.lineage()[2].tolist())) < 25


def decode_clean(model, pop, step) -> list[str]:
    return model.decode(pop.x if step.last else model.process.clean(pop.predictions[0], pop.x))


def test_images_are_recorded_as_png_and_unknown_rewards_as_null(tmp_path):
    from PIL import Image

    model = blobs()
    recorder = Recorder(model)
    result = gk.sample(model, 3, steps=2, callbacks=[recorder])
    text = json.loads(recorder.save(tmp_path, result).read_text())
    uri = text["nodes"][1][text["rows"]["2"][1]]["image"]
    with Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))) as image:
        assert list(image.tobytes()) == (result.samples[2] * 255).round().flatten().tolist()
    assert text["nodes"][0][0]["reward"] is None


def test_moments_and_survivors_are_bounded(tmp_path):
    assert moments(10, 4) == [4, 8, 10] and moments(3, 7) == [3]
    many = moments(200)
    assert len(many) == 12 and many[0] == 1 and many[-1] == 200 and max(b - a for a, b in pairwise(many)) <= 19
    result = gk.sample(bits(), 100, steps=2, reward=length, cond=None)
    rows = survivors(result)
    rewards = result.rewards.nan_to_num(-1)
    assert len(rows) == 64 and rewards[rows].tolist() == sorted(rewards.tolist(), reverse=True)[:64]
    two = gk.sample(gk.analytic.GaussianMixture([1.0], [0.0], [1.0]), 50, steps=2, cond=[None, None],
                    reward=lambda x: x[:, 0])  # fmt: skip
    assert two.group[survivors(two)].tolist() == [0] * 32 + [1] * 32


def test_at_the_end_the_samples_are_recorded_and_not_what_the_network_said_before(tmp_path):
    model = gk.UniformModel(lambda x, t, cond: torch.zeros(*x.shape, 4), 4, 8, decode=letters)
    recorder = Recorder(model)
    result = gk.sample(model, 9, steps=3, callbacks=[recorder])
    text = json.loads(recorder.save(tmp_path, result).read_text())
    assert [node["text"] for node in text["nodes"][2]] == result.samples and len(set(result.samples)) == 9


def test_a_recorder_refuses_another_run(tmp_path):
    model = bits()
    recorder = Recorder(model)
    with pytest.raises(ValueError, match="saw no step"):
        recorder.save(tmp_path, gk.sample(model, 4, steps=2))
    gk.sample(model, 8, steps=2, seed=1, callbacks=[recorder])
    with pytest.raises(ValueError, match="another run"):
        recorder.save(tmp_path, gk.sample(model, 8, steps=2, seed=2))
    with pytest.raises(TypeError, match="base model"):
        Recorder(length)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        Recorder(model, every=0)
    assert not list(tmp_path.iterdir())


def test_a_recorder_may_be_used_again_and_after_an_interruption(tmp_path):
    model = bits()
    recorder = Recorder(model)
    gk.sample(model, 8, steps=4, seed=1, callbacks=[recorder])
    result = gk.sample(model, 8, steps=2, seed=2, callbacks=[recorder])
    assert json.loads(recorder.save(tmp_path, result).read_text())["steps"] == [1, 2]

    def stop(pop, step):
        if step.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gk.sample(model, 8, steps=4, seed=3, callbacks=[stop], checkpoint=tmp_path / "c")
    recorder = Recorder(model)
    result = gk.sample(model, 8, steps=4, seed=3, callbacks=[recorder], checkpoint=tmp_path / "c")
    assert json.loads(recorder.save(tmp_path, result).read_text())["steps"] == [3, 4]


# the page ------------------------------------------------------------------------------------------------------------


def test_the_page_says_what_the_result_says(molecular):
    page = parsed((molecular / "report.html").read_text(encoding="utf-8"))
    result, base = gk.load_result(molecular / "result"), gk.load_result(molecular / "base")
    known = result.rewards.isfinite()
    mean = float((result.weights * result.rewards)[known].sum() / result.weights[known].sum())
    plain = base.rewards[base.rewards.isfinite()].mean()
    text = re.sub(r"\s+", " ", page.text)
    assert f"mean reward{number(mean)}{number(float(plain))} unguided" in text
    assert "70 samples in 4 steps, guided by FKSteering" in text
    assert f"log Z{number(float(result.log_z[0]))}" in text
    assert f"effective samples{number(float(result.ess[0]))}of 70" in text
    assert "@misc{" in text and 'model = "bits"' in text
    assert "Only the best 64 samples are drawn, 6 are not." in text
    different = len({molecules.key(s) for s in result.samples})
    assert f"{70 - different} samples are repetitions" in text


def test_the_extra_columns_of_samples_csv_go_to_their_rows_whatever_their_order(molecular):
    result = gk.load_result(molecular / "result")
    out = read(molecular)
    weights = MolWt()(result.samples).tolist()
    assert [out.table[i]["weight of it"] for i in range(70)] == [str(w) for w in weights]
    page = parsed((molecular / "report.html").read_text(encoding="utf-8"))
    cells = [a["data-v"] for tag, a in page.elements if tag == "td" and "data-v" in a][-70 * 5 :]
    for row, reward, _, weight, extra in zip(*(iter(map(float, cells)),) * 5, strict=True):
        assert weight == pytest.approx(float(result.weights[int(row)]))
        assert reward == pytest.approx(float(result.rewards[int(row)]), nan_ok=True)
        assert extra == pytest.approx(weights[int(row)], nan_ok=True)


def test_a_page_of_a_result_alone_has_no_more_than_that(tmp_path):
    result = gk.sample(gk.analytic.GaussianMixture([1.0], [0.0], [1.0]), 5, steps=3)
    result.save(tmp_path / "result")
    page = parsed(write(tmp_path).read_text(encoding="utf-8"))
    ids = {a["id"] for _, a in page.elements if "id" in a}
    assert {"summary", "samples", "table", "record"} <= ids and not {"rewards", "toml", "bib", "way"} & ids
    assert "unguided" not in page.text and "mean reward" not in page.text


def test_a_page_has_the_laws_that_were_checked_and_warns_of_those_that_fail(tmp_path):
    found = gk.check(gk.GaussianModel(lambda x, t, cond: x - x.mean(0), (2,), predicts="clean"))
    result = gk.sample(blobs(), 4, steps=2)
    page = write_result(result, tmp_path / "a", check=found).read_text()
    assert page.count('scope="row">rows<') == 1 and "The law &#39;rows&#39; fails: alone and in a batch" in page
    assert 'id="laws"' not in write_result(result, tmp_path / "b").read_text()
    with pytest.raises(FileExistsError, match=r"has check\.json of another run"):
        write_result(result, tmp_path / "a")


@pytest.mark.parametrize("name", ["summary.json", "samples.csv", "lineage.json", "run.toml", "result/result.json"])
@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"[]", b'{"rows": [3]}', b'{"format": "x"}'])
def test_a_broken_file_is_named(molecular, tmp_path, name, content):
    out = tmp_path / "out"
    shutil.copytree(molecular, out)
    (out / name).write_bytes(content)
    if name == "summary.json" and content == b'{"format": "x"}':
        return  # all of it is optional
    if name == "run.toml" and content != b"\xff\xfe\x00":
        assert content.decode() in write(out).read_text(encoding="utf-8").replace("&#34;", '"')
        return
    with pytest.raises((ValueError, gk.CheckpointError), match=re.escape(str(out / name.split("/")[0]))):
        write(out)


def test_what_belongs_to_another_run_is_an_error(molecular, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(molecular, out)
    gk.sample(bits(), 70, steps=4, seed=9, guides=[gk.FKSteering(length, 4.0)]).save(out / "result")
    with pytest.raises(ValueError, match=r"lineage\.json"):
        write(out)
    shutil.rmtree(out)
    shutil.copytree(molecular, out)
    whole = json.loads((out / "lineage.json").read_text())
    one = next(iter(whole["rows"]))
    wrong = json.loads(json.dumps(whole))
    wrong["nodes"][1][wrong["rows"][one][1]]["row"] += 1
    few = whole | {"rows": {k: v for k, v in whole["rows"].items() if k != one}}
    for text, why in (
        (wrong, f"the ancestor of sample .* at step {whole['steps'][1]} is another one"),
        (few, "missing"),
    ):
        (out / "lineage.json").write_text(json.dumps(text))
        with pytest.raises(ValueError, match=rf"lineage\.json.*{why}"):
            write(out)
    (out / "lineage.json").unlink()
    gk.sample(bits(), 7, steps=4).save(out / "result")
    with pytest.raises(ValueError, match=r"samples\.csv.*70 rows where the result has 7"):
        write(out)
    with pytest.raises(FileExistsError, match=r"base, samples\.csv, run\.toml of another run"):
        write_result(gk.load_result(out / "result"), out)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        write(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no saved result"):
        write(tmp_path / "empty")


@pytest.mark.parametrize("module", ["jinja2", "matplotlib.pyplot"])
def test_a_missing_package_is_named_before_anything_is_written(tmp_path, monkeypatch, module):
    result = gk.sample(bits(), 4, steps=2)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{module}: pip install 'guidekit\[report\]'"):
        result.plot() if "matplotlib" in module else write_result(result, tmp_path / "out")
    assert not (tmp_path / "out").exists()


HOSTILE = (
    '"><script>document.title="owned"</script></script></pre><img src=x onerror=document.title="owned">"\'&{{7*7}}'
)


def hostile(out: Path) -> Path:
    """A directory in which every text is an attack."""
    pool = [HOSTILE, "CC", "CCO", "CCC" + HOSTILE]
    model = gk.MaskedModel(
        lambda x, t, cond: torch.zeros(*x.shape, 2), 2, 2,
        decode=lambda x: [pool[i % 4] for i in (x * torch.tensor([1, 2])).sum(1)],
        encode_cond=lambda c: torch.tensor(len(c)), null=0,
    )  # fmt: skip
    recorder = Recorder(model)
    result = gk.sample(model, 6, steps=2, reward=length, callbacks=[recorder], cond=[HOSTILE, "plain"])
    write_result(result, out, recorder=recorder, model=HOSTILE, reward=HOSTILE, title=HOSTILE)
    summary = json.loads((out / "summary.json").read_text())
    rows = [{"name": HOSTILE, HOSTILE: HOSTILE, "mean": None}]
    summary |= {
        "domain": "molecules",
        "warnings": [HOSTILE],
        "guides": [HOSTILE],
        "columns": [HOSTILE, "mean"],
        "rows": rows,
    }
    (out / "summary.json").write_text(json.dumps(summary | {"bibtex": HOSTILE, "version": HOSTILE}))
    (out / "run.toml").write_text(HOSTILE)
    with open(out / "samples.csv", "w", newline="") as file:
        csv.writer(file).writerows([["row", HOSTILE], *([i, HOSTILE] for i in range(12))])
    write(out)
    return out


def test_hostile_text_is_inert(tmp_path):
    page = parsed((hostile(tmp_path / "out") / "report.html").read_text(encoding="utf-8"))
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    assert not [a for tag, a in page.elements if tag == "img" and a.get("src") == "x"]
    assert page.text.count(HOSTILE) > 12 and "49" not in re.sub(r"[\d.]{3,}", "", page.text.split("Record")[1])


def test_a_page_needs_nothing_but_itself(molecular):
    page = parsed((molecular / "report.html").read_text(encoding="utf-8"))
    for tag, attributes in page.elements:
        for name in ("src", "href", "data-src", "srcset"):
            link = attributes.get(name) or "data:"
            assert link.startswith(("data:", "#")), (tag, link)
    assert (molecular / "report.html").stat().st_size < 2_500_000
    assert not list(molecular.glob("*.part"))


@pytest.mark.usefixtures("every_row")
def test_write_result_compares_by_weighted_means(tmp_path):
    model, guides = bits(), [gk.FKSteering(length, 4.0, potential="final", ess=0.0)]
    result, base = gk.sample(model, 40, steps=3, guides=guides), gk.sample(model, 40, steps=3, reward=length)
    assert result.ess[0] < 35
    page = parsed(write_result(result, tmp_path, base=base, model="bits").read_text(encoding="utf-8"))
    cells = [a["data-v"] for tag, a in page.elements if tag == "td" and "data-v" in a][:10]
    known = result.rewards.isfinite()
    mean = (result.weights * result.rewards)[known].sum() / result.weights[known].sum()
    best = sorted(base.rewards[base.rewards.isfinite()].tolist())[-4:]
    assert [float(v) for v in cells[:4]] == pytest.approx(
        [float(base.rewards.nanmean()), sum(best) / 4, 120, base.cost.reward_calls]
    )
    assert f"steered: mean {number(float(mean))}." in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert float(cells[5]) == pytest.approx(float(mean)) and abs(float(mean) - float(result.rewards.nanmean())) > 1


def letters(x: torch.Tensor) -> list[str]:
    return ["".join("ACGT"[min(v, 3)] for v in row) for row in x.tolist()]


def sequences(length: int = 60) -> gk.MaskedModel:
    """DNA in which A is frequent, and G under condition 1."""

    def net(x, t, cond):
        return torch.tensor([[1.0, 0, 0, 0], [0, 0, 1.0, 0]])[cond][:, None].expand(*x.shape, 4)

    return gk.MaskedModel(net, 4, length, letters, encode_cond=torch.tensor, null=0)


def test_sites_are_found_on_both_strands_and_drawn_where_they_are():
    forward, back = "AACCATGACTCATTGG", "AATTATCTGGCCGCCCA"  # AP-1; GATA and SP1/KLF on the other strand
    assert motifs.hits([forward, back], motifs.SITES["AP-1"]) == [(0, 5)]
    assert motifs.hits([forward, back], motifs.SITES["GATA"]) == [(1, 2)]
    assert motifs.hits([forward, back], motifs.SITES["SP1/KLF"]) == [(1, 10)]
    svg = motifs.track([forward, back], ["row 0", "row 1"])
    found = re.findall(r'class="site c(\d)" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)".*?<title>(.*?)</title>', svg)
    assert [(c, title) for c, _, _, _, title in found] == [
        ("0", "AP-1, positions 6 to 12"), ("1", "GATA, positions 3 to 8"), ("4", "SP1/KLF, positions 11 to 16"),
    ]  # fmt: skip
    assert float(found[0][2]) < float(found[1][2]) == float(found[2][2])
    assert float(found[1][1]) < float(found[0][1]) < float(found[2][1])
    assert "AP-1 1, GATA 1, ETS 0, HNF4A 0, SP1/KLF 1, CTCF 0" in svg


def test_dna_of_two_conditions_has_a_logo_and_a_track_for_each(tmp_path):
    model = sequences()
    result = gk.sample(model, 20, steps=3, cond=[0, 1], reward=lambda s: [v.count("G") for v in s])
    page = write_result(result, tmp_path / "out").read_text(encoding="utf-8")
    own = page.split('<section id="samples"')[1].split("<section")[0]
    assert re.findall(r"<h3>(.*?)</h3>", own) == ["0", "1"] and own.count('class="chart wide logo"') == 2
    first, second = own.split("<h3>1</h3>")
    for part, letter, other in ((first, "A", "G"), (second, "G", "A")):
        assert heights(part, letter) > 2 * heights(part, other) > 0
    copied = [a["data-copy"] for _, a in parsed(first).elements if "data-copy" in a]
    theirs = sorted(result.samples[:20], key=lambda s: (-s.count("G"), result.samples.index(s)))
    assert copied == theirs


def heights(logo: str, letter: str) -> float:
    """Of a letter in a logo, over all positions."""
    return sum(map(float, re.findall(rf'"#base{letter}" transform="[^"]* ([\d.]+)\)', logo)))


def test_the_strip_of_sequences_has_a_colour_for_each_letter():
    from PIL import Image

    uri = dna.barcode(["ACGTN", "tt"])
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as image:
        pixels = [image.getpixel((x, y)) for y in range(2) for x in range(5)]
    colours = [tuple(bytes.fromhex(c[1:])) for _, c in dna.colours()]
    grey = (150, 150, 150)
    assert pixels == [*colours, grey, colours[3], colours[3], grey, grey, grey]


def test_what_samples_are_is_seen_from_them():
    kinds = {"molecules": (bits(), {}), "dna": (sequences(), {"cond": 0}), "images": (blobs(), {})}
    kinds["other"] = gk.analytic.GaussianMixture([1.0], [[0.0, 1.0]], [1.0]), {}
    for kind, (model, given) in kinds.items():
        result = gk.sample(model, 12, steps=2, **given)
        assert samples.domain(result) == kind and samples.domain(result, "other") == "other"
    assert samples.conditions(gk.sample(sequences(), 2, steps=1, cond=[1, 0])) == ["1", "0"]


def test_pairs_of_numbers_are_points_and_the_result_without_guides_is_not_called_steered(tmp_path):
    result = gk.sample(gk.analytic.GaussianMixture([1.0], [[0.0, 5.0]], [1.0]), 4, steps=3)
    page = write_result(result, tmp_path).read_text(encoding="utf-8")
    found = dict(re.findall(r"<title>samples, row (\d): (.*?)</title>", page))
    assert found == {str(i): f"{number(a)}, {number(b)}" for i, (a, b) in enumerate(result.x.tolist())}
    assert "steered" not in parsed(page).text.split("Record")[0].split("</style>")[-1].split("Summary")[-1]


def test_the_n_of_best_of_n_is_told(molecular, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(molecular, out)
    summary = json.loads((out / "summary.json").read_text())
    rows = [{"name": "best of N", "mean": 2.5, "validity": None}, {"name": "steered", "mean": 1e-7}]
    columns = ["mean", "validity"]
    (out / "summary.json").write_text(json.dumps(summary | {"rows": rows, "columns": columns, "best_of": 7}))
    text = re.sub(r"\s+", "", parsed(write(out).read_text(encoding="utf-8")).text)
    assert "meanvaliditybestof72.5–steered1.0e−07–" in text


def test_the_best_value_of_a_column_is_found_by_its_good_side_and_no_value_where_all_look_alike():
    rows = [{"a": 1.0, "b": 2, "c": 3.0}, {"a": 3.0, "b": 1, "c": 3.0}, {"a": None, "b": True, "c": 3.0000001}]
    assert compared.best(rows, "a", "higher") == [1] and compared.best(rows, "a", "lower") == [0]
    assert compared.best(rows, "b", "lower") == [1] and compared.best(rows, "b", None) == []
    assert compared.best(rows, "c", "higher") == [] and compared.best(rows[:1], "a", "higher") == []
    alike = [{"a": 0.5001}, {"a": 0.5002}, {"a": 0.4}]
    assert compared.best(alike, "a", "higher") == [0, 1]
    assert compared.best([{"a": math.nan}, {"a": "3"}, {}], "a", "higher") == []


# runs of the command line --------------------------------------------------------------------------------------------

OWN = """
import torch
import guidekit as gk
from rewards import Reward

def load():
    return gk.analytic.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [2.0, 1.0]], [0.5, 0.4])

def right(samples):
    return samples[:, 0]

def nothing(samples):
    return torch.full((len(samples),), 0.25)

def clipped(samples):
    return samples[:, 0].clamp(max=-20.0)

class Far(Reward):
    name, higher_is_better = "distance", False
    def score(self, samples):
        return samples.norm(dim=1)
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("own") / "mine.py"
    file.write_text(OWN)
    return file


def config(own: Path, *rewards: str, **options: Any) -> gk.Config:
    usual = {"guides": ["fk_steering:alpha=0.5"], "n": 12, "steps": 4, "compare": True}
    return gk.Config(f"{own}:load", [f"{own}:{r}" for r in rewards], **(usual | options))


def test_a_title_of_the_users_is_no_part_of_what_the_run_is(own, tmp_path):
    out, page = tmp_path / "out", tmp_path / "out" / "report.html"

    def title() -> str:
        found = re.findall(r"<(?:h1|title)>(.*?)</(?:h1|title)>", page.read_text(encoding="utf-8"))[:2]
        assert found[0] == found[1]
        return found[0]

    first = config(own, "right", "Far:0.5", title="Runs & <walks>").run(out, report=True)
    assert title() == "Runs &amp; &lt;walks&gt;" and first.summary["title"] == "Runs & <walks>"
    assert gk.Config.load(out / "run.toml").title == "Runs & <walks>"
    again = config(own, "right", "Far:0.5", title="Other").run(out, report=True)
    assert not again.new and title() == "Other" and gk.Config.load(out / "run.toml").title == "Other"
    assert not config(own, "right", "Far:0.5").run(out, report=True).new and title() == "Other"
    assert write(out, "Of this page") == page and title() == "Of this page"
    write(out)
    assert title() == "Other"
    with pytest.raises(ValueError, match="another run: seed"):
        config(own, "right", "Far:0.5", title="Other", seed=5).run(out)


def test_the_usual_title_is_the_model_and_the_rewards_that_steer_without_their_formula(own, tmp_path):
    rewards = "right", "Far:0.5", "clipped:0", "nothing:-2"
    for count, expected in (
        (1, "right"),
        (2, "right and distance"),
        (3, "right and distance"),
        (4, "right, distance and nothing"),
    ):
        out = tmp_path / str(count)
        config(own, *rewards[:count], compare=False).run(out)
        page = parsed(write(out).read_text(encoding="utf-8"))
        assert f"mine.py:load: {expected}" in page.text.split("Summary")[0]
    assert "right - 0.5 distance - 2 nothing" in page.text and page.text.count("right - 0.5") == 1
    many = {"model": "m", "components": ["a", "b", "c", "d"], "weights": {}}
    for summary, expected in (
        (many, "m: a, b and 2 more"), ({"model": "m"}, "m"), ({"reward": "x" * 80}, "x" * 59 + "…"),
        ({"components": [], "reward": "qed"}, "qed"), ({}, "Steered samples"),
    ):  # fmt: skip
        (out / "summary.json").write_text(json.dumps(summary))
        assert f"<h1>{expected}</h1>" in write(out).read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["sample", "search", "run", "report"])
def test_the_commands_take_a_title(own, tmp_path, monkeypatch, command):
    from typer.testing import CliRunner

    from guidekit.cli.app import app

    monkeypatch.chdir(own.parent)
    out = str(tmp_path / "out")
    common = ["mine.py:load", "-r", "mine.py:right", "-n", "4", "--steps", "3"]
    calls = {
        "sample": [["sample", *common, "-o", out]],
        "search": [["search", *common, "--strategy", "random:candidates=2", "-o", out]],
        "run": [["sample", *common, "-o", f"{out}1", "--title", "One"], ["run", f"{out}1/run.toml", "-o", out]],
        "report": [["sample", *common, "-o", out, "--no-report"], ["report", out]],
    }
    for call in calls[command]:
        answer = CliRunner().invoke(app, [*call, *(["--title", "A title"] if call is calls[command][-1] else [])])
        assert answer.exit_code == 0, answer.output
    assert "<h1>A title</h1>" in Path(out, "report.html").read_text(encoding="utf-8")


def test_the_summary_says_which_way_each_column_is_good(own, tmp_path):
    found = (
        config(own, "right", "Far:0.5", "clipped:0", "nothing:-1", holdout=f"{own}:Far").run(tmp_path / "out").summary
    )
    assert found["better"] == {
        "mean": "higher", "top 10%": "higher", "right": "higher", "distance": "lower", "nothing": "lower",
        "holdout mean": "lower", "diversity": "higher", "network rows": "lower", "reward calls": "lower",
        "seconds": "lower",
    }  # fmt: skip
    assert "held-out reward, less is better" in write(tmp_path / "out").read_text(encoding="utf-8")
    up = config(own, "right", holdout=f"{own}:right").run(tmp_path / "up").summary
    assert up["better"]["holdout mean"] == "higher"
    assert "less is better" not in write(tmp_path / "up").read_text(encoding="utf-8")


def test_a_reward_that_is_the_same_for_all_samples_is_flagged(own, tmp_path):
    found = config(own, "right", "nothing:0.5", "clipped:0").run(tmp_path / "out", report=True)
    assert found.summary["constant"] == ["nothing", "clipped"]
    hints = [w for w in found.summary["warnings"] if "for all" in w]
    count = 12 * len(found.summary["rows"])
    assert count >= 24 and hints == [
        f"the reward 'nothing' is 0.25 for all {count} samples, unguided ones included, so it steers nothing"
    ]
    page = parsed((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert hints[0] in page.text and [a.get("class") for _, a in page.elements].count("tag") == 2
    flagged = [a for tag, a in page.elements if tag == "th" and (a.get("title") or "").startswith("constant")]
    assert len(flagged) == 2
    alone = config(own, "right", "nothing", compare=False).run(None).summary
    assert [w for w in alone["warnings"] if "--compare shows" in w and "all 12 samples" in w]


def test_a_reward_that_guidance_brought_to_one_value_is_not_called_constant():
    from guidekit.report.table import constant

    same, other, lost = torch.ones(4), torch.tensor([1.0, 0.0]), torch.tensor([math.nan, 1.0])
    assert constant([{"a": same}]) == {"a": 1.0} and constant([{"a": same}, {"a": other}]) == {}
    assert constant([{"a": lost}]) == {} and constant([{"a": lost}, {"a": same}]) == {"a": 1.0}


def test_a_card_says_nothing_twice(own, molecular, tmp_path):
    config(own, "right", compare=False).run(tmp_path / "out", report=True)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count('<li class="card">') == 12 and '<dl class="props">' not in page  # the reward stands above
    assert ">right</th>" in page  # it is in the table, as in samples.csv
    names = re.findall(r'<dt title="(.*?)"', (molecular / "report.html").read_text(encoding="utf-8"))
    assert set(names) == {"QED", "SA", "logP", "MW", "weight of it"}


def searched(own: Path, out: Path, **options: Any) -> Path:
    given = {"guides": [], "search": "zero_order:neighbours=3,rounds=4", "n": 3} | options
    config(own, "right", **given).run(out, report=True)
    return out / "report.html"


def test_a_search_shows_the_best_reward_against_its_cost_and_no_effective_sample_size(own, tmp_path):
    page = searched(own, tmp_path / "out").read_text(encoding="utf-8")
    result = gk.load_result(tmp_path / "out" / "result")
    rounds = result.config["search"]["rounds"]
    assert len(rounds) == 4
    drawn = re.findall(r'<svg[^>]*aria-label="Best reward so far against ([a-z ]+)\..*?</svg>', page)
    assert drawn == ["reward calls", "network rows"]
    for key, label in (("reward_calls", "reward calls"), ("network_rows", "network rows")):
        svg = re.search(rf"<svg[^>]*so far against {label}.*?</svg>", page)
        assert svg
        path = re.search(r'<g class="c0"><path class="line" d="([^"]*)"', svg[0])
        assert path
        (x1, y1), (x2, y2), *_, (x4, y4) = points(path[1])
        costs, best = [row[key] for row in rounds], [row["best_reward"][0] for row in rounds]
        assert (x2 - x1) / (x4 - x1) == pytest.approx((costs[1] - costs[0]) / (costs[3] - costs[0]), abs=0.01)
        assert (y1 - y2) / (y1 - y4) == pytest.approx((best[1] - best[0]) / (best[3] - best[0]), abs=0.02) and y4 < y1
        assert f"mean of samples, round 4 of 4: {number(float(costs[3]))}, {number(best[3])}" in svg[0]
        base = gk.load_result(tmp_path / "out" / "base")
        at = f"mean of unguided: {number(float(getattr(base.cost, key)))}, {number(float(base.rewards.mean()))}"
        assert at in svg[0] and "mean of best of " in svg[0]
    text = parsed(page).text
    assert "ffective" not in text and "starting particles" not in text and 'id="lineage"' not in page
    assert "rounds413 candidates for each sample" in text and "found by zero_order:neighbours=3,rounds=4" in text
    assert re.findall(r'<th scope="row">(.*?)</th>', page)[::2] == ["unguided", "search"]


def test_a_search_for_several_conditions_has_a_line_for_each(tmp_path):
    model = sequences(6)
    found = gk.search.random(
        model, 2, lambda s: [v.count("G") for v in s], rounds=3, candidates=2, steps=2, cond=[0, 1]
    )
    page = write_result(found, tmp_path).read_text(encoding="utf-8")
    svg = re.search(r"<svg[^>]*so far against reward calls.*?</svg>", page)
    assert svg and re.findall(r'<g class="c(\d)"><path class="line" d="M', svg[0])[:2] == ["0", "2"]
    for name, rewards in zip("01", found.rewards.view(2, 2).mean(1).tolist(), strict=True):
        assert f"{name}, round 3 of 3: {number(float(found.rounds[2]['reward_calls']))}, {number(rewards)}" in svg[0]


# notebooks -----------------------------------------------------------------------------------------------------------


def test_a_notebook_shows_the_weighted_mean_and_the_best_samples(molecular):
    result = gk.load_result(molecular / "result")
    html = result._repr_html_()
    known = result.rewards.isfinite()
    mean = float((result.weights * result.rewards)[known].sum() / result.weights[known].sum())
    text = parsed(html).text
    assert f"mean reward, weighted{number(mean)}" in text and f"{result.cost.network_rows:,} network rows" in text
    every = result.best(70)
    score = dict(zip(every.samples, every.rewards.tolist(), strict=True))  # best first; equals in any order
    shown = re.findall(r"<code[^>]*>([^<]*)</code>", html)
    assert [score[s] for s in shown] == list(score.values())[:8] and len(set(shown)) == 8
    assert re.findall(r'<code[^>]*title="([^"]*)"', html) == shown and "text-overflow:ellipsis" in html
    assert html.count("<svg") == sum(molecules.draw(s) is not None for s in shown)
    assert "<script" not in html


def test_a_notebook_is_safe_and_shows_images_and_numbers():
    evil = gk.sample(bits(lambda x: [HOSTILE] * len(x)), 3, steps=2, reward=lambda s: [1.0] * len(s))
    page = parsed(evil._repr_html_())
    assert not {"script", "img"} & {tag for tag, _ in page.elements} and HOSTILE[:100] in page.text
    grey = gk.sample(blobs(), 3, steps=2)
    assert parsed(grey._repr_html_()).text.count("reward") == 1 and grey._repr_html_().count("<img") == 3
    mixture = gk.sample(gk.analytic.GaussianMixture([1.0], [0.0], [1.0]), 3, steps=2)
    assert number(float(mixture.x[1, 0])) in mixture._repr_html_()


def test_a_population_says_how_it_stands():
    seen = []
    gk.sample(
        bits(), 20, steps=3, guides=[gk.FKSteering(length, 2.0, ess=0.0)], callbacks=[lambda p, s: seen.append(p)]
    )
    text = parsed(seen[1]._repr_html_()).text
    assert "20 of shape (4,)" in text and f"{number(float(seen[1].ess[0]))} of 20" in text
    assert f"mean reward of the clean estimates{number(float(seen[1].rewards.nanmean()))}" in text


def test_a_plot_is_of_weighted_rewards_and_the_trace(molecular):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    result = gk.load_result(molecular / "result")
    left, right = result.plot()
    patches = left.patches
    assert sum(p.get_height() for p in patches) == pytest.approx(1)
    top = float(result.rewards.nan_to_num(-1).max())
    share = float(
        result.weights[result.rewards >= patches[-1].get_x()].sum() / result.weights[result.rewards.isfinite()].sum()
    )
    assert patches[-1].get_x() < top and patches[-1].get_height() == pytest.approx(share)
    assert list(right.lines[0].get_ydata()) == result.trace["ess"][:, 0].tolist()
    assert list(right.lines[0].get_xdata()) == [1, 2, 3, 4]
    pyplot.close("all")


def test_what_a_notebook_shows_of_groups():
    mixture = gk.analytic.GaussianMixture([1.0], [0.0], [1.0])
    result = gk.sample(mixture, 4, steps=2, cond=[None, None], reward=lambda x: x[:, 0])
    assert "4, 4 of 4" in notebook.result_html(result)


# in a browser --------------------------------------------------------------------------------------------------------

_START = "import os,sys;os.dup2(int(sys.argv[1]),30);os.dup2(int(sys.argv[2]),40);os.dup2(30,3);os.dup2(40,4);os.execv(sys.argv[3],sys.argv[3:])"  # fmt: skip # noqa: E501
_FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]


def program() -> str | None:
    names = [os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome"]
    return next((path for name in names if name and (path := shutil.which(name))), None)


class Browser:
    """Chromium without a window, driven over a pipe by the DevTools protocol."""

    def __init__(self, path: str, profile: Path):
        theirs, self.to = os.pipe()
        self.back, ours = os.pipe()
        command = [sys.executable, "-c", _START, str(theirs), str(ours), path, *_FLAGS, f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(
            command, pass_fds=(theirs, ours), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs), os.close(ours)
        self.buffer, self.count, self.events = b"", 0, []
        self.session: str | None = None
        self("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
        page = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != message["id"]:
            self.events.append(answer)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            part = os.read(self.back, 1 << 20)
            assert part, "the browser has ended"
            self.buffer += part
        text, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(text)

    def open(self, file: Path, width: int = 1280, theme: str = "light") -> None:
        self("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        features = [
            {"name": "prefers-color-scheme", "value": theme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self("Emulation.setEmulatedMedia", media="", features=features)
        self.events.clear()
        self("Page.navigate", url=file.as_uri())
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self._read())

    def run(self, code: str) -> Any:
        answer = self("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True, userGesture=True)
        assert "exceptionDetails" not in answer, (code, answer)
        return answer["result"].get("value")

    def until(self, code: str) -> None:
        """Wait for what the page does a little later."""
        end = time.monotonic() + 10
        while not self.run(code):
            assert time.monotonic() < end, code
            time.sleep(0.02)

    def press(self, key: str) -> None:
        codes = {"ArrowDown": 40, "ArrowUp": 38, "Tab": 9, "Escape": 27, "ArrowRight": 39, "Enter": 13}
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key], **text)

    def trouble(self) -> list[Any]:
        """Console errors, exceptions, and requests for anything but the page and what is in it."""
        bad = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Page.javascriptDialogOpening")
        asked = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        urls = [u for u in asked if not u.startswith("data:")]
        return [e["params"] for e in self.events if e.get("method") in bad] + urls[1:]

    def close(self) -> None:
        self.session = None
        self("Browser.close")
        self.process.wait(20)
        os.close(self.to), os.close(self.back)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    path = program()
    if path is None:
        pytest.skip("no Chromium: install chromium, or say in CHROMIUM where it is")
    made = Browser(path, tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_page_opens_without_errors_requests_or_sideways_scrolling(browser, molecular, width, theme):
    browser.open(molecular / "report.html", width, theme)
    assert browser.run("document.documentElement.scrollWidth") <= width
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[theme]
    assert browser.trouble() == []


_CONTRAST = """(() => {
  const rgba = (c) => { const v = c.match(/[\\d.]+/g).map(Number); return v.length < 4 ? [...v, 1] : v; };
  const shine = (c) => c.slice(0, 3).map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c; } return [255, 255, 255, 1]; };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || !e.checkVisibility() || e.closest("svg.molecule, defs")) continue;
    const style = getComputedStyle(e), ink = rgba(e instanceof SVGElement ? style.fill : style.color), paper = behind(e);
    const mixed = ink.slice(0, 3).map((v, i) => v * Number(style.opacity) + paper[i] * (1 - style.opacity));
    const [a, b] = [shine(mixed), shine(paper)].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) found.push([e.tagName, e.className.baseVal ?? e.className, e.textContent.slice(0, 20), (a + .05) / (b + .05)]);
  }
  return found.slice(0, 5);
})()"""  # noqa: E501


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_has_a_contrast_of_4_5_at_least(browser, molecular, theme):
    browser.open(molecular / "report.html", 1280, theme)
    assert browser.run(_CONTRAST) == []


def test_the_switch_of_colours_works_and_is_remembered(browser, molecular):
    browser.open(molecular / "report.html")
    browser.run("document.querySelector('#theme').click()")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    browser.open(molecular / "report.html")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    browser.run("document.querySelector('#theme').click(); localStorage.clear()")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_pointing_at_a_survivor_or_arrow_keys_show_where_it_came_from(browser, molecular):
    browser.open(molecular / "report.html")
    lineage = json.loads((molecular / "lineage.json").read_text())
    shown = "[...document.querySelectorAll('#way code')].map(e => e.textContent)"
    name = "document.querySelector('.survivor.on').dataset.name"

    def expected() -> list[str]:
        row = re.match(r"row (\d+),", browser.run(name))
        assert row
        return [lineage["nodes"][i][k]["text"] for i, k in enumerate(lineage["rows"][row[1]])]

    first = browser.run(name)
    assert browser.run(shown) == expected()
    place = browser.run(
        "(() => { const e = document.querySelectorAll('.survivor .end')[5]; e.scrollIntoView({block: 'center'});"
        "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
    )
    browser("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
    assert browser.run("[...document.querySelectorAll('.survivor')].findIndex(e => e.matches('.on'))") == 5
    assert browser.run(name) != first and browser.run(shown) == expected()
    browser.run("document.querySelectorAll('.survivor')[5].focus()")
    browser.press("ArrowDown")
    assert browser.run("[...document.querySelectorAll('.survivor')].indexOf(document.activeElement)") == 6
    assert browser.run(shown) == expected()
    assert browser.run("document.querySelectorAll('.survivor[tabindex=\"0\"]').length") == 1
    assert browser.run("document.querySelector('.lit').getAttribute('d') === "
                       "document.querySelectorAll('.survivor .line')[6].getAttribute('d')")  # fmt: skip
    browser.run(
        "{ const who = document.querySelector('#who'); who.selectedIndex = 40; who.dispatchEvent(new Event('change')) }"
    )
    assert browser.run(shown) == expected()
    assert browser.run("document.querySelector('#who').selectedOptions[0].textContent === " + name)


def test_the_table_sorts_by_number_and_back_with_unknown_ones_last(browser, tmp_path):
    result = gk.sample(bits(), 70, steps=2, reward=length)
    browser.open(write_result(result, tmp_path / "out"))
    rewards = result.rewards
    known = sorted(rewards[rewards.isfinite()].tolist())
    column = "[...document.querySelectorAll('.sortable tbody tr')].map(r => Number(r.cells[2].dataset.v))"
    click = "document.querySelectorAll('.sortable th button')[2].click()"
    lost = int(rewards.isnan().sum())
    assert lost > 0
    for order, name in ((known[::-1], "descending"), (known, "ascending")):
        browser.run(click)
        values = browser.run(f"{column}.map(v => Number.isNaN(v) ? null : v)")
        assert values == order + [None] * lost
        assert browser.run("document.querySelectorAll('.sortable th')[2].getAttribute('aria-sort')") == name


def test_a_copy_button_copies_the_sample(browser, molecular):
    browser.open(molecular / "report.html")
    browser("Page.bringToFront")
    wanted = browser.run("document.querySelectorAll('.card .copy')[1].dataset.copy")
    assert wanted in POOL
    browser.run("document.querySelectorAll('.card .copy')[1].click()")
    browser.until("document.querySelector('#said').textContent === 'copied'")
    assert browser.run("navigator.clipboard.readText()") == wanted


_BROKEN = """(() => {
  const found = [];
  const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (words.nextNode()) {
    const node = words.currentNode, box = node.parentElement;
    if (!box.closest(".props, .line1, .tiles, .compared, .facts dt, .at, .sortable th, button") || !box.checkVisibility()) continue;
    for (const word of node.textContent.matchAll(/\\S+/g)) {
      const range = document.createRange();
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      const tops = new Set([...range.getClientRects()].map(r => Math.round(r.top)));
      if (tops.size > 1) found.push(word[0]);
    }
  }
  return found;
})()"""  # noqa: E501
_LINES = """[...document.querySelectorAll(".props dt, .props dd")].filter(e => e.getBoundingClientRect().height > 26
  || (e.tagName === "DD" && e.scrollWidth > e.clientWidth)).map(e => e.textContent)"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Images with long names of rewards, long numbers, and as files."""
    out = tmp_path_factory.mktemp("pictures")
    result = gk.sample(blobs(), 5, steps=2, reward=lambda x: x.mean((1, 2, 3)) * -1e-4, holdout=lambda x: x[:, 0, 0, 0])
    write_result(result, out)
    names = ["fashion-classifier ankle-boot", "sharpness", "Frechet distance of 8 x 8 pixels", "note"]
    with open(out / "samples.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [["row", *names], *([i, -0.000248, 12345678.0, -1.2e-05, "a remark"] for i in range(5))]
        )
    write(out)
    return out


@pytest.mark.parametrize("width", [420, 1300])
def test_no_label_and_no_number_breaks_inside(browser, molecular, pictures, wide, width):
    for out in (molecular, pictures, wide):
        browser.open(out / "report.html", width)
        assert browser.run(_BROKEN) == []
        assert browser.run(_LINES) == []
        assert browser.run("document.querySelectorAll('.card').length") > 3
    browser.open(molecular / "report.html", width)
    browser.run(
        "document.querySelector('.props dd').style.cssText = 'white-space: normal; word-break: break-all; width: 1ch'"
    )
    assert browser.run(_BROKEN) != [] and browser.run(_LINES) != []  # they do see it


_LONG = "CC(C)Cc1ccc(cc1)C(C)C(=O)NCCOCCOCCNC(=O)c1cc(Cl)c(OCc2ccccn2)c(OC)c1CCCCCCCCCCCCCCCCCCCCCCCCCCCCN"


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """Molecules, one of them long, beside others in a table of many columns."""
    out = tmp_path_factory.mktemp("wide")
    model = bits(lambda x: [[_LONG, *POOL[:7]][v % 8] for v in (x.clamp(max=1) * 2 ** torch.arange(4)).sum(1).tolist()])
    result = gk.sample(model, 30, steps=3, reward=length)
    write_result(result, out, base=result, best_of_n=result)
    generator, columns = torch.Generator().manual_seed(3), ["mean", "SA", "validity", "seconds", *"abcdefghij"]
    rows = [
        {"name": name, **dict(zip(columns, torch.rand(14, generator=generator).tolist(), strict=True))}
        for name in ("unguided", "best of N", "steered")
    ]
    summary = json.loads((out / "summary.json").read_text())
    better = {"SA": "lower", "a": "higher", "b": "lower"}
    summary |= {"columns": columns, "rows": rows, "better": better, "components": ["SA", *"abcdefghij"], "best_of": 3}
    (out / "summary.json").write_text(json.dumps(summary))
    write(out)
    return out


def test_what_is_bold_is_the_best_value_of_each_column(browser, wide):
    browser.open(wide / "report.html", 1300)
    cells = browser.run(
        "[...document.querySelectorAll('.compared tbody tr')].map(r => [...r.querySelectorAll('td')]"
        ".map(c => [Number(c.dataset.v), Number(getComputedStyle(c).fontWeight) >= 600]))"
    )
    heads = browser.run("[...document.querySelectorAll('.compared thead th')].slice(1).map(h => [h.innerText.trim(), "
                        "getComputedStyle(h.firstElementChild, '::after').content.at(-2)])")  # fmt: skip
    assert len(cells) == 3 and len(heads) == 14
    where = []
    for (name, arrow), column in zip(heads, zip(*cells, strict=True), strict=True):
        values, bold = [v for v, _ in column], [i for i, (_, b) in enumerate(column) if b]
        best = {"↑": max, "↓": min}.get(arrow)
        assert bold == ([values.index(best(values))] if best else []), name
        assert bool(best) == (name in ("mean", "SA", "validity", "seconds", "a", "b"))
        where += bold
    assert len(set(where)) > 1  # not always the same row
    names = "[...document.querySelectorAll('.compared tbody th')].map(h => Number(getComputedStyle(h).fontWeight))"
    assert len(set(browser.run(names))) == 1


def test_a_wide_table_scrolls_in_its_own_box_and_says_so(browser, wide):
    browser.open(wide / "report.html", 420)
    box = "document.querySelector('.compared').parentElement"
    hint = f"{box}.parentElement.querySelector('.hint').checkVisibility()"
    assert browser.run("document.documentElement.scrollWidth") <= 420
    assert browser.run(f"{box}.scrollWidth > {box}.clientWidth && getComputedStyle({box}).overflowX === 'auto'")
    assert browser.run(hint) and "sideways" in browser.run(f"{box}.parentElement.querySelector('.hint').innerText")
    fade = f"getComputedStyle({box}.parentElement, '::after').content"
    assert browser.run(fade) == '""'
    name = f"{box}.querySelector('tbody th').getBoundingClientRect().left - {box}.getBoundingClientRect().left"
    last = f"{box}.querySelector('tbody td:last-child').getBoundingClientRect()"
    edge = f"{box}.getBoundingClientRect().right"
    assert browser.run(f"{last}.right > {edge}")
    browser.run(f"{box}.scrollLeft = 9999")
    browser.until(f"{fade} === 'none'")
    assert browser.run(f"{last}.right <= {edge} + 1") and browser.run(name) == 0  # the names stay in sight
    assert browser.run("scrollX") == 0
    tables = "[...document.querySelectorAll('table')].every(t => t.closest('.scroll').clientWidth <= innerWidth)"
    assert browser.run(tables)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    """A run for six long conditions that begin alike."""
    out = tmp_path_factory.mktemp("prompts")
    base = gk.analytic.GaussianMixture([0.5, 0.5], [-2.0, 2.0], [0.5, 0.5], labels=[0, 1])
    guides, first = [gk.FKSteering(lambda x: x[:, 0], alpha=1.0)], lambda x: x[:, 0]
    result = gk.sample(base, 3, steps=3, cond=[0, 1] * 3, guides=guides, reward=first, holdout=first)
    words = ("a horse", "a cat", "a pony", "an ox", "nothing at all", "a sheep")
    result.config["cond"] = [f"a photograph of an astronaut riding {w} on the moon at night, in detail" for w in words]
    write_result(result, out)
    return out


@pytest.mark.parametrize("width", [420, 1300])
def test_long_names_of_rows_leave_room_for_the_numbers_and_stay_readable(browser, prompts, width):
    browser.open(prompts / "report.html", width)
    assert browser.run("document.documentElement.scrollWidth") <= width
    names = "[...document.querySelectorAll('[aria-label=conditions] tbody th')]"
    told = browser.run(f"{names}.map(h => [h.innerText, h.querySelector('span').title])")
    assert all(name == title and len(name) > 60 for name, title in told) and len({name for name, _ in told}) == 6
    box = "document.querySelector('[aria-label=conditions]')"
    assert browser.run(f"{names}.every(h => h.offsetWidth <= {box}.clientWidth / 2)")
    browser.run(f"{box}.scrollLeft = 9999")
    last = f"{box}.querySelector('tbody td:last-child').getBoundingClientRect()"
    head = f"{names}[0].getBoundingClientRect()"
    assert browser.run(f"{last}.right <= {box}.getBoundingClientRect().right + 1 && {last}.left >= {head}.right - 1")
    assert browser.run(f"{head}.left === {box}.getBoundingClientRect().left")
    heights = browser.run("[...document.querySelectorAll('tbody tr')].map(r => r.getBoundingClientRect().height)")
    assert heights and all(float(h).is_integer() for h in heights)  # else a name that stays covers the line above it


_LEGENDS = """[...document.querySelectorAll("svg.chart")].filter(s => s.querySelector(".legend")).map(s => {
  const whole = s.getBoundingClientRect();
  const boxes = [...s.querySelectorAll(".legend text")].map(t => t.getBoundingClientRect());
  const meets = (a, b) => a.left < b.right && b.left < a.right && a.top + 3 < b.bottom && b.top + 3 < a.bottom;
  return [boxes.length, boxes.some((a, i) => boxes.slice(i + 1).some(b => meets(a, b))),
    boxes.every(b => b.left >= whole.left && b.right <= whole.right + 1 && b.top >= whole.top - 2)];
})"""


@pytest.mark.parametrize("width", [420, 1300])
def test_a_legend_stays_in_its_picture_and_its_names_apart(browser, prompts, molecular, wide, width):
    for out, most in ((prompts, 6), (molecular, 2), (wide, 3)):
        browser.open(out / "report.html", width)
        found = browser.run(_LEGENDS)
        assert max(count for count, _, _ in found) == most
        assert all(not meets and inside for _, meets, inside in found)
    browser.open(prompts / "report.html", width)
    names = browser.run("[...document.querySelector('.legend').querySelectorAll('text')].map(t => t.textContent)")
    titles = browser.run("[...document.querySelector('.legend').querySelectorAll('title')].map(t => t.textContent)")
    assert (
        len(set(names)) == 6 and "cat" in names[1] and titles[1].startswith("a photograph of an astronaut riding a cat")
    )
    browser.run(
        "for (const g of document.querySelectorAll('.legend > g')) g.setAttribute('transform', 'translate(400)')"
    )
    assert not all(inside for _, _, inside in browser.run(_LEGENDS))  # it does see it


def test_a_legend_breaks_into_lines_above_the_usual_one():
    one, above = legend([("c0", "steered"), ("c1", "unguided")])
    assert above == 0 and re.findall(r"M\d+ (\d+)h18", one) == ["12", "12"]
    two, above = legend([(f"c{i}", "x" * 20) for i in range(3)])
    assert above == LINE and re.findall(r"M(\d+) (-?\d+)h18", two) == [("50", "-6"), ("254", "-6"), ("50", "12")]
    assert 'viewBox="0 -18 480 308"' in picture("", "", names=[(f"c{i}", "x" * 20) for i in range(3)])
    assert shortened(["one", "two"]) == ["one", "two"]
    assert shortened(["a cat", "a cat that sits on a very long mat"]) == ["…cat", "…cat that sits on a very …"]
    assert shortened(["x" * 40]) == ["x" * 25 + "…"]


def test_a_condition_of_many_words_ends_in_an_ellipsis():
    result = gk.sample(sequences(), 2, steps=1, cond=[1, 0])
    result.config["cond"] = ["word " * 300, "short"]
    first, second = samples.conditions(result)
    assert first.endswith("…") and len(first) == 601 and second == "short"


def test_a_table_that_fits_has_no_hint(browser, molecular):
    browser.open(molecular / "report.html", 1300)
    assert browser.run("[...document.querySelectorAll('.hint')].filter(h => h.checkVisibility()).length") == 0
    browser("Emulation.setDeviceMetricsOverride", width=420, height=900, deviceScaleFactor=1, mobile=False)
    browser.until("[...document.querySelectorAll('.hint')].some(h => h.checkVisibility())")


@pytest.mark.parametrize("width", [420, 1300])
def test_long_samples_end_in_an_ellipsis_and_are_whole_on_hover(browser, wide, width):
    browser.open(wide / "report.html", width)
    cut = browser.run(
        "[...document.querySelectorAll('.card code')].map(c => [c.title, c.scrollHeight > c.clientHeight + 1, "
        "getComputedStyle(c).webkitLineClamp])"
    )
    assert _LONG in [title for title, _, _ in cut] and len(cut) == 8
    assert all(hidden == (title == _LONG) and lines == "2" for title, hidden, lines in cut)
    cells = browser.run(
        "[...document.querySelectorAll('.sortable .clip')].map(c => [c.title, c.scrollWidth > c.clientWidth, "
        "getComputedStyle(c).textOverflow, getComputedStyle(c).whiteSpace])"
    )
    assert cells and all(cell == [_LONG, True, "ellipsis", "nowrap"] for cell in cells)


def test_a_cell_of_the_table_is_copied_whole_and_without_the_clipboard_too(browser, wide):
    browser.open(wide / "report.html")
    browser("Page.bringToFront")
    click = "document.querySelector('.sortable .copy').click()"
    said = "document.querySelector('#said').textContent"
    for setup in ("0", "Object.defineProperty(navigator, 'clipboard', {value: undefined})"):
        browser.run("window.kept = window.kept ?? navigator.clipboard; kept.writeText('before')")
        browser.run(f"document.querySelector('#said').textContent = ''; {setup}")
        browser.run(click)
        browser.until(f"{said} === 'copied'")
        assert browser.run("kept.readText()") == _LONG
    browser.run("document.execCommand = () => false")
    browser.run(click)
    browser.until(f"{said}.startsWith('selected')")
    assert browser.run("getSelection().toString()") == _LONG
    whole = "(c => c.scrollWidth <= c.clientWidth)(document.querySelector('.sortable .clip'))"
    assert browser.run(whole)


def test_an_estimate_of_the_lineage_is_copied(browser, molecular):
    browser.open(molecular / "report.html")
    browser("Page.bringToFront")
    wanted = browser.run("document.querySelector('#way code').textContent")
    browser.run("document.querySelector('#way .copy').click()")
    browser.until("document.querySelector('#said').textContent === 'copied'")
    assert browser.run("navigator.clipboard.readText()") == wanted != ""


def test_images_are_enlarged_in_a_dialog_with_keys(browser, tmp_path):
    model = blobs()
    result = gk.sample(model, 3, steps=2, reward=lambda x: x.mean((1, 2, 3)))
    page = write_result(result, tmp_path / "out")
    browser.open(page)
    row = "document.querySelector('dialog p').textContent"
    order = [int(i) for i in result.rewards.argsort(descending=True)]
    browser.run("document.querySelector('.zoom').focus()")
    browser.press("Enter")
    assert browser.run("document.querySelector('dialog').open") and browser.run(row).endswith(f"row {order[0]}")
    browser.press("ArrowRight")
    assert browser.run(row).endswith(f"row {order[1]}")
    assert browser.run("document.querySelector('dialog img').src === document.querySelectorAll('.zoom img')[1].src")
    browser.press("Escape")
    assert not browser.run("document.querySelector('dialog').open")
    browser.until("document.activeElement === document.querySelectorAll('.zoom')[1]")
    assert browser.trouble() == []


def test_the_menu_leads_to_all_sections_and_print_shows_them(browser, molecular):
    browser.open(molecular / "report.html")
    missing = "[...document.querySelectorAll('nav a')].filter(a => !document.querySelector(a.hash)).length"
    assert browser.run(missing) == 0 and browser.run("document.querySelectorAll('nav a').length") == 7
    browser("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert browser.run("[...document.querySelectorAll('section')].every(s => s.offsetHeight > 100)")
    assert browser.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    browser("Emulation.setDeviceMetricsOverride", width=720, height=900, deviceScaleFactor=1, mobile=False)
    assert browser.run(wide) == 0
    pdf = base64.b64decode(browser("Page.printToPDF")["data"])
    assert pdf[:4] == b"%PDF" and pdf.count(b"/Type /Page\n") > 2


def test_without_scripts_it_is_a_plain_document(browser, molecular):
    browser("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(molecular / "report.html")
        assert browser.run("document.querySelector('#panel').hidden && document.querySelector('#theme').hidden")
        assert browser.run("document.querySelectorAll('.survivor').length") == 64
        assert browser.run("document.querySelectorAll('.card').length") > 5
    finally:
        browser("Emulation.setScriptExecutionDisabled", value=False)


def test_hostile_text_does_nothing_in_a_browser(browser, tmp_path):
    page = hostile(tmp_path / "out") / "report.html"
    browser.open(page, 360)
    browser.run("document.querySelectorAll('.survivor').forEach(s => s.dispatchEvent(new Event('pointerenter')))")
    assert browser.run("document.title") == HOSTILE and browser.trouble() == []
    assert browser.run("document.documentElement.scrollWidth") <= 360
