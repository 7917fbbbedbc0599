"""PyTorch: DistributedDataParallel over gloo, or one process alone.

Configured by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. It has no accuracy and no data loader
(batches are slices of an array in memory, in random order), because both would cost it time. Images
are channels-last and optimizers fused, which is faster here.
"""

from __future__ import annotations

import argparse
import os

import torch
from torch import distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from benchmarks.measuring import EpochTimes, report
from benchmarks.peers import torch_models
from benchmarks.peers.models import BATCH, EPOCHS, LEARNING_RATE, TASKS, arrays


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--steps", type=int, required=True, help="in an epoch")
    parser.add_argument("--bf16", action="store_true", help="send gradients as bfloat16")
    flags = parser.parse_args()
    workers = int(os.environ.get("WORLD_SIZE", "1"))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    task = TASKS[flags.task]
    model = torch_models.build(flags.task)
    features, labels = map(torch.from_numpy, arrays(flags.task, flags.steps * BATCH))
    if features.ndim == 4:
        features = features.permute(0, 3, 1, 2)  # the memory layout stays channels-last
        model = model.to(memory_format=torch.channels_last)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    parameters += sum(b.numel() for b in model.buffers() if b.ndim)  # as Keras counts them
    if workers > 1:
        distributed.init_process_group("gloo")
        model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        if flags.bf16:
            # PyTorch refuses the hook itself without CUDA, but a function that calls it works.
            model.register_comm_hook(None, lambda group, bucket: bf16_compress_hook(group, bucket))
    optimizer_class = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[task.optimizer]
    optimizer = optimizer_class(model.parameters(), LEARNING_RATE, fused=True)
    loss_of = nn.CrossEntropyLoss()

    times = EpochTimes()
    for _ in range(EPOCHS):
        total = torch.zeros(())
        for indices in torch.randperm(len(labels)).split(BATCH):
            optimizer.zero_grad()
            loss = loss_of(model(features[indices]), labels[indices])
            loss.backward()
            optimizer.step()
            total += loss.detach()
        float(total)
        times.record()
    report(step_s=times.step_s(flags.steps), parameters=parameters)
    if workers > 1:
        # Destroying gloo sometimes aborts the process ("terminate called without an active
        # exception"). So the process exits without that, once no process waits for another.
        distributed.barrier()
        os._exit(0)


if __name__ == "__main__":
    main()
