"""What hosts get, and what they are asked, before workers start on them."""

from __future__ import annotations

import pytest

from cluster.hosts.agreement import differences
from cluster.hosts.host import Job
from cluster.hosts.variables import passed_on


def test_workers_get_the_variables_that_they_need() -> None:
    environ = {
        **{
            "PATH": "/bin",
            "PYTHONPATH": "/lib",
            "TF_CONFIG": "{}",
            "TFDP_X": "1",
            "KERAS_HOME": "k",
        },
        **{"CUDA_VISIBLE_DEVICES": "0", "NCCL_DEBUG": "INFO", "XLA_FLAGS": "-x"},
        **{"LD_LIBRARY_PATH": "/lib"},
    }
    others = {"HOME": "/root", "AWS_SECRET": "s", "SSH_AUTH_SOCK": "/tmp/a", "LANG": "C", "TF": "1"}
    assert passed_on(environ | others) == {"PYTHONUNBUFFERED": "1", **environ}
    assert passed_on(environ | others, ["LANG"])["LANG"] == "C"
    assert passed_on({"PYTHONUNBUFFERED": ""}) == {"PYTHONUNBUFFERED": ""}
    with pytest.raises(KeyError, match="DATA"):
        passed_on(environ, ["DATA"])


@pytest.mark.parametrize(
    ("command", "recipe"),
    [
        ("python -m tfdp.train --recipe=mine.py --steps=3", "mine.py"),
        ("python -m tfdp.train --recipe mine.py", "mine.py"),
        ("python -m tfdp.train -recipe=a=b.py", "a=b.py"),
        ("python -m tfdp.train --recipes=mine.py", None),
        ("python script.py", None),
    ],
)
def test_the_recipe_is_found_in_the_command(command: str, recipe: str | None) -> None:
    assert Job(command.split(), "/", {}).recipe == recipe


@pytest.mark.parametrize(
    ("program", "is_python"),
    [
        *[("python", True), ("/srv/venv/bin/python3.11", True), (".venv/bin/python3", True)],
        *[("./train.sh", False), ("pythonic", False), ("/python/bin/sh", False)],
    ],
)
def test_only_interpreters_are_asked_for_versions(program: str, is_python: bool) -> None:
    assert Job([program], "/", {}).is_python == is_python


def test_hosts_that_are_equal_do_not_differ() -> None:
    assert differences({}) == ""
    assert differences({"h1": {"keras": "3"}}) == ""
    assert differences({"h1": {"keras": "3"}, "h2": {"keras": "3"}}) == ""


def test_differences_are_named_with_values_and_hosts() -> None:
    facts = {
        "h1": {"python": "3.11", "keras": "3.15", "mine.py": "ab"},
        "h2": {"python": "3.11", "keras": "3.14", "mine.py": "ab"},
        "h3": {"python": "3.11", "keras": "3.15", "mine.py": "no file"},
    }
    assert differences(facts).startswith(
        "differ: keras is 3.15 on h1, h3 and 3.14 on h2; "
        "mine.py is ab on h1, h2 and no file on h3; use the same"
    )
