"""The bdev_bcache_* methods for SPDK's rpc.py.

    PYTHONPATH=spdk $SPDK_DIR/scripts/rpc.py --plugin bcache_rpc bdev_bcache_create Cache0 Nvme0n1 Disk0
    PYTHONPATH=spdk spdk-rpc --plugin bcache_rpc bdev_bcache_get_bdevs      (the `spdk` package of PyPI)

The plugin imports nothing of SPDK's, because the place of its modules moved between releases: the client that
rpc.py hands over has had the same call(method, params) since 20.07. What a method takes stands in METHODS, one
entry each; the parsers are built from it. Results are printed as rpc.py prints them: names as they are, lists and
objects as JSON, and nothing for a plain true. A parameter that is not given is not sent, so that the target's
default holds.
"""

import argparse
import json

MODES = ("writethrough", "writeback", "writearound", "none")


class Param:
    """One parameter: a positional argument, or an option when the name starts with a dash."""

    def __init__(self, *flags, key=None, **argparse_words):
        self.flags = flags
        self.key = key or flags[-1].lstrip("-").replace("-", "_")
        self.words = argparse_words

    def add_to(self, parser):
        words = dict(self.words)
        if self.flags[0].startswith("-"):
            words["dest"] = self.key
            words.setdefault("default", None)
        parser.add_argument(*self.flags, **words)


def option_value(text):
    """KEY=VALUE as a pair: the value is a number or true/false where it looks like one, else a string."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError("%r is not KEY=VALUE" % text)
    try:
        parsed = json.loads(value)
    except ValueError:
        return key, value
    return key, parsed if isinstance(parsed, (bool, int, float)) else value


def true_or_false(text):
    """The words true and false (and on, off) as a boolean."""
    words = {"true": True, "on": True, "false": False, "off": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError("%r is neither true nor false" % text)
    return words[text.lower()]


NAME = Param("name", help="name of the cached bdev")
SET = Param("set", help="UUID of the cache set")
ONE_NAME = Param("-b", "--name", help="name of the cached bdev")
ONE_SET = Param("-u", "--set", help="UUID of the cache set")
DISCARD = Param("--discard-dirty", action="store_true",
                help="give up data that are nowhere else")
WHEN_UP = Param("-w", "--when-up", action="store_true",
                help="do it as soon as what is named is there, if it is not there yet")
OPTIONS = Param("options", nargs="+", type=option_value, metavar="KEY=VALUE", help="options and their new values")

# method, what it does, its parameters, and whether exactly one of the options must be given
METHODS = [
    ("bdev_bcache_create",
     "Make a cached bdev of two bdevs: formats what is blank, opens what is bcache's already, attaches and starts",
     [NAME,
      Param("cache_bdev", help="the fast bdev that caches; it may be in a running set already"),
      Param("backing_bdev", help="the slow bdev that is cached"),
      Param("-m", "--mode", choices=MODES, help="cache mode (default: writethrough)"),
      Param("--bucket-size-kb", type=int, help="in KiB, a power of two (default: 512, less on small bdevs)"),
      Param("--block-size", type=int, help="block size in bytes (default: the larger of the two bdevs')"),
      Param("-f", "--force", action="store_true",
            help="take bdevs that hold other data; dirty data of a cache are never destroyed by this"),
      Param("--discard-dirty", action="store_true",
            help="together with --force: destroy even data that were not yet written back")], False),
    ("bdev_bcache_set_module_options",
     "Options of the module, to be set before framework_start_init",
     [Param("-e", "--examine", type=true_or_false, metavar="true|false",
            help="bring up the volumes of superblocks found on bdevs (default: true)")], False),
    ("bdev_bcache_create_flash_volume",
     "Make a volume that lives on the cache device alone",
     [SET, Param("name", help="name of the new bdev"), Param("size_mb", type=int, help="its size in MiB")], False),
    ("bdev_bcache_register",
     "Read a bdev's bcache superblock and bring up what is whole",
     [Param("bdev_name", help="a cache or backing bdev"), WHEN_UP], False),
    ("bdev_bcache_delete_flash_volume",
     "Remove a volume that lives on the cache device alone, with its data",
     [NAME, DISCARD], False),
    ("bdev_bcache_resize_flash_volume",
     "Give a volume that lives on the cache device alone another size",
     [NAME, Param("size_mb", type=int, help="its new size in MiB"), DISCARD], False),
    ("bdev_bcache_run",
     "Run a volume that waits for its cache set without it: what the set holds of it is given up",
     [NAME, DISCARD], False),
    ("bdev_bcache_forget_volume",
     "Drop what a set holds of a volume that will never come back (known_volumes of get_sets lists them)",
     [SET, Param("-U", "--uuid", help="UUID of the volume"),
      Param("-i", "--inode", type=int, help="its inode, where it has no UUID"), DISCARD], False),
    ("bdev_bcache_attach", "Attach a volume without a cache to a running set", [NAME, SET, DISCARD], False),
    ("bdev_bcache_detach", "Write a volume's dirty data back and let it run without a cache", [NAME], False),
    ("bdev_bcache_delete", "Remove the volume's bdev; what is on disk stays and comes back by register", [NAME], False),
    ("bdev_bcache_stop_set", "Stop a set and its volumes in good order; dirty data stay on the cache", [SET], False),
    ("bdev_bcache_unregister_set", "Write every volume of a set back, detach it, then stop the set", [SET], False),
    ("bdev_bcache_set_cache_mode", "Change a volume's cache mode",
     [NAME, Param("mode", choices=MODES, help="the new mode")], False),
    ("bdev_bcache_set_options", "Change options of a volume", [NAME, OPTIONS, WHEN_UP], False),
    ("bdev_bcache_set_set_options", "Change options of a set", [SET, OPTIONS, WHEN_UP], False),
    ("bdev_bcache_get_bdevs", "List the volumes, or one of them", [ONE_NAME], False),
    ("bdev_bcache_get_sets", "List the cache sets, or one of them", [ONE_SET], False),
    ("bdev_bcache_get_stats", "Hits, misses and bypassed bytes of a volume or a set", [ONE_NAME, ONE_SET], True),
    ("bdev_bcache_reset_stats", "Start the statistics of a volume or a set anew", [ONE_NAME, ONE_SET], True),
    ("bdev_bcache_flush_start", "Begin to write a volume's dirty data back", [NAME], False),
    ("bdev_bcache_flush_status", "How far a write-back begun with flush_start is", [NAME], False),
    ("bdev_bcache_gc", "Run a full pass of garbage collection", [SET], False),
]


def request_of(args, params):
    """The JSON parameters that the parsed arguments stand for, or None when there are none."""
    request = {}
    for param in params:
        value = getattr(args, param.key)
        if param is OPTIONS:
            request.update(dict(value))
        elif value is not None and not (value is False and param.words.get("action") == "store_true"):
            request[param.key] = value
    return request or None


def print_result(result):
    """Prints as rpc.py does."""
    if isinstance(result, str):
        print(result)
    elif result is not None and result is not True:
        print(json.dumps(result, indent=2))


def add_method(subparsers, method, text, params, exactly_one):
    """Adds one method's parser."""
    parser = subparsers.add_parser(method, help=text, description=text + ".")
    group = parser.add_mutually_exclusive_group(required=True) if exactly_one else parser
    for param in params:
        param.add_to(group)

    def call(args):
        print_result(args.client.call(method, request_of(args, params)))

    parser.set_defaults(func=call)


def spdk_rpc_plugin_initialize(subparsers):
    """rpc.py calls this with its parser of methods."""
    for method, text, params, exactly_one in METHODS:
        add_method(subparsers, method, text, params, exactly_one)
