"""Changes global state when it is imported."""

import random

import numpy as np
import torch

from fusionkit_hostile.good import selector

torch.set_default_dtype(torch.float64)
torch.manual_seed(666)
np.random.seed(666)
random.seed(666)

SPEC = selector("hostile.mutates")
