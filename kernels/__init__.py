"""Triton kernels of bptt.

cells.py           equations of one hidden unit in one step, forward and backward
activations.py     what they are made of, by name
control.py         what a loop does besides: zoneout, dropout, bounds, where gradients stop
random.py          random numbers that are a function of their place
normalize.py       layer normalisation of rows, and
parts.py           sums over rows whose units are cut into tiles
tiles.py           what every kernel is made of: products, masks, loads and stores of one tile
meeting.py         how the programs of one launch wait for one another
forward.py         the forward kernel that keeps the state on chip
forward_tiles.py   those of the other tiers: the phases of a step, and who runs them
backward.py, backward_tiles.py  the same for the backward pass
plan.py            which tier and which tile sizes a problem takes; imports no Triton
launch.py          tensors in, kernels launched, tensors out: the ops of torch.ops.bptt

For machines without a GPU:

ahead_of_time.py  compiles every variant: registers, spills, shared memory
no_driver.py      launches that reach a driver which does nothing

Importing this package imports no Triton; `launch` does.
"""
