from __future__ import annotations

import json
import os
import shutil
import threading
import types
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.running import Process, run
from tfdp import files
from tfdp.checkpoints import reading, state_file, store
from tfdp.checkpoints.store import Checkpoint, CheckpointStore
from tfdp.errors import BadInput, Diverged, Replaced, TrainingError, WorkdirInUse

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7, np.int64)}


@pytest.fixture
def kept(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=2, claim=files.Claim(tmp_path))


def save(kept: CheckpointStore, step: int, about: Any = None, arrays: Any = None) -> None:
    kept.save(step, arrays or {"a": np.full(3, step, np.float32)}, about or {})
    kept.wait()


def arrays_of(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    alone: Any = types.SimpleNamespace(count=1)
    return dict(reading.arrays(checkpoint, alone))


def steps_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_what_was_saved_is_read(kept: CheckpointStore) -> None:
    assert kept.latest() is None
    save(kept, 12, {"seed": 5, "run": "é"}, ARRAYS)
    found = kept.latest()
    assert found is not None
    assert (found.step, found.about) == (12, {"seed": 5, "run": "é"})
    assert arrays_of(found).keys() == ARRAYS.keys()
    for name, array in arrays_of(found).items():
        np.testing.assert_array_equal(array, ARRAYS[name])


DTYPES = "bool,uint8,int8,uint16,int16,float16,bfloat16,uint32,int32,float32,uint64,int64,float64"


@pytest.mark.parametrize("dtype", DTYPES.split(","))
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 2)])
def test_every_dtype_and_shape_comes_back(
    dtype: str, shape: tuple[int, ...], kept: CheckpointStore
) -> None:
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    array = (np.arange(np.prod(shape, dtype=int)) % 2 * 1.5).reshape(shape).astype(kind)
    save(kept, 1, arrays={"model/0000/layer/weight": array, "empty name? ": array})
    found = kept.latest()
    assert found is not None
    for back in arrays_of(found).values():
        assert back.dtype == array.dtype
        assert back.shape == array.shape
        assert back.tobytes() == array.tobytes()


def test_the_newest_stay(kept: CheckpointStore, tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save(kept, step)
    assert steps_in(tmp_path) == ["10", "100"]
    found = kept.latest()
    assert found is not None
    assert found.step == 100


@pytest.mark.parametrize("file", ["state.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "one bit"])
def test_a_damaged_one_is_passed_over(
    file: str, damage: str, kept: CheckpointStore, tmp_path: Path, capfd: Any
) -> None:
    save(kept, 1)
    save(kept, 2)
    path = tmp_path / "checkpoints" / "2" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else data)
    found = kept.latest()
    assert found is not None
    assert found.step == 1
    assert "checkpoints/2" in capfd.readouterr().err
    save(kept, 2)  # the run comes there again, and what it writes is sound
    found = kept.latest()
    assert found is not None
    assert found.step == 2
    assert steps_in(tmp_path) == ["1", "2"]


def test_another_format_is_refused_by_name(kept: CheckpointStore, tmp_path: Path) -> None:
    save(kept, 3)
    path = tmp_path / "checkpoints" / "3" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(BadInput, match=r"checkpoints/3 has format 99 .* reads format 2"):
        kept.latest()


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_what_is_not_a_number_is_not_saved(
    bad: float, dtype: Any, kept: CheckpointStore, tmp_path: Path
) -> None:
    kept.save(4, {"model/0000/weight": np.array([1.0, bad], dtype)}, {})
    with pytest.raises(Diverged, match="weight has a NaN or infinity at step 4"):
        kept.wait()
    assert steps_in(tmp_path) == []


@pytest.mark.parametrize("fails_at", [0, 1])
def test_a_writer_that_fails_half_way_leaves_the_one_before(
    fails_at: int, kept: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(kept, 1)
    written = []

    def full(path: Path, data: Any) -> Any:
        if len(written) == fails_at:
            path.write_bytes(b"abc")
            raise OSError(28, "No space left on device")
        written.append(path)
        return writers[path.name](path, data)

    writers = {"state.safetensors": state_file.write, "manifest.json": files.write_durably}
    monkeypatch.setattr(state_file, "write", full)
    monkeypatch.setattr(store, "write_durably", full)
    kept.save(2, ARRAYS, {})  # goes on while it is written
    with pytest.raises(TrainingError, match=r"checkpoints/2 could not be written: No space left"):
        kept.wait()
    assert [name for name in steps_in(tmp_path) if not name.startswith(".")] == ["1"]
    monkeypatch.undo()
    again = CheckpointStore(tmp_path / "checkpoints", keep=2, claim=files.Claim(tmp_path))
    assert steps_in(tmp_path) == ["1"], "what was left over is cleared"
    found = again.latest()
    assert found is not None
    assert found.step == 1


def test_a_failure_is_reported_at_the_next_save(
    kept: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_durably", full)
    kept.save(2, ARRAYS, {})
    with pytest.raises(TrainingError, match=r"checkpoints/2 could not be written: No space left"):
        kept.save(3, ARRAYS, {})


def test_training_goes_on_while_one_is_written(
    kept: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write = threading.Event()

    def slow(path: Path, arrays: Any) -> str:
        assert may_write.wait(60)
        return write(path, arrays)

    write = state_file.write
    monkeypatch.setattr(state_file, "write", slow)
    kept.save(1, ARRAYS, {})
    assert kept.latest() is None
    may_write.set()
    kept.wait()
    assert steps_in(tmp_path) == ["1"]


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
from tfdp.checkpoints import store
from tfdp import files

random.seed(int(sys.argv[2]))
folder = Path(sys.argv[1])

def kept():
    return store.CheckpointStore(folder, keep=2, claim=files.Claim(folder.parent))

def save(first, pipe):
    saving, step = kept(), first
    while True:
        step += 1
        # Two arrays, to recognize halves of two saves.
        arrays = {name: np.full(300_000, step, np.float32) for name in ("a", "b")}
        saving.save(step, arrays, {}, best=1)
        saving.wait()
        os.write(pipe, step.to_bytes(4, "little"))

at_least = 0
for _ in range(40):
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        save(at_least, writer)
    began = time.perf_counter()
    at_least = int.from_bytes(os.read(reader, 4), "little")
    save_s = time.perf_counter() - began
    until = time.perf_counter() + 3 * random.random() * save_s
    while time.perf_counter() < until:
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(writer)
    while word := os.read(reader, 4):
        at_least = int.from_bytes(word, "little")
    os.close(reader)
    found = kept().latest()
    assert found is not None and found.step in (at_least, at_least + 1), (found, at_least)
    for place in found.places.values():
        assert (place.array(found.mapped.part(place.start, place.stop)) == found.step).all()
    names = {path.name for path in folder.iterdir()}
    assert len(names - {"best", "1"}) <= 3, names  # killed between appearing and clearing up
    assert "1" in names
    at_least = found.step
print("SAVED", at_least)
"""


def test_kills_at_any_instant_of_a_save_leave_whole_ones(tmp_path: Path) -> None:
    command = ["python", "-c", KILLED, str(tmp_path / "checkpoints"), "1"]
    assert int(run(command).partition("SAVED ")[2]) >= 40


def test_the_best_stays_beside_the_newest(kept: CheckpointStore, tmp_path: Path) -> None:
    for step, best in ((1, 1), (2, 1), (3, 1), (4, 4), (5, 4), (6, 4)):
        kept.save(step, ARRAYS, {}, best=best)
    kept.wait()
    assert steps_in(tmp_path) == ["4", "5", "6", "best"]
    assert (tmp_path / "checkpoints" / "best" / "manifest.json").exists()
    kept.save(7, ARRAYS, {})
    kept.wait()
    assert steps_in(tmp_path) == ["6", "7"]


def test_a_replaced_owner_publishes_nothing(kept: CheckpointStore, tmp_path: Path) -> None:
    save(kept, 1)
    again = CheckpointStore(tmp_path / "checkpoints", keep=2, claim=files.Claim(tmp_path))
    with pytest.raises(Replaced, match=f"another process goes on with the run in {tmp_path}"):
        save(kept, 2)
    assert steps_in(tmp_path) == ["1"]
    save(again, 2)
    assert steps_in(tmp_path) == ["1", "2"]


@pytest.mark.parametrize("file", ["state.safetensors", "manifest.json"])
def test_losing_the_workdir_in_the_middle_of_a_save(
    file: str, kept: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the new owner finds half written, it clears away: nothing can appear later."""

    def lose(path: Path, data: Any) -> Any:
        result = writers[path.name](path, data)
        if path.name == file:
            CheckpointStore(tmp_path / "checkpoints", keep=2, claim=files.Claim(tmp_path))
        return result

    writers = {"state.safetensors": state_file.write, "manifest.json": files.write_durably}
    monkeypatch.setattr(state_file, "write", lose)
    monkeypatch.setattr(store, "write_durably", lose)
    with pytest.raises(Replaced):
        save(kept, 2)
    assert steps_in(tmp_path) == []


def test_losing_the_workdir_just_before_it_appears(kept: CheckpointStore, tmp_path: Path) -> None:
    """Between the last look at the claim and the rename."""
    claim = kept._claim
    look = claim.check

    def lose() -> None:
        look()
        CheckpointStore(tmp_path / "checkpoints", keep=2, claim=files.Claim(tmp_path))
        claim.check = look  # type: ignore[method-assign]

    claim.check = lose  # type: ignore[method-assign]
    with pytest.raises(Replaced):
        save(kept, 2)
    assert steps_in(tmp_path) == []


def test_files_that_are_not_checkpoints_are_left_alone(
    kept: CheckpointStore, tmp_path: Path
) -> None:
    save(kept, 1)
    (tmp_path / "checkpoints" / "notes.txt").write_text("mine")
    save(kept, 2)
    save(kept, 3)
    assert steps_in(tmp_path) == ["2", "3", "notes.txt"]
    shutil.rmtree(tmp_path / "checkpoints" / "3")
    found = kept.latest()
    assert found is not None
    assert found.step == 2


OWNER = """
import sys
from pathlib import Path
from tfdp import files
lock = files.lock_workdir(Path(sys.argv[1]))
print("owned", flush=True)
sys.stdin.read() if sys.argv[2] == "once" else __import__("time").sleep(600)
"""


def test_a_workdir_has_one_owner_at_a_time(tmp_path: Path) -> None:
    workdir = tmp_path / "new" / "run"
    with Process(["python", "-c", OWNER, str(workdir), "stay"]) as owner:
        owner.wait_for("owned")
        with pytest.raises(WorkdirInUse, match=f"another run uses --workdir={workdir}"):
            files.lock_workdir(workdir)
        assert "WorkdirInUse" in run(["python", "-c", OWNER, str(workdir), "once"], expect=1)
    # The owner was killed: nothing has to be cleared by hand.
    assert "owned" in run(["python", "-c", OWNER, str(workdir), "once"])


def test_a_shared_lock_of_a_workdir_excludes_all_but_others_of_its_kind(tmp_path: Path) -> None:
    locks = [files.lock_workdir(tmp_path, is_shared=True) for _ in range(2)]
    with pytest.raises(WorkdirInUse):
        files.lock_workdir(tmp_path)
    for lock in locks:
        os.close(lock)
    lock = files.lock_workdir(tmp_path)
    with pytest.raises(WorkdirInUse):
        files.lock_workdir(tmp_path, is_shared=True)
    os.close(lock)


def test_a_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.json"
    files.write_whole(path, "old")
    files.write_whole(path, "new, é")
    assert path.read_text() == "new, é"

    def full(path: Path, data: bytes) -> None:
        path.write_bytes(data[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_durably", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_whole(path, "newest")
    assert path.read_text() == "new, é"


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    contents = ["a" * 300_000, "b" * 300_000]
    files.write_whole(path, contents[0])
    done = threading.Event()
    seen: set[str] = set()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(40):
        files.write_whole(path, contents[i % 2])
    done.set()
    reader.join()
    assert seen <= set(contents)
    assert [each.name for each in tmp_path.iterdir()] == ["summary.json"]


def test_a_damaged_later_one_does_not_push_out_what_is_written(tmp_path: Path) -> None:
    kept = CheckpointStore(tmp_path, keep=1, claim=files.Claim(tmp_path))
    for step in (3000, 2500):
        save(kept, step)
        kept.wait()
        (tmp_path / "3000" / "state.safetensors").write_bytes(b"damaged")
    found = kept.latest()
    assert found is not None
    assert found.step == 2500


def test_a_manifest_of_another_kind_is_passed_over(kept: CheckpointStore, tmp_path: Path) -> None:
    save(kept, 1)
    save(kept, 2)
    kept.wait()
    manifest = next(path for path in tmp_path.rglob("manifest.json") if path.parent.name == "2")
    manifest.write_text("[]")
    found = kept.latest()
    assert found is not None
    assert found.step == 1
