"""Recipes: reading, merging, checking, resolving, building."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT

from ussl import cli
from ussl.layers import arguments, shipped
from ussl.parts import Student
from ussl.plugins import Host
from ussl.recipe import load

PARTS = """
    from pathlib import Path
    from typing import Literal
    from ussl.hookspecs import hookimpl
    from ussl.parts import *

    class Net(Encoder):
        width, patch, mean, std, accepts = 8, 4, (0.5,), (0.5,), frozenset()
        def __init__(self, *, size: Literal["base", "large"] = "base", depth: int = 12, init: str | Path | None = None,
                     weights: dict[str, Path] | None = None, rates: tuple[float, float] = (0.1, 0.2),
                     layer: int | list[int] = -1, on: str = "all", extra: dict[str, float] | None = None) -> None:
            super().__init__()
            if depth < 1:
                raise ValueError(f"depth must be at least 1, not {depth}")
            self.size, self.depth, self.init, self.weights, self.rates, self.layer = (
                size, depth, init, weights, rates, layer)
        def grid(self, height, width): return height // 4, width // 4
        def forward(self, image, mask=None): ...

    class Other(Net):
        def __init__(self, *, depth: int = 3) -> None:
            super().__init__(depth=depth)

    class Mlp(Head):
        def __init__(self, encoder, *, hidden: int = 16) -> None:
            super().__init__()
            self.encoder_width, self.width = encoder.width, hidden
        def forward(self, tokens): return tokens

    class Loss(Objective):
        def __init__(self, student, target, *, file: Path | None = None) -> None:
            super().__init__()
            self.seen, self.file = (student, target), file
        def forward(self, outputs, targets, masks): ...

    class Copy(Target):
        def __init__(self, student) -> None:
            super().__init__()
            self.student = [student]
        def forward(self, views): ...

    class Folder(Source):
        def __init__(self, *, path: Path, deep: bool = True) -> None:
            self.path, self.deep = path, deep
        def rows(self): return iter(())
        def read(self, row): ...

    class Made(Source):
        def __init__(self, *, count: int = 3) -> None:
            self.count = count
        def rows(self): return iter(())
        def read(self, row): ...

    class Score(Probe):
        def __init__(self, source, *, k: int = 20, every: float = 1.0) -> None:
            self.source, self.k, self.every = source, k, every
        def run(self, encoder, device): return {}

    @hookimpl
    def ussl_encoders(): return {"net": Net, "other": Other}
    @hookimpl
    def ussl_heads(): return {"projector": Mlp}
    @hookimpl
    def ussl_objectives(): return {"loss": Loss}
    @hookimpl
    def ussl_targets(): return {"copy": Copy}
    @hookimpl
    def ussl_sources(): return {"folder": Folder, "made": Made}
    @hookimpl
    def ussl_probes(): return {"score": Score}
"""
BASE = "encoder: net\nobjective: loss\n"


@pytest.fixture
def make(write, tmp_path, monkeypatch):
    """make(text, *words, **options): the recipe of a file holding `text`, with command-line words."""
    host = Host([write("fakes.py", PARTS)])
    monkeypatch.chdir(tmp_path)

    def make(text, *words, file="study/recipe.yaml", more=(), **options):
        return load([write(file, text), *more], arguments(words), host, **options)

    return make


# reading


def test_only_true_and_false_are_booleans_and_1e_4_is_a_number(make):
    recipe = make(BASE.replace("net", "{name: net, on: on, rates: [1e-4, 2]}") + "joined: false\n")
    assert recipe.resolved["encoder"]["on"] == "on"
    assert recipe.resolved["encoder"]["rates"] == [0.0001, 2.0]
    assert recipe.joined is False


@pytest.mark.parametrize(
    "text", ["yes", "no", "off", "007", "2024-01-31", "1_000", "1:30", "0x10", "null", "1e5", "~"]
)
def test_text_survives_saving_whatever_it_looks_like(make, text):
    recipe = make(f"encoder: {{name: net, on: '{text}'}}\nobjective: loss\n")
    assert recipe.resolved["encoder"]["on"] == text
    assert make(recipe.to_yaml()).resolved == recipe.resolved
    assert yaml.safe_load(recipe.to_yaml()) == recipe.resolved  # as YAML 1.1 too


@pytest.mark.parametrize("text", ["yes", "off", "007", "2024-01-31", "1_000"])
def test_text_needs_no_quotes_when_yaml_1_2_has_it_as_text(make, text):
    assert make(BASE, "--encoder.on", text).resolved["encoder"]["on"] == text
    assert make(BASE.replace("net", f"{{name: net, on: {text}}}")).resolved["encoder"]["on"] == text


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("seed: 1\nseed: 2\n", 'recipe.yaml:1: "seed" is written twice'),
        ("a: [1\nb: 2\n", r"recipe.yaml:2: not YAML: .*expected"),
        ("- a\n- b\n", 'recipe.yaml:1: a recipe is lines of `key: value`; this is \\["a", "b"\\]'),
        ("", "recipe.yaml:1: a recipe is lines of `key: value`"),
        ("a: !!python/object:os.system x\n", "recipe.yaml:1: not YAML: could not determine a constructor"),
        ("from: [a, b]\n", "from: expected the name of one recipe"),
        ("from: nowhere.yaml\n", 'recipe "nowhere.yaml": no such file'),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_with_its_line(make, text, error):
    with pytest.raises(ValueError, match=error) as caught:
        make(text)
    assert "\n" not in str(caught.value)


# merging


def test_a_part_without_a_name_is_merged_into_its_parents_and_one_with_a_name_replaces_it(make, write):
    write("study/parent.yaml", "encoder: {name: net, size: large, depth: 5}\nobjective: loss\ntrain: {epochs: 7}\n")
    merged = make("from: parent.yaml\nencoder: {depth: 6}\ntrain: {keep: 1}\n")
    assert merged.resolved["encoder"] | {"size": "large", "depth": 6} == merged.resolved["encoder"]
    assert (merged.train.epochs, merged.train.keep) == (7, 1)
    replaced = make("from: parent.yaml\nencoder: {name: net, depth: 6}\n")
    assert replaced.resolved["encoder"]["size"] == "base"
    assert make("from: parent.yaml\nencoder: other\n").resolved["encoder"] == {"name": "other", "depth": 3}


def test_lists_replace_and_mappings_inside_a_part_merge(make, write):
    write("study/parent.yaml", "encoder: {name: net, layer: [1, 2], extra: {a: 1, b: 2}}\nobjective: loss\n")
    encoder = make("from: parent.yaml\nencoder: {layer: [3], extra: {b: 5}}\n").resolved["encoder"]
    assert encoder["layer"] == [3]
    assert encoder["extra"] == {"a": 1.0, "b": 5.0}


def test_of_several_recipes_the_later_wins_and_names_the_run(make, write):
    later = write("later.yaml", "seed: 5\nencoder: {depth: 9}\n")
    recipe = make(BASE + "seed: 3\nema: 0.5\n", more=[later])
    assert (recipe.seed, recipe.ema, recipe.encoder().depth, recipe.name) == (5, 0.5, 9, "later")


def test_options_on_the_command_line_win_in_any_order(make):
    text = "encoder: {name: other, depth: 5}\nobjective: loss\n"
    for words in (("--encoder", "net", "--encoder.size=large"), ("--encoder.size", "large", "--encoder=net")):
        encoder = make(text, *words, "--encoder.layer", "[10,11]", "--encoder.rates", "[1e-3, .5]").encoder()
        assert (encoder.size, encoder.depth, encoder.layer, encoder.rates) == ("large", 12, [10, 11], (0.001, 0.5))
    assert make(BASE, "--encoder.size", "large").encoder().size == "large"


def test_null_removes_an_optional_part(make):
    text = (
        BASE
        + "source: made\nhead: {name: projector, hidden: 4}\nprobes: {score: {k: 3}, b: {name: score, source: made}}\n"
    )
    recipe = make(text, "--head", "null", "--probes.score", "null")
    assert recipe.resolved["head"] is None
    assert recipe.head(recipe.encoder()) is None
    assert list(recipe.probes()) == ["b"]
    assert make(text, "--probes", "null").resolved["probes"] == {}
    with pytest.raises(ValueError, match=r'did you mean "train\.batch_size"'):
        make(text, "--batch_size", "3")
    with pytest.raises(ValueError, match="encoder: has no name; write encoder: NAME"):
        make(BASE, "--encoder", "null")


def test_probes_merge_by_key_and_are_of_the_kind_they_are_filed_under(make, write):
    write("study/parent.yaml", BASE + "probes: {score: {k: 5, every: 2, source: made}, other: {name: score, k: 7}}\n")
    probes = "probes: {score: {k: 6}, other: {name: score, source: made}}\n"
    recipe = make("from: parent.yaml\nsource: {name: made, count: 4}\n" + probes)
    assert {key: (probe.k, probe.every) for key, probe in recipe.probes().items()} == {
        "score": (6, 2.0),
        "other": (20, 1.0),
    }
    assert {probe.source.count for probe in recipe.probes().values()} == {3}
    written = recipe.resolved["probes"]["score"]
    assert written == {"name": "score", "k": 6, "every": 2.0, "source": {"name": "made", "count": 3}}


def test_a_probe_reads_pictures_of_its_own(make, tmp_path):
    recipe = make(BASE + "probes: {liver: {name: score, data: liver.csv}}\n", data="x")
    path = recipe.resolved["probes"]["liver"]["source"]["path"]
    assert path.endswith("study/liver.csv")
    assert make(recipe.to_yaml(), data=None).resolved == recipe.resolved
    for probe in ("{name: score}", "{name: score, data: a.csv, source: made}"):
        with pytest.raises(ValueError, match=r"probes\.liver: on which pictures.*data: MANIFEST"):
            make(BASE + f"probes: {{liver: {probe}}}\n")


def test_from_takes_shipped_names_and_refuses_a_circle(make, write):
    text = "from: mim_us\nseed: 4\n"
    assert make(text).resolved == load(["mim_us"], [("seed", "4")], make(text)._host).resolved
    write("study/other.yaml", "from: recipe.yaml\n")
    with pytest.raises(ValueError, match=r"circle: recipe.yaml -> other.yaml -> recipe.yaml"):
        make("from: ./../study/other.yaml\n")


@pytest.mark.parametrize(
    ("words", "pairs"),
    [
        ("--encoder vit --train.steps 3 --a.b=c=d", [("encoder", "vit"), ("train.steps", "3"), ("a.b", "c=d")]),
        ("--x -1 --y=-2 --z=", [("x", "-1"), ("y", "-2"), ("z", "")]),
        ("--train.compile --seed 1", "--train.compile: has no value"),
        ("--seed", "--seed: has no value"),
        ("vit", '"vit": expected an option'),
        ("-x 3", '"-x": expected an option'),
    ],
)
def test_options_are_keys_with_values(words, pairs):
    if isinstance(pairs, list):
        assert arguments(words.split()) == pairs
    else:
        with pytest.raises(ValueError, match=pairs):
            arguments(words.split())


def test_a_value_on_the_command_line_is_taken_whole(make):
    for text in ("a #1", "a: b", "hf-hub:x/y", "*", "@x"):
        assert make(BASE, "--encoder.on", text).resolved["encoder"]["on"] == text
    with pytest.raises(ValueError, match=r"--encoder.layer: cannot read \[1"):
        make(BASE, "--encoder.layer", "[1")


# checking


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--encoder.siz large", r'^encoder \(net\): no option "siz"; did you mean "size"\? Its options: size, depth,'),
        ("--encoder.size huge", r'^encoder \(net\): size: expected "base" \| "large", not "huge"$'),
        ("--encoder.depth null", r"^encoder \(net\): depth: expected an int, not null$"),
        ("--encoder.depth 1.5", r"^encoder \(net\): depth: expected an int, not 1.5$"),
        ("--encoder.rates [1]", r"^encoder \(net\): rates: expected \[float, float\], not \[1\]$"),
        ("--encoder nte", r'^encoder "nte": unknown; did you mean "net"\? known: beit, net, other'),
        ("--source.count 3", r'^source \(images\): no option "count"'),
        ("--target.x 3", "^target: has no name; write target: NAME"),
        ("--train.batch_size many", r'^train.batch_size: expected an int, not "many"$'),
        ("--train.micro_batch no", r'^train.micro_batch: expected int \| "auto", not "no"$'),
        ("--train.batch_size 0", r"^train.batch_size: must be at least 1, not 0$"),
        ("--train.micro_batch 0", r"^train.micro_batch: must be at least 1"),
        ("--train.epochs 0", r"^train.epochs: must be above 0, not 0"),
        ("--train.step 3", r'^train: no option "step"; did you mean "steps"\?'),
        ("--train.compile 1", r"^train.compile: expected a bool, not 1$"),
        ("--train 5", "^train: expected a mapping, not 5$"),
        ("--loader.workers -1", r"^loader.workers: must be at least 0"),
        ("--ema 1", r"^ema: must be at least 0 and below 1, not 1.0$"),
        ("--seed x", r'^seed: expected an int, not "x"$'),
        ("--export ema", "^export: ema needs a decay"),
        ("--maskin block", r'^no key "maskin" in a recipe; did you mean "masking"\?'),
        ("--encoder [net]", r'^encoder: expected a name or a mapping, not \["net"\]$'),
        ("--probes score", "^probes: expected a name or a mapping"),
    ],
)
def test_a_mistake_is_one_line_in_the_recipes_words(make, words, error):
    with pytest.raises(ValueError, match=error) as caught:
        make(BASE, *words.split())
    message = str(caught.value)
    assert not any(word in message for word in ("\n", "class '", "Parser key", "typing.", "NoneType", "fakes"))


def test_a_required_option_must_be_given(make):
    with pytest.raises(ValueError, match=r"^target \(timm\): model is missing; it has no default$"):
        make(BASE, "--target", "timm")


def test_what_a_constructor_refuses_begins_with_the_part(make):
    with pytest.raises(ValueError, match=r"^encoder \(net\): depth must be at least 1, not 0$"):
        make(BASE, "--encoder.depth", "0").encoder()


def test_no_recipe_at_all_and_an_unknown_one_are_told(make):
    with pytest.raises(ValueError, match="no recipe: write --recipe FILE"):
        load([], [], make(BASE)._host)
    with pytest.raises(ValueError, match=r'recipe "urfn": no such file; did you mean "urfm"\? shipped recipes: '):
        load(["urfn"], [], make(BASE)._host)


# paths


def test_a_path_is_relative_to_the_file_that_wrote_it(make, write, tmp_path):
    write(
        "study/parent.yaml", "encoder: {name: net, weights: {a: w/a.pt}}\nobjective: {name: loss, file: up/loss.pt}\n"
    )
    write("study/deep/init.pt", "")
    text = "from: ../parent.yaml\nencoder: {init: init.pt}\n"
    recipe = make(text, "--encoder.weights.b", "~/b.pt", file="study/deep/recipe.yaml")
    assert recipe.resolved["objective"]["file"] == str(tmp_path / "study/up/loss.pt")
    assert recipe.resolved["encoder"]["init"] == str(tmp_path / "study/deep/init.pt")
    assert recipe.encoder().weights == {"a": tmp_path / "study/w/a.pt", "b": Path.home() / "b.pt"}
    cli_path = make(text, "--objective.file", "here.pt", file="study/deep/recipe.yaml").resolved["objective"]["file"]
    assert cli_path == str(tmp_path / "here.pt")


def test_text_or_path_is_a_path_only_where_a_file_is(make):
    assert make(BASE, "--encoder.init", "vit_base_patch16_224.mae").encoder().init == "vit_base_patch16_224.mae"


def test_data_is_the_sources_path(make, write, tmp_path):
    for source in ("folder", "{name: folder, path: old}"):
        recipe = make(f"{BASE}source: {source}\n", data="pictures")
        assert recipe.source().path == tmp_path / "pictures"
        assert "data" not in recipe.resolved
    assert make(f"{BASE}data: pictures\n").resolved["source"]["path"] == str(tmp_path / "study/pictures")
    assert make(f"{BASE}source: {{name: made, count: 5}}\n", data="x").resolved["source"] == {
        **dict.fromkeys(("pattern", "organ", "label", "source", "where")),
        "name": "images",
        "path": str(tmp_path / "x"),
    }


def test_of_data_and_path_the_later_counts_and_both_at_once_are_refused(make, write, tmp_path):
    recipe = make(f"{BASE}data: pictures\n", "--source.path", "other")
    assert recipe.resolved["source"]["path"] == str(tmp_path / "other")
    with pytest.raises(ValueError, match="write one of them"):
        make(f"{BASE}data: a\nsource: {{path: b}}\n")


def test_the_environment_names_data_only_where_nothing_else_does(make, tmp_path, monkeypatch):
    monkeypatch.setenv("USSL_DATA", "from_environment")
    assert make(BASE + "source: folder\n").source().path == tmp_path / "from_environment"
    assert make(BASE, data="given").resolved["source"]["path"] == str(tmp_path / "given")
    assert make(BASE + "source: {path: written}\n").resolved["source"]["path"] == str(tmp_path / "study/written")
    assert make(BASE + "source: made\n").resolved["source"] == {"name": "made", "count": 3}


@pytest.mark.parametrize("source", ["images", "folder"])
def test_data_that_is_missing_is_missed_only_when_it_is_needed(make, source):
    recipe = make(f"{BASE}source: {source}\n")
    assert recipe.resolved["source"]["path"] is None
    assert make(recipe.to_yaml()).resolved == recipe.resolved
    for needs in (recipe.check_data, recipe.source):
        with pytest.raises(ValueError, match=r"write --data FOLDER .* set USSL_DATA"):
            needs()
    make(BASE + "source: made\n").check_data()


def test_readers_are_sources_with_the_same_path(make, tmp_path):
    recipe = make(BASE + "source: {name: folder, deep: false}\n", data="here")
    assert recipe.reader("folder").deep is False
    assert recipe.reader("images").path == tmp_path / "here"
    assert recipe.reader("made").count == 3
    with pytest.raises(ValueError, match=r'source "imags": unknown; did you mean "images"\?'):
        recipe.reader("imags")


# resolving and building


def test_the_resolved_recipe_has_every_default_and_runs_again_unchanged(make):
    recipe = make(
        BASE + "head: projector\ntarget: copy\nprobes: {score: {source: made}}\nema: 0.999\n",
        "--train.steps",
        "20",
        data="x",
    )
    assert recipe.resolved["encoder"]["rates"] == [0.1, 0.2]
    assert recipe.resolved["optimizer"]["name"] == "adamw"
    assert recipe.resolved["augmentation"]["size"] == 224
    assert recipe.resolved["train"]["save_every"] == 500
    assert "ussl_plugins" not in recipe.to_yaml()
    again = make(recipe.to_yaml(), file="elsewhere/recipe.yaml")
    assert again.resolved == recipe.resolved
    assert again.to_yaml() == recipe.to_yaml()


def test_parts_are_built_in_the_order_of_the_contract(make):
    recipe = make(BASE + "head: {name: projector, hidden: 32}\ntarget: copy\n")
    encoder = recipe.encoder()
    student = Student(encoder, recipe.head(encoder))
    target = recipe.target(student)
    assert student.width == 32
    assert student.head.encoder_width == 8
    assert recipe.objective(student, target).seen == (student, target)
    assert target.student == [student]
    assert recipe.masking() is None
    for part in (recipe.sampler(), recipe.augmentation(), recipe.optimizer()):
        assert part is not None


# trust


def test_code_in_a_recipe_needs_trust(make):
    text = "encoder: {class_path: os.system, init_args: {size: tiny}}\nobjective: loss\n"
    for untrusted, words in ((text, ()), (BASE, ("--encoder.init.class_path", "os.system"))):
        with pytest.raises(ValueError, match=r"^encoder(\.init)?: class_path imports code; pass --trust"):
            make(untrusted, *words)
    with pytest.raises(ValueError, match=r"plugins: .*study/mine.py is code; pass --plugin"):
        make(BASE + "plugins: [mine.py]\n")


def test_a_trusted_class_is_checked_like_a_named_one(make):
    text = "encoder: {{class_path: ussl_plugins.{}, init_args: {{{}: tiny}}}}\nobjective: loss\n"
    import ussl_plugins.encoders.vit as vit

    name = next(cls.__name__ for cls in vit.ussl_encoders().values())
    recipe = make(text.format(f"encoders.vit.{name}", "size"), trust=True)
    assert recipe.resolved["encoder"]["init_args"]["patch"] == 16
    assert make(recipe.to_yaml(), trust=True).resolved == recipe.resolved
    for path, option, error in (
        (f"encoders.vit.{name}", "siz", 'did you mean "size"'),
        ("maskings.random.RandomMasking", "ratio", "is not a subclass of Encoder"),
        ("encoders.nothing.X", "size", "cannot import ussl_plugins.encoders.nothing.X"),
    ):
        with pytest.raises(ValueError, match=error):
            make(text.format(path, option), trust=True)


def test_a_recipes_own_plugin_is_loaded_when_trusted_and_kept(make, write):
    mine = PARTS.replace('"net"', '"mine"').split("    @hookimpl\n    def ussl_heads")[0]
    path = write("study/mine.py", mine)
    recipe = make("plugins: [mine.py]\nencoder: mine\nobjective: loss\n", trust=True)
    assert str(path) in recipe.resolved["plugins"]
    assert make(recipe.to_yaml()).resolved == recipe.resolved  # this host has loaded the file


# shipped


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_resolves_and_opens_with_its_lab_book(name, write):
    recipe = load([name], [], Host())
    assert load([write("again.yaml", recipe.to_yaml())], [], Host()).resolved == recipe.resolved
    title, *book = shipped()[name].read_text().split("\n\n")[0].splitlines()
    assert title.startswith("# ")
    for word in ("paper", "command", "hardware", "time", "score"):
        assert any(line.startswith(f"# {word} ") for line in book), word


def test_urfm_is_table_4_of_its_paper():
    urfm = load(["urfm"], [], Host()).resolved
    assert (urfm["train"]["epochs"], urfm["train"]["batch_size"], urfm["ema"]) == (400, 1024, 0.9999)
    for kind, options in {
        "encoder": {"name": "vit", "size": "base", "patch": 16, "image_size": 224},
        "augmentation": {"name": "crop", "size": 224, "scale": [0.2, 1.0], "horizontal_flip": 0.0},
        "masking": {"name": "random", "ratio": 0.75, "masks": 1, "decode": 1.0},
        "target": {"name": "biomedclip", "layer": "last", "point": "post_norm", "norm": "none"},
        "objective": {
            "name": "masked_prediction",
            "width": 768,
            "depth": 8,
            "heads": 16,
            "loss": "mse",
            "on": "masked",
        },
        "optimizer": {"name": "adamw", "base_learning_rate": 1.5e-4, "betas": [0.9, 0.95], "weight_decay": 0.05},
    }.items():
        assert urfm[kind] | options == urfm[kind]
    assert urfm["optimizer"]["warmup"] * 400 == 40


def test_its_siblings_differ_in_what_they_say():
    host = Host()
    urfm = load(["urfm"], [], host).resolved
    for name, changes in {
        "urfm_large": {"encoder"},
        "urfm_huge": {"encoder"},
        "mim_clip": {"target"},
        "mim_us": {"target", "objective", "ema"},
    }.items():
        other = load([name], [], host).resolved
        assert {key for key in urfm if urfm[key] != other[key]} == changes
    huge = load(["urfm_huge"], [], host).resolved["encoder"]
    assert (huge["size"], huge["patch"]) == ("huge", 14)


# what the papers and their released settings say, at the batch they say it for
PUBLISHED = {
    "mae": {
        "batch": 4096,
        "rate": 2.4e-3,
        "warm-up": 40 / 800,
        "optimizer": {
            "name": "adamw",
            "betas": [0.9, 0.95],
            "weight_decay": 0.05,
            "no_decay": "vectors",
            "clip": None,
        },
        "masking": {"name": "random", "ratio": 0.75},
        "target": {"name": "pixels", "norm": True},
        "objective": {"name": "masked_prediction", "width": 512, "depth": 8, "heads": 16, "loss": "mse"},
    },
    "deblur_mim": {
        "batch": 1024,
        "rate": 6e-4,
        "warm-up": 40 / 400,
        "augmentation": {"name": "deblur", "sigma": 1.1, "blur_at": "source"},
        "masking": {"name": "random", "ratio": 0.75, "predict": "all"},
        "target": {"name": "pixels", "norm": False},
    },
    "usfm": {
        "batch": 2048,
        "rate": 4e-4,
        "warm-up": 10 / 800,
        "optimizer": {"betas": [0.9, 0.999], "schedule": "steps", "milestones": [0.875], "gamma": 0.1, "clip": 5.0},
        "encoder": {"name": "beit", "drop_path": 0.1, "layer_scale": 0.1, "shared_positions": True},
        "masking": {"name": "usfm", "spatial_ratio": 0.6},
        "objective": {"name": "usfm", "frequency_weight": 0.1},
        "augmentation": {"name": "crop", "scale": [0.67, 1.0]},
    },
    "simclr": {
        "batch": 4096,
        "rate": 6.4,
        "warm-up": 0.05,
        "optimizer": {"name": "lars", "momentum": 0.9, "weight_decay": 1e-4, "trust": 1e-3, "rate_in_momentum": True},
        "encoder": {"name": "timm", "model": "resnet101", "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]},
        "head": {"name": "mlp", "layers": 3, "hidden": 2048, "out": 128, "last": "scale"},
        "objective": {"name": "simclr", "temperature": 0.1},
    },
    "mocov3": {
        "batch": 4096,
        "rate": 2.4e-3,
        "warm-up": 40 / 300,
        "optimizer": {"name": "adamw", "betas": [0.9, 0.999], "weight_decay": 0.1, "no_decay": "none"},
        "encoder": {"scheme": "mocov3", "freeze_patches": True},
        "head": {"name": "mlp", "layers": 3, "hidden": 4096, "out": 256, "last": "plain"},
        "target": {"name": "ema", "momentum": 0.99, "final_momentum": 1.0, "update": "before"},
        "objective": {"name": "mocov3", "temperature": 0.2, "hidden": 4096, "last": "plain"},
    },
    "dino": {
        "batch": 1024,
        "rate": 7.5e-4,
        "warm-up": 10 / 400,
        "optimizer": {"schedule": "cosine_dino", "weight_decay": 0.04, "weight_decay_end": 0.4, "clip": 0.3},
        "encoder": {"scheme": "dino", "drop_path": 0.1},
        "augmentation": {"scale": [0.25, 1.0], "local_views": 10, "local_size": 96, "local_scale": [0.05, 0.25]},
        "head": {
            "prototypes": 65536,
            "hidden": 2048,
            "bottleneck": 256,
            "norm_last_layer": True,
            "freeze_epochs": 3.0,
        },
        "target": {"name": "ema", "momentum": 0.996, "final_momentum": 1.0, "update": "after"},
        "objective": {"teacher_temperature_start": 0.04, "teacher_temperature": 0.07, "student_temperature": 0.1},
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_method_has_its_published_settings(name):
    recipe, said = load([name], [], Host()), dict(PUBLISHED[name])
    batch, rate, warmup = (said.pop(key) for key in ("batch", "rate", "warm-up"))
    assert recipe.train.batch_size == batch
    optimizer = recipe.optimizer()
    optimizer.start(torch.nn.Sequential(torch.nn.Linear(2, 2)) if name != "usfm" else Tokenised(), batch)
    assert optimizer.peak == pytest.approx(rate)
    assert optimizer.warmup_steps(12_000) == pytest.approx(warmup * 12_000, abs=4)
    for kind, options in said.items():
        assert recipe.resolved[kind] | options == recipe.resolved[kind]


class Tokenised(torch.nn.Module):
    """A network with a class token, as usfm's optimizer asks for."""

    def __init__(self):
        super().__init__()
        self.cls_token = torch.nn.Parameter(torch.zeros(1, 1, 2))
        self.line = torch.nn.Linear(2, 2)


def test_the_shipped_recipes_are_listed_with_method_and_paper(capsys):
    assert cli.main(["recipes"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert re.search(r"^dino +DINO, ViT-B/16 +Caron et al. 2021, arXiv:2104.14294", lines["dino"])
    for path in (ROOT / "recipes").rglob("*.yaml"):
        name = path.relative_to(ROOT / "recipes").with_suffix("").as_posix()
        assert (name in lines) is not path.name.startswith("_")
        if name in lines:
            assert re.search(r"[A-Z][a-z]+ et al\. \d{4}", lines[name]), name
    assert cli.main(["recipes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["recipes"]
    assert all(set(recipe) == {"name", "method", "title", "paper"} for recipe in listed)
