"""What the system tests share: the kit on the path, folders, targets that never outlive their test, time limits.

Every test has a limit in seconds, 120 unless it says otherwise with @pytest.mark.limit(SECONDS), which a signal
enforces. A test that needs something this machine lacks fails and names it.
"""

import os
import pathlib
import shutil
import signal
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from kit import target as target_module  # noqa: E402  (the path comes first)
from kit import tools, volume  # noqa: E402

DEFAULT_LIMIT = 120
HUGE_PAGES_NEEDED = 768


def pytest_configure(config):
    config.addinivalue_line("markers", "limit(seconds): the test's time limit")


def pytest_sessionstart():
    """Fails at once, with one clear message, when no test could run."""
    free = 0
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("HugePages_Free:"):
            free = int(line.split()[1])
    if free < HUGE_PAGES_NEEDED:
        tools.run(tools.ROOT / "spdk" / "hugepages.sh", limit=60)
    if os.geteuid() != 0:
        pytest.exit("the system tests need root: SPDK's huge pages are root's", returncode=2)


class TimeIsUp(Exception):
    """The test's limit has passed."""


@pytest.fixture(autouse=True)
def time_limit(request):
    """The alarm interrupts whatever the test waits for."""
    marker = request.node.get_closest_marker("limit")
    seconds = marker.args[0] if marker else DEFAULT_LIMIT

    def ring(number, frame):
        raise TimeIsUp("the test took longer than %d s" % seconds)

    previous = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failure shows the end of every target's log."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for started in getattr(item, "started_targets", lambda: [])():
            report.sections.append(("log of %s" % started.name, started.log_end(40)))


def make_folder():
    """A folder, and what removes it."""
    folder = target_module.scratch_folder()
    return folder, lambda: shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def folder():
    """A scratch folder of the test's own."""
    path, remove = make_folder()
    yield path
    remove()


@pytest.fixture
def start(request, folder):
    """start(...) starts a target in the test's folder; all are killed when the test is over."""
    started = []
    request.node.started_targets = lambda: started

    def start_one(**words):
        words.setdefault("name", "tgt%d" % len(started))
        one = target_module.Target(folder, **words)
        started.append(one)
        return one.start()

    yield start_one
    for one in started:
        one.kill()


@pytest.fixture(scope="module")
def shared_holder():
    """The target that a module's tests share; see `shared`."""
    path, remove = make_folder()
    holder = {"folder": path, "target": None}
    yield holder
    if holder["target"] is not None:
        holder["target"].kill()
    remove()


def clear(target):
    """Takes every set, volume and bdev away from a target."""
    for entry in target.call("bdev_bcache_get_sets"):
        target.call("bdev_bcache_stop_set", set=entry["set"], limit=60)
    for name in volume.volumes(target):
        target.call("bdev_bcache_delete", name=name, limit=60)
    for entry in target.call("bdev_get_bdevs"):
        kind = {"AIO disk": "aio", "Malloc disk": "malloc"}.get(entry["product_name"])
        if kind:
            target.call("bdev_%s_delete" % kind, name=entry["name"], limit=30)


@pytest.fixture
def shared(request, shared_holder):
    """A target without examine, shared by the tests of a module and empty at the start of each."""
    target = shared_holder["target"]
    if target is None or not target.running():
        target = shared_holder["target"] = target_module.Target(shared_holder["folder"], name="shared",
                                                                wait_for_rpc=True, memory_mb=512)
        target.start()
        target.call("bdev_bcache_set_module_options", examine=False)
        target.call("framework_start_init", limit=60)
    request.node.started_targets = lambda: [target]
    yield target
    if target.running():
        try:
            clear(target)
        except Exception:
            target.kill()
            raise
    else:
        pytest.fail("the target died:\n%s" % target.log_end())
