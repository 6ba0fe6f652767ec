"""The compiled ops: importing it fills torch.ops.bptt. It has nothing of its own."""
