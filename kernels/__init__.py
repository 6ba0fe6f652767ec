"""Triton kernels of bptt.

cells.py    equations of one hidden unit in one step, forward and backward
tiles.py    what every kernel is made of: products, masks, loads and stores of one tile and step
forward.py  the forward kernels of both tiers
backward.py the backward kernels of both tiers
plan.py     which tier and which tile sizes a problem takes; imports no Triton
launch.py   tensors in, kernels launched, tensors out: the ops of torch.ops.bptt

Importing this package imports no Triton; `launch` does.
"""
