"""Many runs: a sweep file says which, a plan looks up what is done, and what is left is run.

`file` reads sweep files, `costs` and `planning` make the plan, `work` makes one run in whatever process it is
called in; `pool` calls it in processes of this machine, `slurm` and `rays` on many.
"""

from stmbench.sweep.file import Sweep, load
from stmbench.sweep.planning import Item, Plan, planned
from stmbench.sweep.work import Ended, Outcome, Started, Task, Told

__all__ = ["Ended", "Item", "Outcome", "Plan", "Started", "Sweep", "Task", "Told", "load", "planned"]
