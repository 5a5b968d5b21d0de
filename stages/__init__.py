"""The pipeline: a folder a stage, in the order fetch < vocab < features < train < evaluate < register.

One thing must be said before anything else is imported: how torch's threads wait. OpenMP reads its policy when torch
loads it. Its default, spinning, makes every step 4 to 20 times slower as soon as two jobs share a processor (two queued
experiments, say); waiting passively costs a job that is alone about a tenth. OMP_WAIT_POLICY=ACTIVE gets it back.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
