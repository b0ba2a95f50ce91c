"""The bdev_bcache_* methods for SPDK's rpc.py.

    PYTHONPATH=spdk $SPDK_DIR/scripts/rpc.py --plugin bcache_rpc bdev_bcache_create Cache0 Nvme0n1 Disk0
    PYTHONPATH=spdk spdk-rpc --plugin bcache_rpc bdev_bcache_get_bdevs      (the `spdk` package of PyPI)

The plugin imports nothing of SPDK's, because the place of its modules moved between releases: the client that
rpc.py hands over has had the same call(method, params) since 20.07. Methods, parameters and help texts stand in
bcache_rpc.json beside this file, which `make docs` writes from the module's own tables. Results are printed as
rpc.py prints them: names as they are, lists and objects as JSON, and nothing for a plain true. A parameter that is
not given is not sent, so that the target's default holds.
"""

import argparse
import json
import pathlib

# flags that existed before all flags were made of the parameters' names
MORE_FLAGS = {("bdev_bcache_set_module_options", "examine"): ["-e"]}


def true_or_false(text):
    """The words true and false (and on, off) as a boolean."""
    words = {"true": True, "on": True, "false": False, "off": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError("%r is neither true nor false" % text)
    return words[text.lower()]


def names(text):
    """A list of names, with commas between them; nothing is an empty list."""
    return [name for name in text.split(",") if name]


READERS = {"number": int, "boolean": true_or_false, "array of strings": names}


def option_reader(options):
    """A function that reads KEY=VALUE as a pair, by the types of the options. The target refuses unknown ones."""
    readers = {option["name"]: READERS.get(option["type"], str) for option in options}

    def read(text):
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise argparse.ArgumentTypeError("%r is not KEY=VALUE" % text)
        try:
            return key, readers.get(key, str)(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError("%s must be a number, got %r" % (key, value)) from error

    return read


def help_of(entry):
    """The help text of a parameter or an option, with its default."""
    text = entry["help"]
    if entry.get("default") not in (None, "", "false"):
        text += " (default: %s)" % entry["default"]
    return text.replace("%", "%%")


def add_param(parser, method, param):
    """Adds one parameter: a positional argument, or a flag when it may be left out."""
    words = {"help": help_of(param)}
    if param["type"] == "word":
        words["choices"] = param["words"]
    elif param["type"] in READERS:
        words["type"] = READERS[param["type"]]
    if "flag" not in param:
        return parser.add_argument(param["name"], **words)
    flags = [flag for flag in (param["flag"], "--" + param["name"].replace("_", "-")) if flag]
    flags += MORE_FLAGS.get((method, param["name"]), [])
    if param["type"] == "boolean":
        if param["default"] == "false":
            words.pop("type")
            words["action"] = "store_const"
            words["const"] = True
        else:
            words["metavar"] = "true|false"
    return parser.add_argument(*flags, dest=param["name"], **words)


def request_of(args, params, options):
    """The JSON parameters that the parsed arguments stand for, or None when there are none."""
    given = {param["name"]: getattr(args, param["name"]) for param in params}
    request = {name: value for name, value in given.items() if value is not None}
    if options:
        request.update(dict(args.options))
    return request or None


def print_result(result):
    """Prints as rpc.py does."""
    if isinstance(result, str):
        print(result)
    elif result is not None and result is not True:
        print(json.dumps(result, indent=2))


def describe_options(options):
    """The options of a method, a line each."""
    lines = ["  %s: %s" % (option["name"], help_of(option).replace("%%", "%")) for option in options]
    return "options:\n" + "\n".join(lines)


def add_method(subparsers, method, options):
    """Adds one method's parser; `options` are those that it takes as KEY=VALUE."""
    name, params = method["name"], method["params"]
    parser = subparsers.add_parser(name, help=method["help"], description=method["help"] + ".",
                                   formatter_class=argparse.RawDescriptionHelpFormatter,
                                   epilog=describe_options(options) if options else None)
    group = parser.add_mutually_exclusive_group(required=True) if method["one_of"] else parser
    for param in params:
        add_param(group if param["name"] in method["one_of"] else parser, name, param)
    if options:
        parser.add_argument("options", nargs="+", type=option_reader(options), metavar="KEY=VALUE",
                            help="options and their new values, see below")

    def call(args):
        print_result(args.client.call(name, request_of(args, params, options)))

    parser.set_defaults(func=call)


def spdk_rpc_plugin_initialize(subparsers):
    """rpc.py calls this with its parser of methods."""
    with pathlib.Path(__file__).with_suffix(".json").open(encoding="utf-8") as file:
        known = json.load(file)
    for method in known["methods"]:
        add_method(subparsers, method, known["options"].get(method["options"]))
