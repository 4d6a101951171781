"""compare.py --figure decades: pretrained on letters, asked on something else; and --again."""

import doctest
import json
import re
import runpy
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import read_csv
from scripts import EXAMPLES, make_data
from test_compare import costless, digits, kept, run, run_in, table  # noqa: F401
from test_comparison_data import pillow, squares

from comparison import cells, data, decades, gains, glyphs, models, options
from comparison import letters as letters_module
from comparison.models import make_model, model_config

WORDS = ("--figure=decades", "--probes=mnist:0-3", "--sizes=nano", "--budget=24", "--lrs=0.003",
         "--batch-size=16", "--draws=2", "--counts=40,200", "--models=mixer,vit")  # fmt: skip
ALL = ("--tune", "--fine-steps=24", "--untrained")


@pytest.fixture(scope="module", autouse=True)
def few_letters():
    """And few of MNIST's digits: to evaluate takes longer than to train."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "HELD_LETTERS", 60)
        patch.setattr(data, "TEST_LETTERS", 120)
        patch.setattr(decades, "TUNE_RATES", (0.03,))
        patch.setattr(models, "step_seconds", lambda *all: 0.25 if all[-1] is True else 0.5)
        arrays = data.data.load_mnist()
        patch.setattr(data.data, "load_mnist", lambda: tuple(array[:600] for array in arrays))
        yield


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """Three fonts: bars, across or upright by the form's number, of three widths."""
    folder = tmp_path_factory.mktemp("letters")
    atlas = squares()
    for font in range(3):
        for form in range(len(glyphs.FORMS)):
            atlas[font, form, (form % 26) + 2 : (form % 26) + 4 + font] = 0
    glyphs.write(folder, atlas, [{"file": str(i), "part": p} for i, p in enumerate(glyphs.PARTS)])
    return folder


@pytest.fixture(scope="module")
def whole(letters, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    status, said, errors = run_in(folder, *WORDS, f"--data={letters}", *ALL)
    assert status == 0, errors
    return folder / "out", said


def test_the_whole_figure(whole):
    out, said = whole
    rows = read_csv(out / "decades.csv")
    assert len(rows) == 2 * 3 * 2 and len(read_csv(out / "gains.csv")) == 3 * 3
    assert len(read_csv(out / "differences.csv")) == 3 * 2
    for row in rows:
        cell = json.loads((out / "cells" / row["cell"]).read_bytes())
        assert float(row["probe"]) == cell["result"]["probe"]
        assert np.isclose(cell["result"]["probe"], np.mean(cell["result"]["probes"]))
        assert float(row["tuned mnist:0-3"]) == cell["result"]["tuned"][0]
        assert cell["spec"]["data"].endswith(f"-{row['letters']}-{row['seed']}")
        assert float(row["train_seconds"]) == 24 * 0.25 and row["edge"] == "0"
        assert [24, float(row["curve_8"])] == cell["result"]["curve"][-1]
    fresh = read_csv(out / "untrained.csv")
    assert [(r["model"], r["seed"]) for r in fresh] == [
        (model, str(seed)) for model in ("mixer", "vit") for seed in range(3)
    ]
    for row in fresh:
        cell = json.loads((out / "cells" / row["cell"]).read_bytes())["result"]
        assert float(row["probe mnist:0-3"]) == np.mean(cell["probes"]) == cell["probe"] > 0.25
    assert (out / "decades.png").exists() or "for a picture" in said
    assert "points a decade" in said and "crossing" in said


def test_what_it_says_is_made_again_from_its_rows(whole, tmp_path, capsys):
    """docs/comparison/draw.py: the same files and words as the command that trained."""
    out, said = whole
    (tmp_path / "some").mkdir()
    for name in ("decades", "untrained", "sweep"):
        shutil.copy(out / f"{name}.csv", tmp_path / "some")
    places = "<!-- some -->\n<!-- end -->\n<!-- rates -->\n<!-- end -->\n"
    (tmp_path / "page.md").write_text(places, encoding="utf-8")
    draw = runpy.run_path(str(EXAMPLES.parent / "docs" / "comparison" / "draw.py"))
    draw["main"](tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page.count("| few-shot, mnist:0-3 |") == 1 == page.count("| fine-tuned, mnist:0-3 |")
    assert "\n| Mixer - ViT |" in page and page.count(" | 0.003 |\n") == 2 * 2 + 1
    assert re.findall(r"\n\| (\w+) \| Mixer", page) == ["none", "40", "200", "40", "200"]
    tried = re.findall(r"\| \S+@(\d+):100 \| \*\*", page)
    assert sorted(tried) == ["200", "200", "40", "40"]
    for name in ("gains.csv", "differences.csv"):
        assert (tmp_path / "some" / name).read_bytes() == (out / name).read_bytes()
    lines = [line for line in capsys.readouterr().out.splitlines() if "decade" in line]
    assert set(lines[:-1]) <= set(said.splitlines()) and len(lines) == 9 + 1


def test_each_decade_has_its_own_gains():
    """Beside the gain over all of them: two counts at a time, and none of 0 letters."""
    draw = runpy.run_path(str(EXAMPLES.parent / "docs" / "comparison" / "draw.py"))
    rows = [{"model": "mixer", "size": "nano", "letters": n, "seed": seed, "probe": score / 100,
             "test": 0.5, "gap": 0.5, "lr": 1, "edge": 0, "curve_6": 0.5, "curve_8": 0.5}
            for n, score in ((100, 30), (1000, 45), (10_000, 50)) for seed in range(3)]  # fmt: skip
    fresh = [{"model": "mixer", "size": "nano", "letters": 0, "seed": s, "probe": 0.1}
             for s in range(3)]  # fmt: skip
    said = draw["scaling"](rows + fresh).splitlines()
    assert said[2].startswith("| none | Mixer nano | 10.0 ± 0.0 |")
    assert said[3].startswith("| 100 | Mixer nano | 30.0 ± 0.0 | 50.0 ± 0.0 | 50.0 ± 0.0 | +0.00 |")
    assert "| Mixer | +10.0 (+10.0 to +10.0) | +0.0 (+0.0 to +0.0), none found |" in "\n".join(said)
    assert said[-3] == "| few-shot accuracy, points | from 100 to 1,000 | from 1,000 to 10,000 |"
    assert said[-1] == "| Mixer | +15.0 (+15.0 to +15.0) | +5.0 (+5.0 to +5.0) |"


def test_the_page_tells_what_was_computed(tmp_path):
    """Its tables, and the files of gains, are those that draw.py makes; each row is its cell's."""
    there = EXAMPLES.parent / "docs" / "comparison"
    shutil.copytree(there, tmp_path / "comparison", ignore=shutil.ignore_patterns("cells"))
    shutil.copy(there.with_suffix(".md"), tmp_path)
    draw = runpy.run_path(str(there / "draw.py"))
    draw["main"](tmp_path / "comparison", tmp_path / "comparison.md")
    assert (tmp_path / "comparison.md").read_bytes() == there.with_suffix(".md").read_bytes()
    column = {"accuracy": "test", "held_accuracy": "held", "train_accuracy": "train"}
    for path in there.glob("*/*.csv"):
        assert (tmp_path / "comparison" / path.relative_to(there)).read_bytes() == path.read_bytes()
        for row in (row for row in read_csv(path) if "cell" in row):
            cell = json.loads(next(there.glob(f"*/cells/{row['cell']}")).read_bytes())
            assert cell["sum"] == cells.checksum(cell["spec"], cell["result"])
            told = {column.get(name, name): value for name, value in cell["result"].items()}
            assert all(float(row[name]) == told[name] for name in told.keys() & row.keys())


@pytest.mark.parametrize(
    "content, said",
    [(b"", "has no rows"), (b"a,b\n", "has no rows"), (b"a,b\n1,2\n3", "line 3: more or fewer"),
     (b"a,b\n1,2,3\n", "line 2: more or fewer"), (b"a\n\xff\n", "is no CSV file")],
)  # fmt: skip
def test_rows_that_are_damaged_are_refused(tmp_path, content, said):
    """By one line that names the file, before anything is written."""
    draw = runpy.run_path(str(EXAMPLES.parent / "docs" / "comparison" / "draw.py"))
    path = tmp_path / "scaling" / "decades.csv"
    path.parent.mkdir()
    path.write_bytes(content)
    (tmp_path / "page.md").write_text("<!-- scaling -->\n<!-- end -->\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=rf"decades\.csv.*{said}"):
        draw["main"](tmp_path, tmp_path / "page.md")
    assert [p.name for p in sorted(tmp_path.rglob("*.*"))] == ["page.md", "decades.csv"]


def test_going_on_draws_no_letters_for_what_is_there(whole, letters, tmp_path, monkeypatch):
    """For a cell that is missing its own, and no others."""
    shutil.copytree(whole[0], tmp_path / "out")
    rows = read_csv(whole[0] / "decades.csv")
    (tmp_path / "out" / "cells" / rows[-1]["cell"]).unlink()
    drawn, draw = [], data.draw_many
    monkeypatch.setattr(data, "draw_many", lambda *all: drawn.append(all[1:]) or draw(*all))
    status, _, errors = run_in(tmp_path, *WORDS, f"--data={letters}", *ALL)
    assert status == 0, errors
    assert [(seed, n) for seed, n in drawn if seed < 1000] == [(2, 200)]
    assert read_csv(tmp_path / "out" / "decades.csv") == rows


def test_who_does_not_wait_measures_no_times(whole, letters, tmp_path):
    shutil.copytree(whole[0], tmp_path / "out", ignore=shutil.ignore_patterns("*.csv", "costs-*"))
    status, said, errors = run_in(tmp_path, *WORDS, f"--data={letters}", *ALL, "--no-wait")
    assert status == 0 and said.splitlines()[-1].startswith("left "), errors
    assert not list(tmp_path.rglob("decades.csv")) + list(tmp_path.rglob("costs-*"))


def test_rates_are_chosen_with_other_letters(whole):
    for file in (whole[0] / "cells").glob("sweep-*"):
        assert json.loads(file.read_bytes())["spec"]["data"].endswith("-100")  # seeds are 0 to 2


@pytest.mark.slow
def test_a_cell_can_be_computed_again(whole, letters, tmp_path):
    shutil.copytree(whole[0], tmp_path / "out")
    name = read_csv(whole[0] / "decades.csv")[4]["cell"]
    words = (*WORDS, f"--data={letters}", "--tune", "--fine-steps=24")
    status, said, errors = run_in(tmp_path, *words, f"--again={name}")
    assert status == 0, errors
    told = [line for line in said.splitlines() if line.startswith("again")]
    assert len(told) > 8 and all(line.endswith("the same") for line in told)
    before = (tmp_path / "out" / "cells" / name).read_bytes()
    status, _, errors = run_in(tmp_path, *words, "--draws=1", f"--again={name}")
    assert status == 2 and "does not ask for that cell" in errors
    status, _, errors = run_in(tmp_path, *words, "--again=none.json")
    assert status == 2 and "no such cell" in errors
    assert (tmp_path / "out" / "cells" / name).read_bytes() == before


@pytest.mark.parametrize("family", ["mixer", "vit", "resnet"])
def test_a_probe_asks_for_what_the_body_makes(family):
    """Its features are those before the head; and a new head leaves the body as it is."""
    config = model_config(family, "nano", (28, 28, 1), 7)
    model = make_model(family, config, 0)
    model.parameters()
    spec = {"family": family, "config": config, "seed": 0, "precision": "float32"}
    model.head.weight.data = np.random.default_rng(0).standard_normal(model.head.weight.shape)
    images = np.random.default_rng(1).integers(0, 256, (5, 28, 28, 1)).astype(np.uint8)
    bare, other = (decades.with_head(model, spec, classes) for classes in (0, 4))
    model.eval(), bare.eval()
    features = bare(images).numpy()
    expected = features @ model.head.weight.numpy() + model.head.bias.numpy()
    np.testing.assert_allclose(model(images).numpy(), expected, rtol=1e-4, atol=1e-5)
    assert other(images).shape == (5, 4) and (other(images).numpy() == 0).all()


def test_a_model_that_diverged_is_asked_too():
    """All that it answers is wrong."""
    config = model_config("mixer", "nano", (32, 32, 3), 26)
    model = make_model("mixer", config, 0)
    model.parameters()
    model.norm.bias.data = model.norm.bias.data * np.float32(np.nan)
    images = np.zeros((24, 32, 32, 3), np.uint8)
    labels = np.arange(24) % 3
    probe = data.Data("x", images, labels, images, labels, images, labels, 3, "f")
    spec = {"family": "mixer", "config": config, "seed": 0, "precision": "float32",
            "shots": 2, "draws": 2}  # fmt: skip
    assert decades.few_shots(model, spec, probe) == [0, 0]
    model.norm.bias.data = np.full_like(model.norm.bias.data, 3e38)  # finite, but no sum of it is
    with np.errstate(over="ignore"):
        assert decades.few_shots(model, spec, probe) == [0, 0]
    model.norm.bias.data = model.norm.bias.data * np.float32(np.nan)
    assert decades.fine_tuned(model, spec, probe, None) == 0
    assert decades.evaluate(model, images, labels)[0] == 0


def test_what_can_not_be_is_said_before_training(letters, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        make_data(tmp_path / name / "same")
    for number in range(60):
        folder = tmp_path / "pictures" / f"class {number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pillow.new("RGB", (70, 64), (number, 0, 0)).save(folder / f"{number}.png")
    words = (*WORDS, f"--data={letters}")
    for more, said in (
        ("--shots=100", "--shots 100: mnist:0-3 has a class of 50 pictures to train on"),
        (f"--probes={tmp_path}/a/same,{tmp_path}/b/same", "--probes: two of same, same are called"),
        (f"--probes={tmp_path}/pictures", r"\(64, 64, 3\) does not go into .*--image-size 32"),
        (f"--probes={tmp_path}/pictures --image-size=32 --shots=100", "--shots 100: .*a class of"),
        ("--counts=40,40.5", "--counts must be whole numbers from 22 to 1e8, each of them once"),
        ("--counts=40.5,200", "--counts must be whole numbers from 22 to 1e8"),
        ("--counts=40,1e9", "--counts must be whole numbers from 22 to 1e8"),
        ("--again=../x.json", r"--again ../x.json: give the name of a .json file of OUT/cells"),
    ):
        status, _, errors = run_in(tmp_path, *words, *more.split(" "))
        assert status == 2 and re.search(said, errors), errors
    assert not list(tmp_path.rglob("*-mixer-*"))


def test_a_count_is_named_as_a_whole_number(letters, tmp_path, monkeypatch):
    """1e6 too, which Python's %g writes as 1e+06."""
    asked = []
    monkeypatch.setattr(
        decades, "load", lambda spec, *_, **__: asked.append(spec) or data.load("mnist:0-3")
    )
    monkeypatch.setattr(decades, "decade", lambda *_: {"size": "nano", "model": "mixer", "seed": 0,
                        "letters": 1, "steps": 1, "probe": 0.5, "test": 0.5,
                        "gap": 0.5})  # fmt: skip
    monkeypatch.setattr(decades, "differences_of", lambda *_: [])
    monkeypatch.setattr(decades, "draw", lambda *_: None)
    words = (*WORDS, "--data=there", "--models=mixer", "--counts=1234567", "--seeds=0,1,2")
    status, _, errors = run_in(tmp_path, *words)
    assert status == 0, errors  # one count has no gains, and none are written
    assert list(dict.fromkeys(asked[1:])) == [f"there@1234567:{seed}" for seed in (100, 0, 1, 2)]
    assert not (tmp_path / "out" / "gains.csv").exists()


# ---- the gain -----------------------------------------------------------------------------------


def rows_with(scores):
    """scores {model: {count: [one for each seed]}}"""
    return [{"model": model, "letters": count, "seed": seed, "probe": value}
            for model, by_count in scores.items() for count, values in by_count.items()
            for seed, value in enumerate(values)]  # fmt: skip


@given(st.floats(-0.2, 0.2), st.floats(0.3, 0.6), st.integers(2, 4))
def test_points_on_a_line_give_its_slope(slope, first, counts):
    scores = {c: [first + slope * i] * 3 for i, c in enumerate(10 ** np.arange(4, 4 + counts))}
    (gain,) = gains.gains_of(rows_with({"mixer": scores}), "probe")
    for key in ("gain", "low", "high"):
        assert np.isclose(gain[key], 100 * slope, atol=1e-9)


def test_differences_are_of_the_same_seeds():
    """What seeds share cancels: Mixer is always one point above, whatever the seed."""
    random = np.random.default_rng(0)
    vit = {count: list(random.uniform(0.3, 0.6, 5)) for count in (10**4, 10**6)}
    mixer = {count: [value + 0.01 for value in values] for count, values in vit.items()}
    rows = rows_with({"mixer": mixer, "vit": vit})
    of = {gain["model"]: gain for gain in gains.gains_of(rows, "probe")}
    assert np.isclose(of["mixer"]["gain"], of["vit"]["gain"])
    assert of["vit"]["high"] - of["vit"]["low"] > 2
    assert abs(of["mixer - vit"]["low"]) < 1e-9 > abs(of["mixer - vit"]["high"])


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Of 1,000 made-up experiments with five, three and five seeds: 95%, with a standard deviation
    of 0.7. The difference of two models whose gains are alike holds 0 as often."""
    random, held = np.random.default_rng(1), np.zeros(2)
    for _ in range(1000):
        scores = {name: {c: list(0.5 + 0.05 * i + 0.02 * random.standard_normal(n))
                         for i, (c, n) in enumerate(((10**4, 5), (10**5, 3), (10**6, 5)))}
                  for name in ("vit", "mixer")}  # fmt: skip
        _, gain, difference = gains.gains_of(rows_with(scores), "probe")
        held += gain["low"] <= 5 <= gain["high"], difference["low"] <= 0 <= difference["high"]
    assert (abs(held - 950) < 25).all()


def test_lines_cross_where_both_ends_are_clear():
    """By 4 points less and then by 4 more; what is within the noise does not count."""
    noise = np.array([-0.01, 0.0, 0.01])
    for apart, expected in (([-0.04, 0.04], [(1, 2)]), ([-0.04, 0.001, 0.04], [(1, 3)]),
                            ([-0.04, -0.04], []), ([-0.01, 0.01], []),
                            ([0.04, -0.04, 0.04], [(1, 2), (2, 3)])):  # fmt: skip
        counts = range(1, len(apart) + 1)
        mixer = {n: list(0.5 + x + noise) for n, x in zip(counts, apart, strict=True)}
        scores = {"vit": {n: [0.5] * 3 for n in counts}, "mixer": mixer}
        differences = gains.differences_of(rows_with(scores), "probe")
        assert {row["pair"] for row in differences} == {"mixer - vit"}
        assert gains.crossings(differences) == expected
        for row, x in zip(differences, apart, strict=True):
            assert np.isclose(row["difference"], 100 * x)
            assert np.isclose(row["high"] - x * 100, 4.303 / 3**0.5)


@pytest.mark.parametrize("module", [gains, letters_module, options])
def test_worked_examples(module):
    result = doctest.testmod(module)
    assert result.attempted >= 1 and not result.failed


def test_one_count_has_no_gain():
    assert gains.gains_of(rows_with({"mixer": {100: [0.5, 0.6]}}), "probe") == []


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (31, 20, 3)])
def test_grey_images_become_colour_ones(shape):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (3, *shape)).astype(np.uint8)
    labels = np.zeros(3, np.int64)
    source = data.Data("x", images, labels, images, labels, images, labels, 2, "f")
    found = data.in_colour(source)
    assert found.shape == (32, 32, 3) and (found is source) == (shape == (32, 32, 3))
    above, left = (32 - shape[0]) // 2, (32 - shape[1]) // 2
    inside = found.train_images[:, above : above + shape[0], left : left + shape[1]]
    assert (inside == images).all()
    assert found.test_images.sum() == images.sum() * (3 // shape[2])
    with pytest.raises(ValueError, match=r"does not go into \(16, 16, 3\)"):
        data.in_colour(source, 16)
