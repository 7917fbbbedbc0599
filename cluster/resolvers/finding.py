"""Finds which engine has started this process, and so which of how many workers it is.

Engines run inside of each other: torchrun in a step of Slurm, mpirun in a pod. A process then has
the variables of both, and is described by the inner one. So inner engines are asked first, and the
first whole description counts. A half one (WORLD_SIZE exported by a job script, without RANK) is an
error only if there is no whole one.

Slurm is asked before MPI, because ``srun --mpi=pmi2`` sets MPI's variables for Slurm's own tasks.
If the sizes differ, though, an MPI launcher has started this process inside of the step, and Slurm
leaves it to MPI.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Final

from cluster.resolvers import kubernetes, managed, slurm, variables
from cluster.resolvers.place import Place, PlaceError

Find = Callable[[Mapping[str, str]], Place | None]


def _find_sagemaker(environ: Mapping[str, str]) -> Place | None:
    return managed.find_sagemaker(environ, managed.read_resource_config())


def _find_kubernetes(environ: Mapping[str, str]) -> Place | None:
    return kubernetes.find(environ, kubernetes.own_name())


_AUTO: Final[tuple[Find, ...]] = (
    variables.find,
    slurm.find,
    variables.find_mpi,
    kubernetes.find_kubeflow,
    managed.find_vertex,
    _find_sagemaker,
    _find_kubernetes,
)
_ENGINES: Final[Mapping[str, tuple[Find, ...]]] = {
    "auto": _AUTO,
    "slurm": (slurm.find,),
    "kubernetes": (kubernetes.find_kubeflow, _find_kubernetes),
    "env": (variables.find, variables.find_mpi, managed.find_vertex, _find_sagemaker),
}
_MISSING: Final = {
    "slurm": "SLURM_STEP_ID is not set: start the workers with srun",
    "kubernetes": "JOB_COMPLETION_INDEX is not set: start the workers as an Indexed Job or a "
    "JobSet, and set TFDP_WORKERS to spec.completions",
    "env": "RANK and WORLD_SIZE are not set: set them and MASTER_ADDR for every worker, or start "
    "the workers with torchrun or mpirun",
}


def find_place(choice: str, environ: Mapping[str, str] = os.environ) -> Place | None:
    """Returns the place of this process among the workers of its run.

    TF_CONFIG is not read here.

    Args:
        choice: ``"auto"``, or the one engine to ask: ``"slurm"``, ``"kubernetes"``, ``"env"``
            (torchrun, MPI, Vertex AI, SageMaker, or variables that a person sets).
        environ: variables of the process.

    Returns:
        The place, or None if this process trains alone: its engine started one worker, or
        ``"auto"`` finds no engine.

    Raises:
        PlaceError: if a description is incomplete or wrong and there is no other, or the chosen
            engine has not started this process.
    """
    errors: list[PlaceError] = []
    for find in _ENGINES[choice]:
        try:
            place = find(environ)
        except variables.ChiefUnknown:
            raise  # an engine around MPI's launcher counts its nodes, not its processes
        except PlaceError as error:
            errors.append(error)
        else:
            if place is not None:
                return place if place.size > 1 else None
    if errors:
        raise errors[0]
    if choice != "auto":
        raise PlaceError(f"--cluster is {choice}, but {_MISSING[choice]}; or give --cluster=auto")
    return None
