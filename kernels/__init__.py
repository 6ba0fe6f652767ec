"""Triton kernels of bptt.

cells.py    equations of one hidden unit in one step, forward and backward
tiles.py    what every kernel is made of: products, masks, loads and stores of one tile and step
meeting.py  how the programs of one launch wait for one another
forward.py  the forward kernels of every tier
backward.py the backward kernels of every tier
plan.py     which tier and which tile sizes a problem takes; imports no Triton
launch.py   tensors in, kernels launched, tensors out: the ops of torch.ops.bptt

For machines without a GPU:

ahead_of_time.py  compiles every variant: registers, spills, shared memory
no_driver.py      launches that reach a driver which does nothing

Importing this package imports no Triton; `launch` does.
"""
