"""Rules of the house: who imports whom, what must not vanish, links that lead somewhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import ROOT, run

HEAVY = {"tensorflow", "keras", "absl", "tensorflow_serving"}


def sources(*packages: str) -> list[Path]:
    """Python files of packages, without generated ones."""
    found = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    assert found, packages
    return [path for path in found if not path.name.endswith(("_pb2.py", "_pb2_grpc.py"))]


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports are not our way"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def roots(*packages: str) -> set[str]:
    return {name.partition(".")[0] for path in sources(*packages) for name in imports(path)}


@pytest.mark.parametrize("package", ["cluster", "serving.client", "serving.rollout"])
def test_the_light_part_never_imports_tensorflow(package: str) -> None:
    folder = ROOT / package.replace(".", "/")
    files = [path for path in sorted(folder.glob("*.py")) if path.stem != "__main__"]
    modules = [f"{package}.{path.stem}".removesuffix(".__init__") for path in files]
    script = f"import sys, {', '.join(modules)}\nprint('LOADED', *sys.modules)"
    loaded = run(["python", "-c", script]).partition("LOADED ")[2].split()
    assert set(modules) <= set(loaded)
    assert not HEAVY & {name.partition(".")[0] for name in loaded}


def test_training_and_serving_share_only_the_saved_model() -> None:
    assert "tfdp" not in roots("serving", "cluster")
    assert "serving" not in roots("tfdp", "cluster")
    assert "cluster" in roots("tfdp")


def test_the_cluster_knows_no_tensorflow_in_any_branch() -> None:
    assert not HEAVY & roots("cluster")


def test_importing_tfdp_without_tensorflow_names_the_extra() -> None:
    script = """
import importlib.machinery

finder = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = classmethod(
    lambda cls, name, path=None, target=None:
        None if name.partition(".")[0] == "tensorflow" else finder(name, path, target))
try:
    import tfdp
except ImportError as error:
    print("SAID", error)
"""
    assert "pip install 'tfdp[train]'" in run(["python", "-c", script]).partition("SAID ")[2]


def test_every_public_name_is_there_and_documented() -> None:
    script = """
import tfdp
for name in tfdp.__all__:
    value = getattr(tfdp, name)
    assert (value.__doc__ or "").strip(), name
    assert name in dir(tfdp), name
print("NAMES", *tfdp.__all__)
try:
    tfdp.no_such_name
except AttributeError as error:
    print("SAID", error)
"""
    output = run(["python", "-c", script])
    names = output.partition("NAMES ")[2].splitlines()[0].split()
    promised = {"connect", "fit", "evaluate", "predict", "export", "from_arrays", "is_chief"}
    assert promised | {"Source", "BadInput"} <= set(names)
    assert "no_such_name" in output.partition("SAID ")[2]


def test_importing_tfdp_waits_for_no_tensorflow() -> None:
    output = run(["python", "-c", "import sys, tfdp; print('LOADED', *sys.modules)"])
    assert not HEAVY & set(output.partition("LOADED ")[2].split())


@pytest.mark.parametrize("private", [r"\bkeras\.src\b", r"\btensorflow\.python\b"])
def test_private_parts_of_keras_and_tensorflow_are_touched_in_one_place(private: str) -> None:
    allowed = {ROOT / "tfdp" / "keras_private.py"}
    touching = {path for path in sources("tfdp", "cluster") if re.search(private, path.read_text())}
    assert touching <= allowed


# Attributes with an underscore of what is not ours: model, optimizer, strategy, variables.
_FOREIGN = re.compile(
    r"\b(?:model|optimizer|metric|layer|variable|strategy|keras|tf|archive)\._[a-z]"
    r"|\.extended\b"
)


def test_private_attributes_of_keras_and_tensorflow_are_touched_in_one_place() -> None:
    touching = {
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sources("tfdp")
        for line in path.read_text().splitlines()
        if path.name != "keras_private.py" and _FOREIGN.search(line)
    }
    assert not touching


TRAIN_FLAGS = """recipe workdir steps epochs global_batch_size seed hparam checkpoint_every_steps
    eval_every_steps export_dir communication auto_shard startup_timeout_s tensorboard"""


def test_flags_of_training_do_not_vanish() -> None:
    text = run(["python", "-m", "tfdp.train", "--help"])
    flags = set(re.findall(r"--(?:\[no\])?(\w+)", text))
    assert set(TRAIN_FLAGS.split()) <= flags


def test_flags_are_what_settings_take() -> None:
    script = """
import dataclasses
from tfdp import train
from tfdp.publishing import options
from tfdp.settings import Settings
flags = {name: train._FLAGS[name].default for name in Settings.__dataclass_fields__}
flags |= options.given(train._FLAGS)
for field in dataclasses.fields(Settings):
    if field.default is not dataclasses.MISSING and field.name != "hparam":
        assert flags[field.name] == field.default, field.name
"""
    run(["python", "-c", script])


def documents() -> list[Path]:
    return [path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")] if path.is_file()]


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_in_documents_lead_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue  # elsewhere on the network
        file, _, anchor = target.partition("#")
        path = (document.parent / file).resolve() if file else document
        assert path.exists(), f"{document.name} links to {target}"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{document.name} links to {target}"


def anchors(document: Path) -> set[str]:
    """Names of a document's headings, as code hosts make them."""
    headings = re.findall(r"^#+ +(.+)$", document.read_text(), flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}
