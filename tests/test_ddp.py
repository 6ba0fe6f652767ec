"""Do two processes under DDP train to the weights of one process on the joined batch?"""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

import bptt

T, B, I, H, STEPS, RANKS = 6, 8, 5, 7, 5, 2


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = bptt.LSTM(I, H, 2, bidirectional=True)
        self.head = torch.nn.Linear(2 * H, 1)

    def forward(self, x, lengths):
        return self.head(self.layer(x, lengths=lengths)[0])


def train(rank, ranks, bucket_view=False):
    """Train on this rank's share of every batch; returns the weights."""
    torch.manual_seed(0)
    model = Model()
    if ranks > 1:
        model = DistributedDataParallel(model, gradient_as_bucket_view=bucket_view)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    data = torch.Generator().manual_seed(1)
    share = slice(rank * B // ranks, (rank + 1) * B // ranks)
    for _ in range(STEPS):
        x, target = (torch.randn(T, B, n, generator=data)[:, share] for n in (I, 1))
        lengths = torch.randint(1, T + 1, (B,), generator=data)[share]
        optimizer.zero_grad()
        (model(x, lengths) - target).pow(2).mean().backward()
        optimizer.step()
    plain = model.module if ranks > 1 else model
    return {name: p.detach().clone() for name, p in plain.named_parameters()}


def worker(rank, port, path):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    try:
        torch.save([train(rank, RANKS, view) for view in (False, True)], f"{path}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_train_to_the_weights_of_one(tmp_path):
    mp.spawn(worker, (free_port(), str(tmp_path)), nprocs=RANKS)
    expected = train(0, 1)
    torch.manual_seed(0)
    start = dict(Model().named_parameters())
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    for first, second in zip(*ranks, strict=True):
        for name, weight in expected.items():
            assert torch.equal(first[name], second[name]), name
            torch.testing.assert_close(first[name], weight, rtol=1e-5, atol=1e-6)
            assert (weight - start[name]).abs().max() > 1e-4, name  # it did train
