"""The recurrence of one layer: cells, the op, its transforms and gradients, the reference loop."""
