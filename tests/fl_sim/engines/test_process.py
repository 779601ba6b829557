import subprocess
import sys

import pytest

from fl_sim.engines.process import keep_freed_memory

_COUNT_FAULTS = """
import resource, numpy, threadpoolctl, torch
from fl_sim.engines.process import set_up_process

set_up_process()
for number in range(20):
    torch.ones(2, 10_000_000)
    if number == 9:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
threads = {pool["num_threads"] for pool in threadpoolctl.threadpool_info()}
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, *threads)
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="only the C library of Linux can be told")
def test_freed_memory_is_used_again_without_asking_the_system():
    words = [sys.executable, "-c", _COUNT_FAULTS]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    faults, threads = map(int, done.stdout.split())
    assert faults < 1000  # 200,000 pages of 4 KiB if each tensor were new
    assert threads == 1
