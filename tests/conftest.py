"""The one place where the surroundings of every test are set: no network, one thread, fixed seeds and examples."""

from __future__ import annotations

import os
import random

# before anything imports torch or huggingface_hub, which read them once; subprocesses inherit them
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from more, and workers would fight over cores

import numpy
import pytest
import torch
from hypothesis import settings

# every run tries the same examples; HYPOTHESIS_PROFILE=wide draws others in each, and more of them
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("wide", max_examples=1000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture(autouse=True)
def seeds():
    """Every test begins with the same random state."""
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def pocket():
    """Where the pocket model is, which is shipped."""
    from coterie.jobs.locate import locate

    return locate("pocket")
