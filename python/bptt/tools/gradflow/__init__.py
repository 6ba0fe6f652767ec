"""How gradients flow through time: the norm of dL/dh_t at each step of an RNN, a GRU and an LSTM.

The loss L stands at the end of a sequence. On its way to step t its gradient is multiplied by one
Jacobian for each step in between, so its norm ||dL/dh_t||_2 goes up or down about exponentially
with the distance to the loss: it explodes or vanishes. Gates are there to keep it.

    settings.py   what is measured
    adding.py     the task
    measure.py    networks, training, norms and what they come to
    report.py     table, curves as CSV, summary as JSON, figure

Sources: Hochreiter and Schmidhuber, "Long Short-Term Memory" (1997); Bengio, Simard and Frasconi,
"Learning Long-Term Dependencies with Gradient Descent is Difficult" (1994); Pascanu, Mikolov and
Bengio, "On the Difficulty of Training Recurrent Neural Networks" (2013).
"""

from .adding import adding_problem
from .measure import NETWORKS, Flow, Summary, measure, run, summarize
from .settings import Settings

__all__ = [
    "NETWORKS",
    "Flow",
    "Settings",
    "Summary",
    "adding_problem",
    "measure",
    "run",
    "summarize",
]
