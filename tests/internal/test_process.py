"""Age of a process."""

import subprocess
import sys
import time


def test_age_of_a_process_is_between_its_work_and_the_time_since_it_was_started() -> None:
    script = (
        "import time; time.sleep(0.2); from detrkit._internal.process import seconds_since_start as age; print(age())"
    )
    before = time.monotonic()
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    # the system counts in hundredths of a second
    assert 0.19 <= float(result.stdout) <= time.monotonic() - before + 0.02
