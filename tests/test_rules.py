"""Rules of the house: who imports whom, what must not vanish, links that lead somewhere."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import ROOT, run

PACKAGES = ("tfdp", "serving", "cluster")
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


# Who may import whom. A room is a folder, or the modules that lie in it directly; rooms of one
# package are listed from the top to the bottom, and no import points up.
COMMANDS = {
    **dict.fromkeys(
        ("tfdp.train", "tfdp.tune", "tfdp.evaluate", "tfdp.predict", "tfdp.export"), "commands"
    ),
    **dict.fromkeys(("cluster.launch", "cluster.slurm.__main__"), "cluster.commands"),
    **dict.fromkeys(
        ("serving.server.__main__", "serving.server.command"), "serving.server command"
    ),
    "serving.client.__main__": "serving.client command",
}
MAY_IMPORT = {
    "commands": {
        *("tfdp.search", "tfdp.run", "tfdp.cli", "tfdp.workers", "tfdp"),
        *("cluster.launching", "cluster"),
    },
    "tfdp.search": {
        *("tfdp.run", "tfdp.publishing", "tfdp.step", "tfdp.cli", "tfdp.workers", "tfdp"),
        *("cluster.launching", "cluster.hosts", "cluster.resolvers", "cluster"),
    },
    "tfdp.run": {
        *("tfdp.publishing", "tfdp.trainer", "tfdp.checkpoints", "tfdp.step", "tfdp.data"),
        *("tfdp.cli", "tfdp.workers", "tfdp"),
    },
    "tfdp.publishing": {"tfdp.data", "tfdp.cli", "tfdp"},
    "tfdp.trainer": {"tfdp.step", "tfdp.data", "tfdp.workers", "tfdp"},
    "tfdp.checkpoints": {"tfdp.step", "tfdp.workers", "tfdp"},
    "tfdp.step": {"tfdp.data", "tfdp"},
    "tfdp.data": {"tfdp.workers", "tfdp"},
    "tfdp.cli": {"tfdp.workers", "tfdp", "cluster"},
    "tfdp.workers": {"tfdp", "cluster.meeting", "cluster.resolvers", "cluster"},
    "tfdp": {"cluster.meeting", "cluster"},  # errors, logs, files, a recipe's form
    "tfdp.recipes": {"tfdp"},  # as a user's: by public names alone
    "cluster.commands": {"cluster.slurm", "cluster.launching", "cluster.hosts"},
    "cluster.slurm": {"cluster.launching", "cluster"},
    "cluster.launching": {"cluster.hosts", "cluster"},
    "cluster.hosts": {"cluster"},
    "cluster.meeting": {"cluster.resolvers", "cluster"},
    "cluster.resolvers": set(),
    "cluster": set(),  # addresses, exit codes, the policy of restarts
    "serving.server command": {
        *("serving.server.rest", "serving.server.frontend", "serving.server.calls"),
        "serving.server.models",
    },
    "serving.server.rest": {
        *("serving.server.frontend", "serving.server.calls", "serving.server.models"),
        *("serving.server", "serving"),
    },
    "serving.server.frontend": {"serving.server.models", "serving.server", "serving.protos"},
    "serving.server.calls": {"serving.server.models", "serving.server", "serving"},
    "serving.server.models": {"serving.server", "serving", "serving.protos"},
    "serving.server": set(),  # errors, deadlines, configuration files
    "serving.rollout": {"serving.client", "serving.protos"},
    "serving.client command": {"serving.client.command"},
    "serving.client.command": {"serving.client", "serving"},
    "serving.client": {"serving", "serving.protos"},
    "serving": {"serving.protos"},  # arrays as tensors, for client and server
    "serving.protos": set(),
}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sources(*PACKAGES)}
FOLDERS = {name for name, path in MODULES.items() if path.name == "__init__.py"}


def module_of(imported: str) -> str | None:
    """The module of ours that an imported name is, or is in."""
    while imported and imported not in MODULES:
        imported = imported.rpartition(".")[0]
    return imported or None


def imported_modules(module: str) -> set[str]:
    """Modules of ours that a module imports, ``if TYPE_CHECKING`` included."""
    path = MODULES[module]
    if module == "tfdp":  # imports public names, lazily, for users
        return set()
    return {found for name in imports(path) if (found := module_of(name))} - {module}


def room_of(module: str) -> str:
    if module in COMMANDS:
        return COMMANDS[module]
    return module if module in FOLDERS else module.rpartition(".")[0]


def test_rooms_import_only_the_rooms_below_them() -> None:
    wrong = {
        f"{module} imports {imported}"
        for module in MODULES
        for imported in imported_modules(module)
        if room_of(imported) not in {room_of(module), *MAY_IMPORT.get(room_of(module), set())}
    }
    assert not wrong
    assert {room_of(module) for module in MODULES} == set(MAY_IMPORT)


def test_the_table_of_rooms_has_no_circle_and_no_idle_entry() -> None:
    assert not circle({room: set(below) for room, below in MAY_IMPORT.items()})
    used = {
        (room_of(module), room_of(imported))
        for module in MODULES
        for imported in imported_modules(module)
    }
    assert {(room, below) for room, rooms in MAY_IMPORT.items() for below in rooms} <= used


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    assert not circle({module: imported_modules(module) for module in MODULES})


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The names on a circle of a graph; none if there is no circle."""
    done: set[str] = set()

    def visit(name: str, above: list[str]) -> list[str]:
        if name in above:
            return [*above[above.index(name) :], name]
        if name in done:
            return []
        for below in graph.get(name, ()):
            if found := visit(below, [*above, name]):
                return found
        done.add(name)
        return []

    return next((found for name in graph if (found := visit(name, []))), [])


def test_every_folder_is_in_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {name_of(path) for path in sources(*PACKAGES) if path.name == "__init__.py"}
    assert set(project["tool"]["setuptools"]["packages"]) == folders


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


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
    allowed = {ROOT / "tfdp" / "step" / "keras_private.py"}
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


def test_data_uses_nothing_of_keras_but_floatx_and_its_datasets() -> None:
    used = {
        name
        for path in sources("tfdp/data")
        for name in re.findall(r"\bkeras\.[\w.]+", path.read_text())
    }
    assert used <= {
        "keras.config.floatx",
        "keras.utils.PyDataset",
        "keras.utils.pack_x_y_sample_weight",
    }


TRAIN_FLAGS = """recipe workdir steps epochs global_batch_size seed hparam checkpoint_every_steps
    eval_every_steps export_dir communication auto_shard startup_timeout_s tensorboard"""


def test_flags_of_training_do_not_vanish() -> None:
    text = run(["python", "-m", "tfdp.train", "--help"])
    flags = set(re.findall(r"--(?:\[no\])?(\w+)", text))
    assert set(TRAIN_FLAGS.split()) <= flags


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
