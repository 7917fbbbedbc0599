"""Which of a node's GPUs a worker uses, if several workers are on one node."""

from __future__ import annotations

from cluster.resolvers.place import Place, PlaceError


def own_gpus(place: Place | None, visible: int, cuda_visible_devices: str | None) -> range:
    """Returns which of the GPUs that this process sees it uses, by their index among them.

    A worker uses all, unless its engine says that other workers on the node see the same ones: then
    each takes an equal share, in the order of local ranks.

    Args:
        place: of this process; None if it trains alone.
        visible: number of GPUs that this process sees.
        cuda_visible_devices: the variable, which messages show; it may have been set for this
            worker or for all on the node.

    Raises:
        PlaceError: if several workers see the same GPUs, and can't share them equally.
    """
    everything = range(visible)
    if place is None or place.has_own_gpus or not visible or place.local_size in (None, 1):
        return everything
    local_rank, local_size = place.local_rank, place.local_size
    seen = f"this worker sees {visible} GPUs"
    if cuda_visible_devices is not None:
        seen += f" (CUDA_VISIBLE_DEVICES={cuda_visible_devices})"
    if local_rank is None:
        raise PlaceError(
            f"{seen} and shares its node with others, {local_size} in all, but its rank on the "
            "node is not known: set LOCAL_RANK beside LOCAL_WORLD_SIZE, or start one worker a node"
        )
    if not 0 <= local_rank < local_size:
        raise PlaceError(
            f"the rank of this worker on its node is {local_rank}: it has to be from 0 to "
            f"{local_size - 1}, as {local_size} workers are there"
        )
    if visible % local_size:
        raise PlaceError(
            f"{seen}, which {local_size} workers on its node can't share equally: let every worker "
            f"see all GPUs of the node and start as many workers as divide them, start one worker "
            "a node, or let the engine give each its own (srun --gpus-per-task=1)"
        )
    share = visible // local_size
    return everything[local_rank * share : (local_rank + 1) * share]
