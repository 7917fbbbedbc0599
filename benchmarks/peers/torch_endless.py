"""PyTorch in ``recovery.py``: DDP under torchrun, with checkpoints, until it is killed.

Each rank reports the time of its first update. Rank 0 writes a checkpoint every ``every`` updates
and renames it into place; all ranks start from the last checkpoint.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import distributed, nn

from benchmarks.measuring import report
from benchmarks.peers import torch_models
from benchmarks.peers.models import BATCH, LEARNING_RATE, arrays

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main(task: str, every: int, path: Path) -> None:
    # Otherwise torchrun's workers would outlive it when it is killed.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    model = torch_models.build(task)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)
    step = 0
    if path.exists():
        saved = torch.load(path)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
    wrapped = nn.parallel.DistributedDataParallel(model)
    features, labels = map(torch.from_numpy, arrays(task, 50 * BATCH))
    if features.ndim == 4:
        features = features.permute(0, 3, 1, 2)
    loss_of = nn.CrossEntropyLoss()
    first_step = step + 1
    while True:
        batch = slice(step % 50 * BATCH, (step % 50 + 1) * BATCH)
        optimizer.zero_grad()
        loss_of(wrapped(features[batch]), labels[batch]).backward()
        optimizer.step()
        step += 1
        if step == first_step:
            report(rank=rank, pid=os.getpid(), step=step, at_s=time.monotonic())
        if rank == 0 and step % every == 0:
            saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(saved, path.with_suffix(".new"))
            path.with_suffix(".new").rename(path)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
