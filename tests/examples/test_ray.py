"""examples/ray without Ray, which `make ray` installs: what the files import and the page shows."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

import tfdp
from tests.running import ROOT, run

FILES = sorted((ROOT / "examples" / "ray").glob("*.py"))
PAGE = ROOT / "docs" / "clusters" / "ray.md"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_an_example_imports_of_ours_is_there(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "cluster":
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):  # a module of a package
                    importlib.import_module(f"{node.module}.{alias.name}")
    public = set(re.findall(r"\btfdp\.(\w+)\(", path.read_text()))
    assert public <= set(tfdp.__all__)


def test_commands_of_the_page_have_flags_that_exist() -> None:
    known = {
        path.name: set(re.findall(r'add_argument\(\s*"(--\w+)"', path.read_text()))
        for path in FILES
    }
    known["tfdp.train"] = {
        f"--{name}"
        for name in re.findall(r"--(\w+)", run(["python", "-m", "tfdp.train", "--help"]))
    }
    commands = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    used = {name: set[str]() for name in known}
    for line in "".join(commands).replace("\\\n", " ").splitlines():
        # What follows the name of a program, up to the next program.
        for name, flags in re.findall(r"(\w+\.(?:py|train))((?: --\w\S*)*)", line):
            if name in used:
                used[name] |= set(re.findall(r"--\w+", flags))
    for name, flags in used.items():
        assert flags, f"{PAGE.name} shows no command with {name}"
        assert flags <= known[name], name
