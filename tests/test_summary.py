"""`ussl data summary`: numbers against plain counting, a picture whose labels lie apart, a page that needs nothing."""

from __future__ import annotations

import csv
import json
import re
import statistics
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from ussl.cli import main
from ussl.data import bars, columns, contents, figure, manifest, ring, summary
from ussl.data.contents import Contents, Organ, Part, Spread

# the URFM paper's Table 1, a thousandth of it
TABLE_1 = {
    "thyroid": {"private": 351, "radimagenet": 93},
    "abdomen": {"private": 123},
    "kidney": {"radimagenet": 111},
    "breast": {"private": 56, "buv": 26, "ultrasoundcases": 2},
    "liver": {"radimagenet": 75},
    "gallbladder": {"radimagenet": 40},
    "pancreas": {"radimagenet": 22, "lepset": 8},
    "heart": {"camus": 19},
    "aorta": {"radimagenet": 18},
    "bladder": {"private": 15, "radimagenet": 1},
    "uterus": {"radimagenet": 15},
    "fetus": {"fetal_planes_db": 12},
    "spleen": {"radimagenet": 7},
    "bile duct": {"radimagenet": 4},
    "ovary": {"radimagenet": 4},
    "vein": {"radimagenet": 2},
}


def corpus():
    """Rows of Table 1's organs and sources, those of radimagenet without patients."""
    draw = np.random.default_rng(0)
    rows = []
    for organ, sources in TABLE_1.items():
        for source, images in sources.items():
            for i in range(images):
                known = {} if source == "radimagenet" else {"patient": f"{i // 4:03d}", "group_kind": "patient"}
                known |= {"group_kind": "video"} if source == "buv" else {}
                known |= {"mask_lesion": "m.png"} if i % 5 == 0 else {}
                rows.append(
                    {
                        "path": f"{source}/{organ}/{i}.png",
                        "source": source,
                        "organ": organ,
                        "label": ["benign", "malignant", None][i % 3],
                        "split": ["train", "train", "test", "val"][i % 4],
                        "width": int(draw.integers(100, 900)),
                        "height": int(draw.integers(100, 900)),
                        "channels": int(draw.choice([1, 3])),
                        "flag": [None, "burned_in", "blank;tiny"][i % 3],
                        **known,
                    }
                )
    return [rows[i] for i in draw.permutation(len(rows))]


@pytest.fixture(params=["corpus.parquet", "corpus.csv"])
def table(tmp_path, request):
    manifest.write(corpus(), tmp_path / request.param)
    return tmp_path / request.param


def made(organs):
    """Contents of organs by source, with nothing else known."""

    def part(images):
        return Part(images, {}, None, images, None, None, 0, 0)

    sources = Counter()
    for stack in organs.values():
        sources.update(stack)
    return Contents(
        manifest=Path("/a/corpus.csv"),
        organs=[Organ(name, sum(stack.values()), stack, {}) for name, stack in organs.items()],
        all=part(sources.total()),
        sources={name: part(images) for name, images in sources.most_common()},
        splits={},
        flags={},
        regions={},
        says_organ=True,
        says_label=False,
    )


def told(*words):
    return main(["data", "summary", *map(str, words)])


# numbers


def test_organs_and_sources_are_counted_as_in_table_1(table):
    found = contents.read(table)
    assert [organ.name for organ in found.organs][:4] == ["thyroid", "abdomen", "kidney", "breast"]
    assert {organ.name: organ.sources for organ in found.organs} == TABLE_1
    assert [organ.images for organ in found.organs] == sorted((organ.images for organ in found.organs), reverse=True)
    assert found.images == sum(sum(sources.values()) for sources in TABLE_1.values()) == len(corpus())
    assert [*found.sources][:2] == ["private", "radimagenet"]


def test_every_number_is_that_of_plain_counting(table):
    found, rows = contents.read(table), corpus()
    parts = {("source", name): part for name, part in found.sources.items()}
    parts |= {("split", name): part for name, part in found.splits.items()}
    for (column, name), part in parts.items():
        own = [row for row in rows if row[column] == name]
        patients = Counter((row["source"], row["patient"]) for row in own if row.get("patient"))
        kinds = Counter(
            kind
            for _, kind in {((row["source"], row["patient"]), row["group_kind"]) for row in own if row.get("patient")}
        )
        assert part.images == len(own)
        assert part.groups == kinds
        assert part.alone == sum(not row.get("patient") for row in own)
        each = [*patients.values()]
        assert part.of_each == (Spread(min(each), statistics.median(each), max(each)) if each else None)
        for size in ("width", "height"):
            values = [row[size] for row in own]
            assert getattr(part, size) == Spread(min(values), statistics.median(values), max(values))
        assert part.grey == sum(row["channels"] == 1 for row in own)
        assert part.grey + part.colour == len(own)
    for organ in found.organs:
        assert organ.labels == Counter(row["label"] or "not said" for row in rows if row["organ"] == organ.name)
    flags = Counter(word for row in rows for word in (row["flag"] or "").split(";") if word)
    assert found.flags == flags
    assert found.regions == {"mask_lesion": sum("mask_lesion" in row for row in rows)}
    assert [*found.splits] == ["train", "val", "test"]
    assert found.all.images == sum(part.images for part in found.splits.values())


def test_equal_patient_names_in_two_sources_are_two_patients(tmp_path):
    cells = [("a", "1"), ("b", "1"), ("a", "1"), ("a", "2")]
    rows = [{"path": f"{i}.png", "source": s, "patient": p} for i, (s, p) in enumerate(cells)]
    manifest.write(rows, tmp_path / "m.csv")
    found = contents.read(tmp_path / "m.csv")
    assert found.all.groups == {"patient": 3}
    assert found.all.of_each == Spread(1, 1, 2)


def test_a_group_that_is_an_image_is_no_patient(tmp_path):
    rows = [{"path": f"{i}.png", "patient": str(i), "group_kind": "image" if i else "case"} for i in range(3)]
    manifest.write(rows, tmp_path / "m.csv")
    found = contents.read(tmp_path / "m.csv").all
    assert (found.groups, found.alone) == ({"case": 1}, 2)


def test_what_a_manifest_does_not_say_is_said_to_be_so(tmp_path, capsys):
    (tmp_path / "m.csv").write_text("path\na.png\nb.png\n")
    assert told(tmp_path / "m.csv") == 0
    text = capsys.readouterr().out
    assert "not said        not said" in text
    assert "organ not said  1 source" in text
    assert "labels: not said\nsplits: not said\nflags: none\nregions: none" in text
    found = contents.read(tmp_path / "m.csv")
    assert [organ.name for organ in found.organs] == [*found.sources] == ["not said"]
    assert (found.splits, found.flags, found.all.width, found.all.of_each) == ({}, {}, None, None)
    for drawn in (summary.picture(found, "svg"), summary.render(found)):
        assert drawn


def test_rows_without_an_organ_come_last(tmp_path):
    rows = [{"path": f"{i}.png", "organ": "liver" if i < 2 else None} for i in range(9)]
    manifest.write(rows, tmp_path / "m.csv")
    assert [(organ.name, organ.images) for organ in contents.read(tmp_path / "m.csv").organs] == [
        ("liver", 2),
        ("not said", 7),
    ]


# columns


def test_columns_are_those_of_manifest_read_however_the_file_is_written(tmp_path):
    text = '﻿ path , organ,width,patient,label\n\n"a, 1.png", liver ,512,001,"two\nlines"\n,,,,\nb.png,,,2,\n'
    (tmp_path / "m.csv").write_text(text, encoding="utf-8")
    table = columns.read(tmp_path / "m.csv", ("organ", "width", "patient", "label"))
    rows = manifest.read(tmp_path / "m.csv")
    assert table.count == len(rows) == 2
    for name in ("organ", "patient", "label"):
        codes, names = table.codes(name)
        assert [names[i] if i >= 0 else None for i in codes] == [row[name] for row in rows]
    assert table.numbers("width")[0] == rows[0]["width"] == 512
    assert np.isnan(table.numbers("width")[1])
    assert table.codes("split") == (pytest.approx([-1, -1]), [])
    assert "organ" in table
    assert "split" not in table


def test_parquet_of_other_programs_is_read(tmp_path):
    import pyarrow
    import pyarrow.parquet

    cells = {
        "path": ["a.png", "b.png", "c.png"],
        " organ": pyarrow.array(["liver", "", None]).dictionary_encode(),
        "width": [512.0, float("nan"), 64.0],
        "patient": [1, 2, None],
        "channels": pyarrow.array([1, 3, 3], pyarrow.int8()),
    }
    pyarrow.parquet.write_table(pyarrow.table(cells), tmp_path / "m.parquet")
    found = contents.read(tmp_path / "m.parquet")
    assert {organ.name: organ.images for organ in found.organs} == {"liver": 1, "not said": 2}
    assert found.all.width == Spread(64, 288, 512)
    assert (found.all.groups, found.all.alone) == ({"patient": 2}, 1)
    assert (found.all.grey, found.all.colour) == (1, 2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", "", "the manifest is empty"),
        ("m.csv", "path\n", "the manifest has no rows"),
        ("m.csv", "file\na.png\n", "no column `path`"),
        ("m.csv", "path,organ\na.png\n", "row 2 has 1 cells under 2 columns"),
        ("m.csv", "path,organ,organ\na.png,b,c\n", "two columns have one name"),
        ("m.csv", "path,width\na.png,wide\n", "`width` is 'wide', and must be a whole number"),
        ("m.csv", "path,organ\n,liver\n", "row 1 has no path"),
        ("m.csv", b"path\n\xff\xfe\n", "not a comma-separated table in UTF-8"),
        ("m.parquet", "nothing", "not a readable Parquet file"),
        ("m.txt", "path\na.png\n", "a manifest is a .csv or .parquet file"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_one_line(tmp_path, capsys, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert told(tmp_path / name) == 2
    error = capsys.readouterr().err
    assert message in error
    assert name in error
    assert error.count("\n") == 1


def test_a_folder_is_read_through_the_manifest_at_its_top(tmp_path, capsys):
    assert told(tmp_path) == 2
    assert "no manifest (.parquet or .csv) in this folder" in capsys.readouterr().err
    manifest.write(corpus(), tmp_path / "corpus.parquet")
    (tmp_path / "rejected.csv").write_text("path,frame,source,reason\n")
    assert contents.read(tmp_path).images == len(corpus())
    manifest.write(corpus()[:3], tmp_path / "other.csv")
    assert told(tmp_path) == 2
    assert f"holds corpus.parquet, other.csv; write which: {tmp_path}/corpus.parquet" in capsys.readouterr().err
    manifest.write(corpus()[:5], tmp_path / "manifest.csv")
    assert contents.read(tmp_path).images == 5
    assert told(tmp_path / "gone.csv") == 2
    assert "gone.csv: no such file" in capsys.readouterr().err


# the command


def test_the_table_is_that_of_the_paper(tmp_path, capsys):
    manifest.write(corpus(), tmp_path / "m.csv")
    assert told(tmp_path / "m.csv") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path}/m.csv: 1,004 images"
    start = lines.index("organ        source           images  subtotal")
    assert lines[start + 1 : start + 3] == [
        "thyroid      private             351       444",
        "             radimagenet          93",
    ]
    assert "16 organs    7 sources         1,004     1,004" in lines
    assert any(line.startswith("buv ") and " 7 videos " in line for line in lines)
    assert "  heart: benign 7, malignant 6, not said 6" in lines


def test_json_holds_the_same_numbers(table, capsys):
    assert told(table, "--json") == 0
    found, given = contents.read(table), json.loads(capsys.readouterr().out)
    assert given["images"] == found.images
    assert {organ["name"]: organ["sources"] for organ in given["organs"]} == TABLE_1
    assert given["sources"]["buv"]["groups"] == {"video": 7}
    assert given["all"]["of_each"]["most"] == found.all.of_each.most


def test_json_alone_is_printed_though_a_picture_and_a_page_are_written(tmp_path, capsys):
    manifest.write(corpus(), tmp_path / "m.csv")
    words = ("--json", "--figure", tmp_path / "a picture.pdf", "--html", tmp_path / "page.html")
    assert told(tmp_path / "m.csv", *words) == 0
    json.loads(capsys.readouterr().out)
    assert (tmp_path / "a picture.pdf").read_bytes().startswith(b"%PDF")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a picture.pdf", "m.csv", "page.html"]


@pytest.mark.parametrize(("name", "begin"), [("a.png", b"\x89PNG"), ("a.SVG", b"<?xml"), ("a.pdf", b"%PDF")])
def test_the_picture_is_of_the_kind_its_name_says(tmp_path, capsys, name, begin):
    manifest.write(corpus(), tmp_path / "m.csv")
    assert told(tmp_path / "m.csv", "--figure", tmp_path / name) == 0
    assert (tmp_path / name).read_bytes().startswith(begin)
    assert f"written: {tmp_path / name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--figure", "a.gif"], "--figure a.gif: write a name with .svg or .pdf or .png at its end"),
        (["--html", "a.svg"], "--html a.svg: write a name with .html or .htm at its end"),
        (["--html", "none/a.html"], "there is no folder"),
        (["--figure", "folder.png"], "this is a folder"),
    ],
)
def test_where_nothing_can_be_written_is_said_before_anything_is_read(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    assert told("gone.csv", *words) == 2
    assert message in capsys.readouterr().err


# the picture


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("seed", range(10))
def test_no_label_of_the_picture_lies_over_another_or_outside(seed):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    draw = np.random.default_rng(seed)
    amount = [1, 2, 3, 16, 16, 16, 40, 5, 8, 12][seed]
    words = ["liver", "gastrocnemius_medialis_of_the_left_leg", "bile duct", "extraordinarily long", "$x", "a"]
    organs = {}
    for i in range(amount):
        name = " ".join(draw.choice(words, draw.integers(1, 6))) + f" {i}"
        stack = draw.integers(0, 10 ** draw.integers(1, 7), draw.integers(1, 13))
        organs[name] = {f"source {name[:30]} {j}" if seed % 2 else f"s{j}": int(n) for j, n in enumerate(stack) if n}
        organs[name] = organs[name] or {"s0": 1}
    organs = dict(sorted(organs.items(), key=lambda item: -sum(item[1].values())))
    drawn = figure.draw(made(organs))
    drawn.set_dpi(200)
    FigureCanvasAgg(drawn).draw()
    width, height = drawn.bbox.width, drawn.bbox.height
    texts = [text for text in drawn.findobj(Text) if text.get_text() and text.get_visible()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    assert len(boxes) > 2 * min(amount, 16)
    for text, box in boxes:
        assert 0 <= box.x0 <= box.x1 <= width, text
        assert 0 <= box.y0 <= box.y1 <= height, text
    for (one, a), (other, b) in combinations(boxes, 2):
        apart = a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
        assert apart, (one, other)


def test_bars_and_slices_have_the_sizes_of_the_numbers():
    from matplotlib.patches import Rectangle, Wedge

    found = made({"liver": {"a": 30, "b": 10}, "breast": {"b": 20}})
    rectangles = [
        patch for patch in figure.draw_bars(found).findobj(Rectangle) if patch.get_hatch() is not None or True
    ]
    lengths = sorted((round(r.get_x()), round(r.get_width())) for r in rectangles if r.get_linewidth() == 0.5)
    assert {(0, 30), (30, 10), (0, 20)} <= set(lengths)
    turns = [wedge.theta2 - wedge.theta1 for wedge in figure.draw_ring(found).findobj(Wedge)]
    assert sorted(turns) == pytest.approx([120, 240])


def test_bars_that_would_not_be_seen_are_logarithmic_and_divided_by_shares():
    from matplotlib.patches import Rectangle

    found = made({"liver": {"a": 50_000, "b": 50_000}, "breast": {"b": 200}})
    drawn = figure.draw_bars(found)
    (axes,) = drawn.axes
    assert axes.get_xscale() == "log"
    ends = sorted(
        {
            round(r.get_x() + r.get_width())
            for r in axes.findobj(Rectangle)
            if 0 < r.get_width() < 1e6 and r.get_x() >= 100
        }
    )
    assert ends == [200, round(100 * 1000**0.5), 100_000]  # half of the way from 100 to 100,000, on paper
    assert any("logarithmic" in text.get_text() for text in drawn.texts)
    assert not bars.stacks(made({"liver": {"a": 99}, "breast": {"b": 1}})).log


def test_sources_differ_without_colour():
    def grey(color):
        return sum(weight * int(color[i : i + 2], 16) for weight, i in ((0.299, 1), (0.587, 3), (0.114, 5)))

    for (one, hatch), (other, another) in combinations(bars._MARKS, 2):
        assert hatch != another or abs(grey(one) - grey(other)) > 60


def test_beyond_sixteen_organs_and_nine_sources_the_others_stand_together():
    found = made({f"o{i:02d}": {f"s{i:02d}": 100 - i} for i in range(30)})
    slices, stacks = ring.shares(found), bars.stacks(found)
    assert [*slices][-1] == "15 other organs"
    assert len(slices) == 16
    assert [*stacks.sources][-1] == "22 other sources"
    assert [*stacks.bars][-1] == "7 other organs"
    assert sum(slices.values()) == sum(stacks.sources.values()) == found.images
    assert sum(sum(bar.values()) for bar in stacks.bars.values()) == found.images
    assert ring.shares(made(TABLE_1)) == {name: sum(stack.values()) for name, stack in TABLE_1.items()}


@pytest.mark.parametrize("seed", range(20))
def test_labels_are_spread_with_the_least_way(seed):
    from scipy.optimize import minimize

    draw = np.random.default_rng(seed)
    heights = draw.uniform(0.1, 0.5, 6)
    wanted = np.sort(draw.uniform(0, 3, 6))
    placed = np.array(ring.spread(wanted.tolist(), heights.tolist(), 0, 3.2))
    gaps = (heights[1:] + heights[:-1]) / 2
    assert (np.diff(placed) >= gaps - 1e-9).all()
    assert placed[0] - heights[0] / 2 >= -1e-9
    assert placed[-1] + heights[-1] / 2 <= 3.2 + 1e-9
    bounds = [(heights[0] / 2, None), *[(None, None)] * 4, (None, 3.2 - heights[-1] / 2)]
    best = minimize(
        lambda x: ((x - wanted) ** 2).sum(),
        placed,
        bounds=bounds,
        constraints={"type": "ineq", "fun": lambda x: np.diff(x) - gaps},
        options={"ftol": 1e-12},
    )
    assert ((placed - wanted) ** 2).sum() <= best.fun + 1e-6


def test_equal_contents_give_equal_files():
    found = made(TABLE_1)
    for kind in ("svg", "png", "pdf"):
        assert summary.picture(found, kind) == summary.picture(found, kind)


# the page


class Page(HTMLParser):
    """Tags, ids and text of a page; nothing may be loaded from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.sections, self.cells, self.links = [], [], [], [], []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        self.sections += [given["id"]] if tag == "section" else []
        self.links += [given[name] for name in ("src", "href", "xlink:href") if name in given]

    handle_startendtag = handle_starttag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def page(tmp_path):
    manifest.write(corpus(), tmp_path / "m.csv")
    assert told(tmp_path / "m.csv", "--html", tmp_path / "m.html") == 0
    return (tmp_path / "m.html").read_text(encoding="utf-8")


def test_the_page_holds_all_tables_and_both_drawings(page):
    parsed = Page(page)
    assert parsed.sections == ["picture", "organs", "sources", "splits", "labels", "flags"]
    assert parsed.tags.count("svg") == 2
    for text in (
        "fetal_planes_db",
        "1,004",
        "16 organs",
        "7 videos",
        "benign 7, malignant 6, not said 6",
        "burned_in",
    ):
        assert text in parsed.text


def test_the_page_needs_nothing_from_elsewhere(page):
    parsed = Page(page)
    assert all(link.startswith("#") for link in parsed.links)
    assert "script" not in parsed.tags
    assert not re.search(r"url\((?!#)", page)
    assert "default-src 'none'" in page


def test_ids_of_the_page_are_unique_and_all_that_is_referred_to_is_there(page):
    parsed = Page(page)
    assert len(set(parsed.ids)) == len(parsed.ids)
    referred = {link[1:] for link in parsed.links} | set(re.findall(r"url\(#([^)]*)\)", page))
    assert referred <= set(parsed.ids)


def test_the_drawings_take_ink_and_paper_of_the_page(page):
    for word in ("--ink", "--soft", "--line", "--paper"):
        assert f"var({word})" in page
    drawn = page[page.index('<div class="drawings">') :]
    assert "#1c2430" not in drawn
    assert "#fffffe" not in drawn


def test_names_cannot_break_the_page():
    found = made({"<script>alert(1)</script>": {'"><b>': 3}})
    text = summary.render(replace(found, flags={"<i>": 1})).decode()
    parsed = Page(text)
    assert "script" not in parsed.tags
    assert "i" not in parsed.tags
    assert "<script>alert(1)</script>" in parsed.text


def test_the_real_pictures_are_summed_up(ultrasound, capsys):
    assert told(ultrasound, "--json") == 0
    given = json.loads(capsys.readouterr().out)
    assert given["images"] == 3023
    with (ultrasound / "manifest.csv").open(encoding="utf-8", newline="") as file:
        expected = Counter(row["organ"] for row in csv.DictReader(file))
    assert {organ["name"]: organ["images"] for organ in given["organs"]} == expected
