"""Where torch enters the pipeline, and so the one place to say how its threads wait.

OpenMP reads its policy when torch loads it. Its default, spinning, makes every step 4 to 20 times slower as soon as
two jobs share a processor (two queued experiments, say); waiting passively costs a lone job nothing measurable.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
