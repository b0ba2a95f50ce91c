"""Debian's own kernel in QEMU, with its bcache, virtio and NVMe/TCP drivers, busybox and blkio.

The kernel package is fetched once with apt-get, unpacked into the user's cache folder and never installed. A guest runs
one shell script as root and powers off; its console is what comes back. Images are /dev/vda, /dev/vdb, … in order,
vhost-user-blk sockets come after them. Hardware virtualisation is used only after a probe showed that a kernel boots
with it (on some nested hosts it hangs); otherwise QEMU emulates, and a boot takes some 8 seconds.

The kernel is that of the Debian release that runs here. Another release's is fetched through a sources list and state
of its own, so that the machine's apt stays as it is.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import threading
import time

from . import tools

KERNEL_PACKAGE = "linux-image-amd64"
MODULES = ("bcache", "virtio_blk", "virtio_pci", "virtio_net", "nvme", "nvme-tcp", "ext4")
MEMORY_MB = 512
PROBE_SECONDS = 6
END = "@guest-end"

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for m in $(cat /m/order); do insmod /m/$m 2>/dev/null; done
dmesg -n 1
echo
sh /run.sh; echo "{end} $?"
poweroff -f
""".format(end=END)


def cache_folder():
    """The user's cache folder of this project."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "spdk-bcache" / "guest"


class Kernel:
    """The unpacked kernel, and a base initrd of busybox, modules and init.

    suite   the Debian release that it is of, by its code name; None for the machine's own
    """

    def __init__(self, suite=None):
        self.suite = suite
        self.folder = cache_folder() if suite is None else cache_folder().with_name("guest-%s" % suite)
        self.stamp = self.folder / "ready-1"
        if not self.stamp.exists():
            self.prepare()
        (self.image,) = self.folder.glob("kernel/boot/vmlinuz-*")
        self.base = self.folder / "base"
        self.accelerator = self.stamp.read_text().strip()

    def prepare(self):
        """Fetches and unpacks; a second process that does the same at the same time wins or loses whole."""
        partial = self.folder.with_name("%s.%d" % (self.folder.name, os.getpid()))
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        print("fetching Debian's kernel for the guest (70 MB, once)", flush=True)
        self.fetch(partial, self.suite)
        self.make_base(partial)
        (image,) = partial.glob("kernel/boot/vmlinuz-*")
        (partial / self.stamp.name).write_text("kvm" if kvm_boots(image) else "tcg")
        shutil.rmtree(self.folder, ignore_errors=True)
        partial.rename(self.folder)

    @staticmethod
    def fetch(folder, suite):
        """The newest kernel package of a Debian release, unpacked into folder/kernel."""
        options = apt_options(folder, suite) if suite else []
        if suite:
            tools.run("apt-get", *options, "update", "-q", limit=300)
        depends = tools.run("apt-cache", *options, "depends", KERNEL_PACKAGE, expect=None)
        if "linux-image" not in depends.replace(KERNEL_PACKAGE, "", 1):
            tools.run("apt-get", *options, "update", "-q", limit=300)
            depends = tools.run("apt-cache", *options, "depends", KERNEL_PACKAGE)
        names = re.findall(r"Depends: (linux-image-\S+)", depends)
        if not names:
            raise tools.Missing("apt knows no kernel behind %s" % KERNEL_PACKAGE)
        try:
            tools.run("apt-get", *options, "download", names[0], cwd=folder, limit=600)
        except tools.CommandFailed:  # the lists name a version that the archive has replaced
            tools.run("apt-get", *options, "update", "-q", limit=300)
            tools.run("apt-get", *options, "download", names[0], cwd=folder, limit=600)
        (package,) = folder.glob("linux-image-*.deb")
        tools.run("dpkg", "-x", package, folder / "kernel", limit=300)
        package.unlink()
        shutil.rmtree(folder / "apt", ignore_errors=True)

    @staticmethod
    def make_base(folder):
        """The initrd's unchanging part: folders, busybox, the modules in the order to load them, init."""
        base = folder / "base"
        for name in ("bin", "dev", "proc", "sys", "tmp", "mnt", "m"):
            (base / name).mkdir(parents=True)
        shutil.copy(tools.program("busybox"), base / "bin" / "busybox")
        # /lib is a link on the systems of today, a folder in the package
        (tree,) = [path for path in folder.glob("kernel/**/modules/*") if (path / "kernel").is_dir()]
        root = tree.parents[2]
        tools.run(tools.program("depmod"), "-b", root, tree.name, limit=300)
        order = []
        for module in MODULES:
            text = tools.run(tools.program("modprobe"), "-d", root, "-S", tree.name, "--show-depends", module)
            order += [line.split()[1] for line in text.splitlines() if line.startswith("insmod ")]
        order = list(dict.fromkeys(order))
        for path in order:
            copy_module(pathlib.Path(path), base / "m")
        (base / "m" / "order").write_text("".join(module_name(path) + "\n" for path in order))
        init = base / "init"
        init.write_text(INIT)
        init.chmod(0o755)


def apt_options(folder, suite):
    """Options that let apt read one Debian release, with its state in folder/apt."""
    apt = folder / "apt"
    for name in ("lists/partial", "cache/archives/partial", "empty"):
        (apt / name).mkdir(parents=True)
    (apt / "status").touch()
    targets = tools.run("apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages")
    mirrors = re.findall(r"^Debian (\S+)$", targets, re.MULTILINE) or re.findall(r" (\S+/debian/?)$", targets, re.MULTILINE)
    if not mirrors:
        raise tools.Missing("apt's sources name no Debian mirror: apt-get update")
    keyrings = [path for path in pathlib.Path("/usr/share/keyrings").glob("debian-archive-keyring.*")]
    if not keyrings:
        raise tools.Missing("Debian's archive keyring is missing: apt-get install debian-archive-keyring")
    (apt / "sources.list").write_text("deb [signed-by=%s] %s %s main\n" % (keyrings[0], mirrors[0], suite))
    settings = {"Dir::Etc::SourceList": apt / "sources.list", "Dir::Etc::SourceParts": "/dev/null",
                "Dir::Etc::Preferences": "/dev/null", "Dir::Etc::PreferencesParts": "/dev/null",
                "Dir::State::Lists": apt / "lists", "Dir::State::status": apt / "status", "Dir::Cache": apt / "cache",
                "APT::Sandbox::User": "root", "APT::Update::Post-Invoke-Success::": ""}
    return [word for key, value in settings.items() for word in ("-o", "%s=%s" % (key, value))]


def module_name(path):
    """A module's file name in the initrd: Debian 13 compresses them, busybox wants them plain."""
    return pathlib.Path(path).name.split(".ko")[0] + ".ko"


def copy_module(path, folder):
    """Copies a module, unpacked."""
    plain = folder / module_name(path)
    if path.suffix == ".xz":
        with open(plain, "wb") as out:
            subprocess.run([tools.program("xz"), "-dc", str(path)], stdout=out, check=True, timeout=60)
    elif path.suffix == ".zst":
        tools.run(tools.program("zstd"), "-q", "-d", "-f", path, "-o", plain)
    else:
        shutil.copy(path, plain)


def kvm_boots(image):
    """Whether a kernel really starts under KVM: the device alone does not tell."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    command = [tools.program("qemu-system-x86_64"), "-accel", "kvm", "-cpu", "max", "-m", "256", "-nographic",
               "-no-reboot", "-kernel", str(image), "-append", "console=ttyS0 panic=-1"]
    try:
        text = tools.run(*command, limit=PROBE_SECONDS, expect=None, stdin=subprocess.DEVNULL)
    except tools.CommandFailed as error:
        text = str(error)
    return "Linux version" in text


class GuestFailed(Exception):
    """The guest did not come to its end, or its script failed; the message holds the console's end."""


class Guest:
    """One boot.

    folder   for the initrd
    script   what to run inside; blkio is on its PATH
    images   disk images, opened for writing
    vhost    sockets of vhost-user-blk controllers
    files    name in the guest's root: path here
    network  a card with the host's loopback reachable as 10.0.2.2
    suite    the Debian release of its kernel; None for the machine's own
    memory_mb  its memory
    """

    def __init__(self, folder, script, images=(), vhost=(), files=None, network=False, name="guest", suite=None,
                 memory_mb=MEMORY_MB):
        self.folder = pathlib.Path(folder)
        self.name = name
        self.script = script
        self.images = list(images)
        self.vhost = list(vhost)
        self.files = dict(files or {})
        self.network = network
        self.suite = suite
        self.memory_mb = memory_mb
        self.process = None
        self.lines = []
        self.changed = threading.Condition()
        self.reader = None

    def make_initrd(self, kernel):
        """The base and this guest's own files as one archive, uncompressed: the emulated processor is slow."""
        root = self.folder / (self.name + ".root")
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(kernel.base, root, symlinks=True)
        for name, path in {"bin/blkio": tools.compile_blkio(static=True), **self.files}.items():
            shutil.copy(path, root / name)
        preamble = "ip link set lo up; ip addr add 10.0.2.15/24 dev eth0; ip link set eth0 up\n" if self.network else ""
        (root / "run.sh").write_text(preamble + self.script)
        initrd = self.folder / (self.name + ".initrd")
        names = subprocess.run(["find", "."], cwd=root, stdout=subprocess.PIPE, check=True, timeout=30).stdout
        with open(initrd, "wb") as out:
            subprocess.run([tools.program("cpio"), "--quiet", "-o", "-H", "newc"], cwd=root, input=names, stdout=out,
                           check=True, timeout=60)
        shutil.rmtree(root)
        return initrd

    def command(self, kernel):
        """QEMU's command line."""
        command = [tools.program("qemu-system-x86_64"), "-accel", kernel.accelerator, "-cpu", "max", "-smp", "1",
                   "-m", str(self.memory_mb), "-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot",
                   "-kernel", str(kernel.image), "-initrd", str(self.make_initrd(kernel)),
                   "-append", "console=ttyS0 panic=-1 quiet"]
        for image in self.images:
            command += ["-drive", "file=%s,if=virtio,format=raw,cache=unsafe" % image]
        if self.vhost:
            # the target maps the guest's memory: shared huge pages
            command += ["-object", "memory-backend-file,id=mem,size=%dM,mem-path=/dev/hugepages,share=on" % self.memory_mb,
                        "-numa", "node,memdev=mem"]
        for number, path in enumerate(self.vhost):
            command += ["-chardev", "socket,id=vhost%d,path=%s" % (number, path),
                        "-device", "vhost-user-blk-pci,chardev=vhost%d,num-queues=1" % number]
        if self.network:
            command += ["-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0"]
        else:
            command += ["-nic", "none"]
        return command

    def start(self):
        """Boots; returns self."""
        self.process = subprocess.Popen(self.command(Kernel(self.suite)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, start_new_session=True)
        self.reader = threading.Thread(target=self.read_console, daemon=True)
        self.reader.start()
        return self

    def read_console(self):
        """Collects the console line by line."""
        for line in self.process.stdout:
            with self.changed:
                self.lines.append(line.decode(errors="replace").replace("\r", ""))
                self.changed.notify_all()
        with self.changed:
            self.changed.notify_all()

    def console(self):
        """The console so far; a last line may be incomplete."""
        with self.changed:
            return "".join(self.lines)

    def wait_lines(self, pattern, count=1, limit=120):
        """Waits until `count` lines match the pattern."""
        matcher = re.compile(pattern)
        deadline = time.monotonic() + limit
        with self.changed:
            while sum(1 for line in self.lines if matcher.search(line)) < count:
                left = deadline - time.monotonic()
                if left <= 0 or not self.reader.is_alive():
                    raise GuestFailed("the guest did not print %r:\n%s" % (pattern, "".join(self.lines[-40:])))
                self.changed.wait(min(left, 1))

    def wait(self, limit=240):
        """Waits until the guest has powered off; returns its console. The script's exit code must be 0."""
        try:
            self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.kill()
            raise GuestFailed("the guest is not done after %d s:\n%s" % (limit, "".join(self.lines[-40:]))) from None
        self.reader.join(10)
        text = self.console()
        if not re.search(r"^%s 0$" % END, text, re.MULTILINE):
            raise GuestFailed("the guest's script failed:\n%s" % "".join(self.lines[-60:]))
        return text

    def kill(self):
        """Ends the guest at once, as a power cut would."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(30)
        if self.reader is not None:
            self.reader.join(10)


def run(folder, script, limit=240, **words):
    """One guest from boot to power-off; returns its console."""
    guest = Guest(folder, script, **words).start()
    try:
        return guest.wait(limit)
    finally:
        guest.kill()


def log_of(console):
    """The lines of a console that blkio logged: a Pattern's adopt_log takes them."""
    return "".join(line + "\n" for line in re.findall(r"^(@(?:plan|flush|done) .*)$", console, re.MULTILINE))
