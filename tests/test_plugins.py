"""The plugin host and `ussl plugins`."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys

import pytest

from ussl import cli, parts
from ussl.plugins import KINDS, Host

MASKING = """
    from ussl.hookspecs import hookimpl
    from ussl.parts import Masking

    class Nothing(Masking):
        '''Hides nothing.

        Args:
            share: of nothing.
        '''
        def __init__(self, *, share: float = 0.5, mode: str | None = None) -> None:
            super().__init__()
        def forward(self, view, grid, draws):
            return None

    @hookimpl
    def ussl_maskings():
        return {"nothing": Nothing}
"""


def plugin(kind: str, body: str) -> str:
    """A file that offers the class `Part` of `body` as `part`."""
    header = "from ussl.hookspecs import hookimpl\nfrom ussl.parts import *\nfrom collections.abc import Callable\n"
    return f'{header}\n{body}\n@hookimpl\ndef ussl_{kind}s():\n    return {{"part": Part}}\n'


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = cli.main(words)
    return code, *capsys.readouterr()


def test_a_kind_is_what_a_hook_returns():
    words = "source sampler augmentation encoder head masking target objective optimizer probe initialization"
    assert list(KINDS) == words.split()
    assert all(KINDS[word] is getattr(parts, word.capitalize()) for word in KINDS)


def test_a_file_offers_parts_like_a_package(write):
    path = write("mine.py", MASKING)
    host = Host([path])
    (offer,) = [offer for offer in host.offers("masking") if offer.name == "nothing"]
    assert offer.summary == "Hides nothing."
    assert (offer.origin.plugin, offer.origin.distribution) == ("mine", str(path))
    assert host.get("masking", "nothing") is offer.cls
    assert issubclass(offer.cls, parts.Masking)


def test_what_a_file_defines_can_be_pickled(write):
    part = Host([write("mine.py", MASKING)]).get("masking", "nothing")()
    assert type(pickle.loads(pickle.dumps(part))) is type(part)


def test_a_file_given_twice_is_one_plugin(write):
    path = write("mine.py", MASKING)
    assert Host([path, str(path)]).get("masking", "nothing")


@pytest.mark.parametrize(("name", "why"), [("absent.py", "no such file"), ("text.txt", "not a .py file")])
def test_a_missing_file_is_one_line(write, tmp_path, name, why):
    write("text.txt", "")
    with pytest.raises(ValueError, match=why):
        Host([tmp_path / name])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("def (", "SyntaxError"),
        ("x = 1", "no function in it is marked @hookimpl"),
        ("from ussl.hookspecs import hookimpl\n@hookimpl\ndef ussl_masking(): return {}", 'mean "ussl_maskings"'),
        ("from ussl.hookspecs import hookimpl\n@hookimpl\ndef ussl_heads(): 1 / 0", "ussl_heads: ZeroDivisionError"),
        ("from ussl.hookspecs import hookimpl\n@hookimpl\ndef ussl_heads(): return [1]", "return classes by name"),
        (
            "from ussl.hookspecs import hookimpl\n@hookimpl\ndef ussl_heads(): return {'a': 1}",
            "return classes by name",
        ),
        ("from ussl.hookspecs import hookimpl\n@hookimpl\ndef ussl_heads(x): return {}", "PluginValidationError"),
    ],
)
def test_a_broken_plugin_is_reported_and_spoils_no_other(install, text, error, capsys):
    install("sickly", text)
    code, out, _ = run(capsys, "plugins", "--json")
    (broken,) = json.loads(out)["broken"]
    assert code == 0
    assert [broken[key] for key in ("plugin", "distribution", "version")] == ["sickly", "sickly", "1.2"]
    assert error in broken["error"]
    assert "\n" not in broken["error"]
    assert Host().get("masking", "random")


def test_a_raising_hook_spares_the_plugins_other_hooks(write):
    path = write("mine.py", MASKING + "\n    @hookimpl\n    def ussl_heads():\n        raise RuntimeError('no')\n")
    host = Host([path])
    assert host.get("masking", "nothing")
    assert [broken.error for broken in host.broken] == ["ussl_heads: RuntimeError: no"]


def test_an_unknown_name_is_answered_with_a_close_one():
    with pytest.raises(ValueError, match=r'masking "blok": unknown; did you mean "block"\? known: block, '):
        Host().get("masking", "blok")


def test_an_unknown_name_is_perhaps_that_of_a_broken_plugin(install):
    install("sickly", "import no_such_module")
    with pytest.raises(ValueError, match=r'may be in a broken one: plugin "sickly" \(sickly 1\.2\): ModuleNotFound'):
        Host().get("masking", "special")


def test_two_plugins_with_one_name_are_refused_naming_both(install, write, capsys):
    install("first", MASKING)
    install("second", MASKING)
    with pytest.raises(ValueError, match=r"USSL_DISABLE_PLUGINS=(first|second)") as error:
        Host().get("masking", "nothing")
    assert "first 1.2" in str(error.value)
    assert "second 1.2" in str(error.value)
    assert Host().get("masking", "random")
    broken = json.loads(run(capsys, "plugins", "--json")[1])["broken"]
    assert {entry["plugin"] for entry in broken} == {"first", "second"}
    assert all('masking "nothing": also offered by' in entry["error"] for entry in broken)


def test_a_plugin_can_be_turned_off(install, monkeypatch):
    install("first", MASKING)
    install("second", "import no_such_module")
    monkeypatch.setenv("USSL_DISABLE_PLUGINS", "second, block")
    host = Host()
    assert host.get("masking", "nothing")
    assert host.broken == []
    with pytest.raises(ValueError, match="unknown"):
        host.get("masking", "block")


def test_turning_off_what_is_not_there_is_said_and_stops_nothing(monkeypatch, capsys):
    monkeypatch.setenv("USSL_DISABLE_PLUGINS", "blok")
    assert Host().offers("masking")
    assert 'USSL_DISABLE_PLUGINS: no plugin "blok"; did you mean "block"?' in capsys.readouterr().err


def test_a_name_that_is_no_text_breaks_only_its_own_plugin(install):
    install("odd", MASKING.replace('"nothing"', "3"))
    host = Host()
    assert any("return classes by name" in str(fault) for fault in host.broken)
    assert host.get("masking", "random")


FORWARD = "    def forward(self, view, grid, draws): ..."


@pytest.mark.parametrize(
    ("kind", "body", "problem"),
    [
        ("masking", "class Part: ...", "is not a subclass of Masking"),
        ("masking", "class Part(Masking): ...", "does not define forward"),
        ("masking", f"class Part(Masking):\n    def __init__(self, ratio: float = 1): ...\n{FORWARD}", "keyword-only"),
        ("masking", f"class Part(Masking):\n    def __init__(self, *ratios: float): ...\n{FORWARD}", "keyword-only"),
        ("masking", f"class Part(Masking):\n    def __init__(self, *, name: str): ...\n{FORWARD}", 'called "name"'),
        ("masking", f"class Part(Masking):\n    def __init__(self, *, x: 'Nope'): ...\n{FORWARD}", "cannot be read"),
        ("masking", f"class Part(Masking):\n    def __init__(self, *, x: Callable): ...\n{FORWARD}", '"x" is code'),
        ("masking", f"class Part(Masking):\n    def __init__(self, *, x: Part | None): ...\n{FORWARD}", '"x" is code'),
        (
            "masking",
            "class Part(Masking):\n    def forward(self, view): ...",
            r"forward\(self, view\) cannot be called",
        ),
        ("head", "class Part(Head):\n    def forward(self, tokens): ...", r"__init__\(self, encoder, \*, options\)"),
        (
            "head",
            "class Part(Head):\n    def __init__(self, *, encoder): ...\n    def forward(self, tokens): ...",
            r"__init__\(self, encoder, \*, options\)",
        ),
        (
            "objective",
            "class Part(Objective):\n    def __init__(self, student, *, x: int = 1): ...\n"
            "    def forward(self, outputs, targets, masks): ...",
            r"__init__\(self, student, target, \*, options\)",
        ),
        (
            "encoder",
            "class Part(Encoder):\n    def grid(self, height, width): ...\n    def forward(self, image): ...",
            r"forward\(self, image\) cannot be called as forward\(image, mask\)",
        ),
        (
            "masking",
            f"class Part(Masking):\n{FORWARD}\n    def after_step(self): ...",
            r"after_step\(self\) cannot be called as after_step\(at\)",
        ),
    ],
)
def test_a_part_that_does_not_fit_its_kind_says_why(write, kind, body, problem):
    host = Host([write("odd.py", plugin(kind, body))])
    with pytest.raises(ValueError, match=problem) as error:
        host.get(kind, "part")
    assert 'plugin "odd"' in str(error.value)
    assert host.get("masking", "random")
    (fault,) = host.faults()
    assert str(fault.error).startswith(f'{kind} "part": ')


@pytest.mark.parametrize(
    "body",
    [
        f"class Part(Masking):\n{FORWARD}",
        f"class Base(Masking):\n    def __init__(self, *, ratio: float = 1): ...\n{FORWARD}\n"
        "class Part(Base):\n    def __init__(self, *, more: int = 1, **rest): super().__init__(**rest)",
        "class Part(Masking):\n    def forward(self, *args, **others): ...",
    ],
)
def test_any_shape_that_can_be_called_as_its_kind_fits(write, body):
    host = Host([write("fine.py", plugin("masking", body))])
    assert host.get("masking", "part")
    assert host.faults() == []


def test_the_list_shows_what_and_whence(capsys, write):
    code, out, _ = run(capsys, "plugins", "--kind", "masking", "--plugin", str(write("mine.py", MASKING)))
    assert code == 0
    (line,) = [line for line in out.splitlines() if " nothing " in line]
    assert line.split("  ")[0] == "masking"
    assert "Hides nothing." in line
    assert "mine.py" in line
    (line,) = [line for line in out.splitlines() if line.startswith("masking  random")]
    assert line.split()[-2:] == ["ultrasound-ssl", "0.1.0"]
    assert "encoder" not in out


def test_the_list_for_programs_has_a_fixed_shape(capsys):
    listed = json.loads(run(capsys, "plugins", "--json")[1])
    assert set(listed) == {"plugins", "broken"}
    assert listed["broken"] == []
    assert all(
        set(entry) == {"kind", "name", "summary", "plugin", "distribution", "version"} for entry in listed["plugins"]
    )
    assert all(entry["summary"].endswith(".") for entry in listed["plugins"])


def test_the_options_of_a_part_are_told(capsys, write):
    words = ("plugins", "--kind", "masking", "--name", "nothing", "--plugin", str(write("mine.py", MASKING)))
    share, mode = run(capsys, *words)[1].splitlines()[-2:]
    assert share.split() == ["share", "float", "0.5", "of", "nothing."]
    assert mode.split() == ["mode", "str", "|", "null", "null"]
    assert json.loads(run(capsys, *words, "--json")[1])["options"][0]["option"] == "share"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--kind", "maskin"), 'kind "maskin": unknown; did you mean "masking"?'),
        (("--kind", "masking", "--name", "blok"), 'did you mean "block"?'),
        (("--name", "block"), "--kind"),
        (("--jsn",), "--jsn: unknown"),
        (("--plugin", "absent.py"), "no such file"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(capsys, words, error):
    code, out, err = run(capsys, "plugins", *words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert error in err
    assert err.count("\n") == 1


def test_a_traceback_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("USSL_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown"):
        cli.main(["plugins", "--kind", "maskin"])


def test_help_does_not_import_torch():
    script = "import sys; from ussl import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
    script += "print('heavy:', [name for name in sys.modules if name.partition('.')[0] in ('torch', 'jsonargparse')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ, check=True)
    assert "plugins" in done.stdout
    assert done.stdout.splitlines()[-1] == "heavy: []"
