from __future__ import annotations

import concurrent.futures
import gzip
import os
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tfdp
from tests.tfdp.records import damage, offset, parse, payload, write
from tfdp.data import index_file, record_index

COUNTS = (5, 0, 1, 30, 7)
EXAMPLES = sum(COUNTS)


def numbers(source: tfdp.Source, indices: Any = None) -> list[int]:
    indices = range(len(source)) if indices is None else indices
    return source.read(tf.constant(list(indices), tf.int64))[0].numpy().tolist()


def index_files(folder: Path) -> list[Path]:
    return sorted(folder.glob(".tfdp-index-*"))


@pytest.mark.parametrize("size", [10, 30_000])  # many headers per block, and many blocks per record
def test_any_record_of_any_file_is_read(size: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(size)
    records = [rng.bytes(int(length)) for length in rng.integers(0, size, 40)]
    for file, some in enumerate((records[:17], [], records[17:])):
        with tf.io.TFRecordWriter(str(tmp_path / f"{file}.rec")) as writer:
            for record in some:
                writer.write(record)
    source = tfdp.from_tfrecords(tmp_path / "*.rec", lambda record: record)
    assert len(source) == 40
    for indices in (range(40), [39], [3, 4, 5, 16, 17, 18, 2, 2, 39, 0], rng.permutation(40)):
        (read,) = source.read(tf.constant(list(indices), tf.int64))
        assert read.numpy().tolist() == [records[i] for i in indices]


def test_an_idle_replica_gets_an_empty_batch(tmp_path: Path) -> None:
    write(tmp_path, COUNTS)

    def parsed(record: tf.Tensor) -> Any:
        return {"image": tf.zeros([4, 3]), "text": record}, tf.strings.length(record)

    source = tfdp.from_tfrecords(f"{tmp_path}/*", parsed)
    features, lengths = source.read(tf.constant([], tf.int64))
    assert features["image"].shape == (0, 4, 3)
    assert features["text"].shape == lengths.shape == (0,)
    assert source.element_spec() == (
        {"image": tf.TensorSpec([4, 3]), "text": tf.TensorSpec([], tf.string)},
        tf.TensorSpec([], tf.int32),
    )


def test_files_are_taken_by_name_and_paths_may_be_listed(tmp_path: Path) -> None:
    paths = write(tmp_path / "deep" / "er", COUNTS)
    for given in (
        f"{tmp_path}/**/*.tfrecord",
        tmp_path / "deep" / "*" / "part-*",
        [str(path) for path in reversed(paths)],
        paths,
        list((tmp_path / "deep" / "er").iterdir()),  # with the index of those before
    ):
        assert numbers(tfdp.from_tfrecords(given, parse)) == list(range(EXAMPLES))


@pytest.mark.parametrize(
    ("pattern", "options", "message"),
    [
        ("none-*", {}, "no file matches '.*none-"),
        ([], {}, "no file matches"),
        ("gs://bucket/*", {}, "gs://bucket/.* is remote.*mount it"),
        ("missing/x.tfrecord", {}, "no file matches"),
        (["missing.tfrecord"], {}, "missing.tfrecord can't be read: No such file"),
        ("*", {"run_length": 0}, "run_length is 0"),
        ("*", {"on_corrupt": "ignore"}, "on_corrupt is 'ignore'"),
    ],
)
def test_wrong_arguments_are_refused(
    pattern: Any, options: Any, message: str, tmp_path: Path
) -> None:
    write(tmp_path, [1])
    if isinstance(pattern, str) and ":" not in pattern:
        pattern = f"{tmp_path}/{pattern}"
    if isinstance(pattern, list):
        pattern = [f"{tmp_path}/{path}" for path in pattern]
    with pytest.raises(tfdp.BadInput, match=message):
        tfdp.from_tfrecords(pattern, parse, **options)


@pytest.mark.parametrize("kind", ["gzip", "zlib"])
def test_the_error_about_a_compressed_file_contains_the_command_that_converts_it(
    kind: str, tmp_path: Path
) -> None:
    (plain,) = write(tmp_path, [9])
    compress = {"gzip": gzip.compress, "zlib": zlib.compress}[kind]
    folder = tmp_path / "with space"
    folder.mkdir()
    (folder / "a.rec").write_bytes(compress(plain.read_bytes()))
    with pytest.raises(tfdp.BadInput, match=rf"a.rec is compressed \({kind}\)") as error:
        tfdp.from_tfrecords(f"{folder}/*", parse)
    command = str(error.value).splitlines()[-1]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(command, shell=True, check=True, timeout=30, env={"PATH": path})
    assert (folder / "a.rec.plain").read_bytes() == plain.read_bytes()


def test_the_index_file_is_used_as_long_as_the_files_are_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write(tmp_path, COUNTS)
    scans: list[Any] = []
    scan = index_file.scan
    monkeypatch.setattr(index_file, "scan", lambda *given: scans.append(given) or scan(*given))
    for _ in range(2):
        assert numbers(tfdp.from_tfrecords(f"{tmp_path}/*", parse)) == list(range(EXAMPLES))
    (index,) = index_files(tmp_path)
    assert len(scans) == 1

    def is_searched_again() -> bool:
        before = len(scans)
        source = tfdp.from_tfrecords(f"{tmp_path}/*", parse)
        source.read(tf.constant([len(source) - 1], tf.int64))
        return len(scans) > before

    whole = index.read_bytes()
    for wrong in (whole[:-8], whole + b"x", whole[:40], b"", b"{}\n", b"\x80\n"):
        index.write_bytes(wrong)
        assert is_searched_again()
        assert index.read_bytes() == whole
    os.utime(paths[0], ns=(1, 1))
    assert is_searched_again()
    assert not is_searched_again()
    write(tmp_path / "new", [3])
    (tmp_path / "new" / "part-000.tfrecord").rename(paths[1])
    assert is_searched_again()
    assert len(tfdp.from_tfrecords(f"{tmp_path}/*", parse)) == EXAMPLES + 3
    write(tmp_path / "new", [2])
    (tmp_path / "new" / "part-000.tfrecord").rename(tmp_path / "part-999.tfrecord")
    assert len(tfdp.from_tfrecords(f"{tmp_path}/*", parse)) == EXAMPLES + 5
    assert not list(tmp_path.glob(".tfdp-index-*.*"))  # nothing half-written


def test_index_dir_holds_the_indexes_of_several_folders(tmp_path: Path) -> None:
    for name, counts in (("a", [3]), ("b", [4])):
        write(tmp_path / name, counts)
    for _ in range(2):  # files of the same names, in two folders
        for name, count in (("a", 3), ("b", 4)):
            source = tfdp.from_tfrecords(
                f"{tmp_path}/{name}/*", parse, index_dir=tmp_path / "to" / "index"
            )
            assert numbers(source) == list(range(count))
    assert len(index_files(tmp_path / "to" / "index")) == 2
    assert not index_files(tmp_path / "a")


def test_an_index_that_can_not_be_written_is_refused_but_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, [3])
    with pytest.raises(tfdp.BadInput, match=r"/proc/nowhere: .*index_dir="):
        tfdp.from_tfrecords(f"{tmp_path}/*", parse, index_dir="/proc/nowhere")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "touch", refuse)  # root may write anywhere
        with pytest.raises(tfdp.BadInput, match="Read-only file system; give index_dir="):
            tfdp.from_tfrecords(f"{tmp_path}/*", parse)
        assert not index_files(tmp_path)
    tfdp.from_tfrecords(f"{tmp_path}/*", parse)
    monkeypatch.setattr(Path, "touch", refuse)
    assert len(tfdp.from_tfrecords(f"{tmp_path}/*", parse)) == 3  # only reads it


def test_workers_that_start_at_the_same_time_search_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Threads stand for processes: flock is held by an open file, not by a process.
    paths = [str(path) for path in write(tmp_path, [40] * 5)]
    scans: list[Any] = []
    at_lock, is_released = threading.Semaphore(0), threading.Event()
    scan, flock = index_file.scan, index_file.fcntl.flock

    def slow_scan(*arguments: Any) -> Any:
        scans.append(arguments)
        assert is_released.wait(60)
        return scan(*arguments)

    def watched_flock(descriptor: int, operation: int) -> None:
        at_lock.release()
        flock(descriptor, operation)

    monkeypatch.setattr(index_file, "scan", slow_scan)
    monkeypatch.setattr(index_file.fcntl, "flock", watched_flock)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        opening = [pool.submit(index_file.open_index, paths, None, False) for _ in range(2)]
        try:
            assert all(at_lock.acquire(timeout=60) for _ in opening)
        finally:
            is_released.set()
        for future in opening:
            index = future.result()
            assert index.counts.tolist() == [40] * 5
            assert index.spans[-1, 1] == Path(paths[-1]).stat().st_size
    assert len(scans) == 1
    assert len(index_files(tmp_path)) == 1


DAMAGES = {  # name: (change of a file of records 0 to 9, first bad record, words of the message)
    "truncated payload": (lambda d: d[: offset(9) + 20], 9, "the file ends in this record"),
    "truncated footer": (lambda d: d[:-1], 9, "the file ends in this record"),
    "truncated header": (lambda d: d[: offset(9) + 5], 9, "the file ends in this record's header"),
    "length": (lambda d: d[: offset(6)] + b"\xff" + d[offset(6) + 1 :], 6, "the record's length"),
    "no records at all": (
        lambda d: b"PNG" * 50,
        0,
        r"the record's length .* \(is this a TFRecord file\?\)",
    ),
    "short": (lambda d: b"tiny", 0, "the file ends in this record's header"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_refused_or_skipped_from_there_on(
    name: str, tmp_path: Path, capfd: Any
) -> None:
    change, bad, message = DAMAGES[name]
    first, second = write(tmp_path, [10, 4])
    first.write_bytes(change(first.read_bytes()))
    place = rf"part-000.tfrecord, byte {offset(bad)}: {message}"
    for _ in range(2):  # once from a search, once from the index file
        with pytest.raises(tfdp.BadInput, match=place + ".*on_corrupt"):
            tfdp.from_tfrecords([first, second], parse)
    capfd.readouterr()
    for _ in range(2):
        source = tfdp.from_tfrecords([first, second], parse, on_corrupt="skip")
        assert numbers(source) == [*range(bad), 10, 11, 12, 13]
        lines = [line for line in capfd.readouterr().err.splitlines() if "left out" in line]
        assert len(lines) == 1
        assert "part-000.tfrecord, byte" in lines[0]


@pytest.mark.parametrize("bad", [[0, 9], [3, 4, 7], list(range(10))])
def test_damaged_payloads_are_skipped_or_named_when_read(bad: list[int], tmp_path: Path) -> None:
    first, _ = write(tmp_path, [10, 4])
    for number in bad:
        damage(first, offset(number) + 12)
    good = [number for number in range(14) if number not in bad]
    source = tfdp.from_tfrecords(f"{tmp_path}/*", parse, on_corrupt="skip")
    assert len(source) == len(good)
    assert numbers(source) == good
    assert numbers(source, [len(good) - 1, 0, 1]) == [good[-1], good[0], good[1]]

    source = tfdp.from_tfrecords(f"{tmp_path}/*", parse)
    assert numbers(source, good) == good
    for indices, named in ((range(14), bad[0]), ([11, bad[-1]], bad[-1])):
        place = rf"part-000.tfrecord, byte {offset(named)}: the record can.*t be read"
        with pytest.raises(tf.errors.OpError, match=place):
            numbers(source, indices)


def test_records_of_two_files_are_not_merged_into_one_range(tmp_path: Path) -> None:
    # In the second file the only good record begins at the byte at which the first file ends.
    first, second = (tmp_path / name for name in ("a", "b"))
    for path, records in ((first, [b"abc"]), (second, [b"bad", b"def"])):
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in records:
                writer.write(record)
    damage(second, 13)
    source = tfdp.from_tfrecords([first, second], lambda record: record, on_corrupt="skip")
    (records,) = source.read(tf.constant([0, 1], tf.int64))
    assert records.numpy().tolist() == [b"abc", b"def"]


def test_several_corruptions_are_counted(tmp_path: Path, capfd: Any) -> None:
    first, second = write(tmp_path, [10, 4])
    damage(first, offset(2) + 12)
    damage(first, offset(5) + 12)
    second.write_bytes(second.read_bytes()[:-1])
    tfdp.from_tfrecords(f"{tmp_path}/*", parse, on_corrupt="skip")
    assert "and at 2 other places, in 2 files" in capfd.readouterr().err


def test_an_error_of_parse_is_raised_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, [3])

    def parse_wrongly(record: tf.Tensor) -> tf.Tensor:
        return tf.strings.to_number(record)

    with pytest.raises(tf.errors.InvalidArgumentError, match="StringToNumberOp could not"):
        numbers(tfdp.from_tfrecords(f"{tmp_path}/*", parse_wrongly))


def test_only_the_requested_records_are_read(tmp_path: Path) -> None:
    # All other records are damaged after the search: reading one of them would fail.
    (path,) = write(tmp_path, [200])
    source = tfdp.from_tfrecords(path, parse)
    whole = path.read_bytes()
    wanted = [*range(40, 56), *range(120, 136)]
    hidden = bytearray(b"\xff" * len(whole))
    for number in wanted:
        place = slice(offset(number), offset(number + 1))
        hidden[place] = whole[place]
    path.write_bytes(hidden)
    features, labels = source.read(tf.constant(wanted, tf.int64))
    assert features.numpy().tolist() == wanted
    assert labels.numpy().tolist() == [payload(number) for number in wanted]


def test_a_long_search_reports_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    paths = [str(path) for path in write(tmp_path, [2, 2])]
    scan_file, is_reported = record_index._scan_file, threading.Event()

    def slow(path: str, check_payloads: bool) -> Any:
        if path == paths[1]:
            assert is_reported.wait(60)
        return scan_file(path, check_payloads)

    def say(message: str) -> None:
        print(message)
        is_reported.set()

    monkeypatch.setattr(record_index, "_REPORT_EVERY_S", 0.05)
    monkeypatch.setattr(record_index, "_scan_file", slow)
    monkeypatch.setattr(record_index, "say", say)
    assert record_index.scan(paths).counts.tolist() == [2, 2]
    assert "searching 2 TFRecord files for their records: 1 done after" in capfd.readouterr().out
