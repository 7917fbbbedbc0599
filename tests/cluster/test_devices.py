"""How workers on one machine share its GPUs."""

from __future__ import annotations

import pytest

from cluster import devices


@pytest.mark.parametrize(
    ("visible", "workers", "shares"),
    [
        ("0,1,2,3", 2, ["0,1", "2,3"]),
        ("5,GPU-7", 2, ["5", "GPU-7"]),
        ("3", 1, ["3"]),
    ],
)
def test_workers_get_equal_shares(visible: str, workers: int, shares: list[str]) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": visible}
    found = [devices.of_worker(environ, index, workers) for index in range(workers)]
    assert found == [{"CUDA_VISIBLE_DEVICES": share} for share in shares]


@pytest.mark.parametrize(
    "environ",
    [{}, *({"CUDA_VISIBLE_DEVICES": text} for text in ("", "-1", "0", "0,1,2"))],
)
def test_all_see_the_same_if_they_can_not_be_shared(environ: dict[str, str]) -> None:
    assert devices.of_worker(environ, 1, 2) == {}
