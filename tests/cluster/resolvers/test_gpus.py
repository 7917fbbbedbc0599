from __future__ import annotations

import pytest

from cluster.resolvers.gpus import own_gpus
from cluster.resolvers.place import Place, PlaceError


def place(local_rank: int | None, local_size: int | None, own: bool = False) -> Place:
    return Place(
        engine="an engine",
        found_by="X",
        rank=0,
        size=8,
        chief_host="a",
        local_rank=local_rank,
        local_size=local_size,
        has_own_gpus=own,
    )


@pytest.mark.parametrize(
    ("this", "visible", "used"),
    [
        (None, 4, [0, 1, 2, 3]),
        (place(0, 1), 4, [0, 1, 2, 3]),
        (place(None, None), 2, [0, 1]),
        (place(1, None), 2, [0, 1]),
        (place(1, 2, own=True), 1, [0]),
        (place(1, 2, own=True), 3, [0, 1, 2]),
        (place(None, 2), 0, []),
        (place(1, 2), 0, []),
        (place(0, 2), 4, [0, 1]),
        (place(1, 2), 4, [2, 3]),
        (place(3, 4), 4, [3]),
    ],
)
def test_a_worker_uses_its_share(this: Place | None, visible: int, used: list[int]) -> None:
    assert list(own_gpus(this, visible, None)) == used


@pytest.mark.parametrize(("local_size", "visible"), [(2, 2), (2, 8), (4, 8), (8, 8)])
def test_shares_are_equal_and_leave_none_out(local_size: int, visible: int) -> None:
    shares = [list(own_gpus(place(rank, local_size), visible, "")) for rank in range(local_size)]
    assert [gpu for share in shares for gpu in share] == list(range(visible))
    assert {len(share) for share in shares} == {visible // local_size}


@pytest.mark.parametrize(
    ("this", "visible", "message"),
    [
        (place(0, 2), 3, r"sees 3 GPUs \(CUDA_VISIBLE_DEVICES=5,6,7\), which 2 workers"),
        (place(1, 4), 1, "4 workers on its node can't share equally: let every worker see all"),
        (place(None, 2), 2, "set LOCAL_RANK beside LOCAL_WORLD_SIZE"),
        (place(2, 2), 2, "it has to be from 0 to 1"),
    ],
)
def test_what_can_not_be_shared_is_refused(this: Place, visible: int, message: str) -> None:
    with pytest.raises(PlaceError, match=message):
        own_gpus(this, visible, "5,6,7")
