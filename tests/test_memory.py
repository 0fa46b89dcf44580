"""What is said about memory, and what freed memory costs."""

import subprocess
import sys
import textwrap

import pytest

from jepa_rl import memory


def test_what_is_available_lies_between_nothing_and_the_machine():
    assert 2**20 < memory.available_memory() < 2**45


def test_the_limit_of_a_container_counts(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 50\n")
    assert memory._left_in_cgroup(tmp_path) == 350
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._left_in_cgroup(tmp_path) is None
    assert memory._left_in_cgroup(tmp_path / "nothing") is None


@pytest.mark.skipif(not memory.keep_freed_memory(), reason="only glibc hands large buffers back at once")
def test_freed_memory_is_kept():
    """The kernel has to clear pages that were handed back: page faults say whether they were."""
    script = """
        import resource, sys
        import torch
        from jepa_rl.memory import keep_freed_memory
        torch.set_num_threads(1)
        if sys.argv[1] == "keep":
            keep_freed_memory()
        def fill():
            return torch.ones(16 * 2**20)  # 64 MiB
        for _ in range(12):  # the heap grows until the buffer finds a place in it
            fill()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            fill()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """

    def faults(mode: str) -> int:
        return int(subprocess.check_output([sys.executable, "-c", textwrap.dedent(script), mode], text=True))

    # Where the heap cannot grow (one process in hundreds), malloc maps every large buffer whatever it is told.
    assert min(faults("keep"), faults("keep")) < 0.1 * faults("leave")


def test_what_does_not_fit_is_refused_before_it_is_allocated():
    memory.check_memory("nothing", 0, "")
    with pytest.raises(
        ValueError, match=r"a table takes 1152921504\.6 GB, but only [\d.]+ GB .* free: lower it"
    ):
        memory.check_memory("a table", 2**60, "lower it")
