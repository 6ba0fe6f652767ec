"""The backends: which one runs a recurrence and why, and those that Python plans."""
