"""A call of a layer, from its arguments to one recurrence a layer: checks, stacking, packing."""
