"""Measurements of recurrent layers beside what a user would take instead.

`problems` says what is measured, `providers` by whom, `timing` and `memory` how, `floor` what is
the least that a device allows; `run` goes through a grid, `results` reads and writes it, `report`
and `compare` show it. `accuracy` holds layers against torch.nn and float64.
"""
