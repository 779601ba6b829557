"""What all checks share."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from fl_sim.testing import ContractError
from fl_sim.testing.contract import make_twice

DRAWS = {
    "Python": random.random,
    "NumPy": np.random.random,
    "PyTorch": lambda: float(torch.rand(())),
}


@pytest.mark.parametrize("library", DRAWS)
def test_a_draw_from_a_global_state_is_found_and_the_state_is_left_as_it_was(library):
    draw = DRAWS[library]
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    expected = draw()
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    words = f"^a part changes the global random state of {library}"
    with pytest.raises(ContractError, match=words):
        make_twice("a part", draw)
    assert draw() == expected


def test_what_reads_a_global_state_without_changing_it_makes_two_things():
    first, second = make_twice("a part", torch.initial_seed)
    assert first != second
    assert make_twice("a part", lambda: 5) == (5, 5)


def test_a_broken_promise_fails_a_test_of_any_framework():
    assert issubclass(ContractError, AssertionError)
    code = "import sys, fl_sim.testing; print('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
