"""Where trials run: GPUs, variables, arithmetic, errors. Real hosts are in tests/processes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tfdp.errors import BadInput
from tfdp.search.settings import TuneSettings
from tfdp.search.slot import Slot
from tfdp.search.slots import find_slots

LAUNCH = (sys.executable, "-m", "cluster.launch")


def settings(tmp_path: Path, **flags: Any) -> TuneSettings:
    return TuneSettings(
        recipe="mine.py", workdir=tmp_path / "search", objective="accuracy:max", **flags
    )


def write_program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def with_gpus(folder: Path, count: int) -> dict[str, str]:
    """An environment whose nvidia-smi lists so many GPUs, one of them with parts of its own."""
    lines = [f"GPU {i}: NVIDIA A100-SXM4-40GB (UUID: GPU-{i})" for i in range(count)]
    lines[1:1] = ["  MIG 3g.20gb Device 0: (UUID: MIG-7)"] if count else []
    script = 'test "$*" = -L || exit 9\n' + "\n".join(f"echo '{line}'" for line in lines)
    write_program(folder / "bin", "nvidia-smi", script)
    return {"PATH": f"{folder}/bin:/usr/bin:/bin"}


def devices(slots: list[Slot]) -> list[str | None]:
    return [slot.environ.get("CUDA_VISIBLE_DEVICES") for slot in slots]


class TestThisMachine:
    def test_a_machine_without_gpus_has_a_slot(self, tmp_path: Path) -> None:
        assert find_slots(settings(tmp_path), {"PATH": ""}) == [Slot("slot 0")]

    def test_or_as_many_as_asked_for_with_as_many_threads(self, tmp_path: Path) -> None:
        slots = find_slots(settings(tmp_path, parallel=3, threads_per_trial=4), {"PATH": ""})
        assert [slot.name for slot in slots] == ["slot 0", "slot 1", "slot 2"]
        for slot in slots:
            assert slot.launcher == ()
            assert slot.environ == {
                "TF_NUM_INTRAOP_THREADS": "4",
                "OMP_NUM_THREADS": "4",
            }

    def test_workers_of_a_trial_are_started_by_the_launcher(self, tmp_path: Path) -> None:
        (slot,) = find_slots(settings(tmp_path, workers_per_trial=2), {"PATH": ""})
        assert slot.launcher == (*LAUNCH, "--workers=2", "--")

    def test_gpus_are_counted_without_tensorflow_and_shared_out(self, tmp_path: Path) -> None:
        slots = find_slots(settings(tmp_path), with_gpus(tmp_path, 3))
        assert devices(slots) == ["0", "1", "2"]
        assert [slot.name for slot in slots] == ["gpu 0", "gpu 1", "gpu 2"]
        slots = find_slots(settings(tmp_path, workers_per_trial=2), with_gpus(tmp_path, 5))
        assert devices(slots) == ["0,1", "2,3"]
        slots = find_slots(settings(tmp_path, parallel=1), with_gpus(tmp_path, 3))
        assert devices(slots) == ["0"], "as many as with another --parallel"

    @pytest.mark.parametrize(
        ("visible", "expected"),
        [
            ("2,5", ["2", "5"]),
            ("GPU-8932f937,GPU-4cb30b3d", ["GPU-8932f937", "GPU-4cb30b3d"]),
            (" 3 , 1", ["3", "1"]),
            ("3,-1,1", ["3"]),  # as CUDA reads it
            ("", [None]),
            ("-1", [None]),
        ],
    )
    def test_gpus_that_are_visible_here_count(
        self, tmp_path: Path, visible: str, expected: list[str | None]
    ) -> None:
        environ = with_gpus(tmp_path, 4) | {"CUDA_VISIBLE_DEVICES": visible}
        assert devices(find_slots(settings(tmp_path), environ)) == expected

    @pytest.mark.parametrize(
        ("flags", "gpus", "message"),
        [
            (
                {"parallel": 3, "workers_per_trial": 2},
                4,
                r"--parallel is 3, but this machine's 4 GPUs \(0,1,2,3\) are enough for 2 trials "
                "of 2 workers",
            ),
            ({"workers_per_trial": 2}, 1, r"^this machine's 1 GPUs \(0\) are enough for 0 trials"),
        ],
    )
    def test_too_few_gpus_are_an_error(
        self, tmp_path: Path, flags: dict[str, int], gpus: int, message: str
    ) -> None:
        with pytest.raises(BadInput, match=message):
            find_slots(settings(tmp_path, **flags), with_gpus(tmp_path, gpus))

    @pytest.mark.parametrize(
        "environ",
        [
            {"TF_CONFIG": '{"cluster": {"worker": ["h1:1", "h2:1"]}}'},
            {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "h1"},
            {
                **{"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1"},
                **{"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "n[1-2]"},
            },
        ],
    )
    def test_a_search_that_is_started_by_several_processes_is_an_error(
        self, tmp_path: Path, environ: dict[str, str]
    ) -> None:
        with pytest.raises(BadInput, match="a search is started once"):
            find_slots(settings(tmp_path), {"PATH": ""} | environ)

    def test_a_task_of_slurm_that_is_alone_uses_its_own_resources(self, tmp_path: Path) -> None:
        alone = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NODELIST": "n1", "SLURM_PROCID": "0"}
        environ = {"PATH": "", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", **alone}
        assert find_slots(settings(tmp_path, parallel=2), environ)[1] == Slot("slot 1")


class TestHosts:
    """With a stand-in for ssh, which runs the script here: all hosts see the same files."""

    @pytest.fixture
    def environ(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
        # The last word of the command is the script; the one before it is the host.
        script = 'while [ $# -gt 2 ]; do shift; done; export HOST="$1"; eval "$2"'
        write_program(tmp_path / "ssh", "ssh", script)
        path = f"{tmp_path}/bin:{tmp_path}/ssh:/usr/bin:/bin"
        monkeypatch.setenv("PATH", path)
        return {"PATH": path}

    def test_trials_take_the_workers_of_hosts_in_order(
        self, tmp_path: Path, environ: dict[str, str]
    ) -> None:
        flags = settings(tmp_path, hosts="h1:3,me@h2,[fd00::7]:3", workers_per_trial=2)
        slots = find_slots(flags, environ)
        assert [slot.launcher for slot in slots] == [
            (*LAUNCH, "--hosts=h1:2", "--"),
            (*LAUNCH, "--hosts=h1:1,me@h2:1", "--"),
            (*LAUNCH, "--hosts=[fd00::7]:2", "--"),
        ]
        assert [slot.name for slot in slots] == ["h1", "h1+me@h2", "fd00::7"]
        assert not list(flags.workdir.iterdir()), "the file that hosts had to see is gone"

    def test_flags_and_variables_are_passed_on(
        self, tmp_path: Path, environ: dict[str, str]
    ) -> None:
        (tmp_path / "config").touch()
        flags = settings(
            tmp_path,
            hosts="h1:4",
            parallel=2,
            threads_per_trial=1,
            ssh_config=tmp_path / "config",
        )
        first, second = find_slots(flags, environ)
        assert (first.name, second.name) == ("h1", "h1 #2")
        assert first.launcher == second.launcher
        assert f"--ssh_config={tmp_path}/config" in first.launcher
        assert "--env=OMP_NUM_THREADS" in first.launcher, "TF_* is passed on anyway"
        assert first.environ["TF_NUM_INTRAOP_THREADS"] == "1"

    def test_workers_share_the_gpus_of_their_host(
        self, tmp_path: Path, environ: dict[str, str]
    ) -> None:
        with_gpus(tmp_path, 4)
        slots = find_slots(settings(tmp_path, hosts="h1:2,h2:2"), environ)
        assert devices(slots) == ["0,1", "2,3", "0,1", "2,3"]
        slots = find_slots(settings(tmp_path, hosts="h1:4,h2:4", workers_per_trial=8), environ)
        assert devices(slots) == ["0,1,2,3"]

    @pytest.mark.parametrize(
        ("hosts", "workers", "message"),
        [
            ("h1:8,h2:4", 1, "same number of GPUs everywhere .*h1 has 4 for 8 workers; h2 has 4"),
            ("h1:2,h2:4", 1, "same number of GPUs everywhere"),
            ("h1:4,h2:4", 3, "would have the GPUs 3 on h1, 0,1 on h2"),
        ],
    )
    def test_gpus_that_trials_would_not_share_equally_are_an_error(
        self, tmp_path: Path, environ: dict[str, str], hosts: str, workers: int, message: str
    ) -> None:
        with_gpus(tmp_path, 4)
        with pytest.raises(BadInput, match=message):
            find_slots(settings(tmp_path, hosts=hosts, workers_per_trial=workers), environ)
        without = environ | {"CUDA_VISIBLE_DEVICES": ""}
        slots = find_slots(settings(tmp_path, hosts=hosts, workers_per_trial=workers), without)
        assert set(devices(slots)) == {None}

    def test_a_workdir_that_a_host_does_not_see_is_an_error(
        self, tmp_path: Path, environ: dict[str, str]
    ) -> None:
        write_program(tmp_path / "bin", "cat", 'test "$HOST" = h2 || exec /bin/cat "$@"')
        with pytest.raises(BadInput, match="can't be seen on h2: use a folder on a file system"):
            find_slots(settings(tmp_path, hosts="h1,h2"), environ)

    def test_a_host_that_can_not_be_reached_is_an_error(
        self, tmp_path: Path, environ: dict[str, str]
    ) -> None:
        write_program(
            tmp_path / "ssh", "ssh", "echo 'Permission denied (publickey).' >&2; exit 255"
        )
        with pytest.raises(BadInput, match=r"host h1 .* can't be reached: Permission denied"):
            find_slots(settings(tmp_path, hosts="h1"), environ)

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ({"hosts": "h1:x"}, "NAME:WORKERS"),
            ({"hosts": "h1:2,h2", "parallel": 4}, "has 3 workers, enough for 3 trials of 1"),
            ({"hosts": "h1", "workers_per_trial": 2}, "has 1 workers, enough for 0 trials of 2"),
            ({"hosts": "h1", "ssh_config": Path("nowhere")}, "nowhere: there is no such file"),
        ],
    )
    def test_what_can_not_be_is_an_error(
        self, tmp_path: Path, environ: dict[str, str], flags: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(BadInput, match=message):
            find_slots(settings(tmp_path, **flags), environ)


class TestSlurm:
    """With a stand-in for srun that does nothing."""

    @pytest.fixture
    def environ(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
        write_program(tmp_path / "bin", "srun", f'echo "$@" >> {tmp_path}/calls')
        monkeypatch.setattr("tfdp.search.slots_slurm._try", lambda *_: None)
        return {
            "PATH": f"{tmp_path}/bin:/usr/bin:/bin",
            **{"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "7"},
            **{"SLURM_TASKS_PER_NODE": "3(x2),1", "SLURM_JOB_CPUS_PER_NODE": "12(x2),4"},
        }

    def flags(self, slot: Slot) -> str:
        (found,) = [word for word in slot.launcher if word.startswith("--srun_flags=")]
        return found.partition("=")[2]

    def test_each_task_of_the_job_is_a_slot(self, tmp_path: Path, environ: dict[str, str]) -> None:
        slots = find_slots(settings(tmp_path, threads_per_trial=2), environ)
        assert [slot.name for slot in slots] == [f"slot {i}" for i in range(7)]
        assert self.flags(slots[0]) == (
            "--exact --nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task=4 "
            "--distribution=block"
        )
        assert slots[0].launcher[:3] == ("env", "-u", "SLURM_NTASKS")
        assert slots[0].environ["TF_NUM_INTRAOP_THREADS"] == "2"

    def test_a_trial_of_several_workers_is_on_one_node(
        self, tmp_path: Path, environ: dict[str, str]
    ) -> None:
        slots = find_slots(settings(tmp_path, workers_per_trial=2), environ)
        assert len(slots) == 2, "one on each of the nodes with three tasks"
        assert "--nodes=1 --ntasks=2 --ntasks-per-node=2" in self.flags(slots[0])

    def test_or_on_whole_nodes(self, tmp_path: Path, environ: dict[str, str]) -> None:
        environ |= {"SLURM_TASKS_PER_NODE": "2(x5)", "SLURM_JOB_CPUS_PER_NODE": "2(x5)"}
        slots = find_slots(settings(tmp_path, workers_per_trial=4), environ)
        assert len(slots) == 2
        assert "--nodes=2 --ntasks=4 --ntasks-per-node=2 --cpus-per-task=1" in self.flags(slots[0])

    def test_a_job_without_a_number_of_tasks_has_one_on_each_node(
        self, tmp_path: Path, environ: dict[str, str]
    ) -> None:
        del environ["SLURM_NTASKS"]
        slots = find_slots(settings(tmp_path), environ)
        assert len(slots) == 3
        assert "--cpus-per-task=4" in self.flags(slots[0])

    @pytest.mark.parametrize(
        ("variables", "expected"),
        [
            ({"SLURM_CPUS_PER_TASK": "2"}, "--cpus-per-task=2 --distribution=block"),
            ({"SLURM_MEM_PER_NODE": "6000"}, "--mem=4000"),
            ({"SLURM_MEM_PER_CPU": "1000"}, "--distribution=block"),  # scales by itself
            ({"SLURM_GPUS_PER_TASK": "a100:2"}, "--gpus-per-task=a100:2"),
            ({"SLURM_GPUS_ON_NODE": "6", "SLURM_GPUS_PER_NODE": "6"}, "--gpus-per-task=2"),
        ],
    )
    def test_a_trial_gets_its_share(
        self, tmp_path: Path, environ: dict[str, str], variables: dict[str, str], expected: str
    ) -> None:
        slots = find_slots(settings(tmp_path, workers_per_trial=2), environ | variables)
        assert self.flags(slots[0]).endswith(expected)

    @pytest.mark.parametrize(
        ("flags", "variables", "message"),
        [
            ({"parallel": 8}, {}, "--parallel is 8, but this job's nodes have 3, 3, 1 tasks, enou"),
            ({"workers_per_trial": 4}, {}, "takes whole nodes, but this job's nodes have 3, 3, 1"),
            ({}, {"SLURM_GPUS_ON_NODE": "4"}, "4 GPUs on a node, which its 3 tasks there can't"),
            ({}, {"PATH": ""}, "srun does not exist here"),
        ],
    )
    def test_what_can_not_be_is_an_error(
        self,
        tmp_path: Path,
        environ: dict[str, str],
        flags: dict[str, int],
        variables: dict[str, str],
        message: str,
    ) -> None:
        with pytest.raises(BadInput, match=message):
            find_slots(settings(tmp_path, **flags), environ | variables)

    def test_a_shell_of_salloc_that_is_a_step_is_in_the_job(
        self, tmp_path: Path, environ: dict[str, str]
    ) -> None:
        environ |= {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}
        assert len(find_slots(settings(tmp_path), environ)) == 7
