//! The table of methods.
//!
//! # To add a method
//! 1. Add a row to [`METHODS`], in alphabetical order: name, help, when it can be called, parameters,
//!    result. What the row says is all that registration with SPDK, parsing, the rpc.py plugin and
//!    docs/rpc.md need: parameters arrive checked ([`Args`]), unknown ones are refused.
//! 2. Its `run` is one function of `rpc::calls`, which calls the [`Hub`] and makes the result.
//! 3. `make docs` writes docs/rpc.md and spdk/bcache_rpc.json anew; `tests/reference.rs` fails until
//!    then. Add parameters that are right in form to REQUIRED in tests/system/test_rpc.py.
//!
//! Parameters that must be given are positional in the plugin, in the order of the table; the others
//! become flags: `discard_dirty` is `--discard-dirty`. A parameter that stands at more than one
//! method is a constant. To add an option instead, see [`crate::options`].

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use super::params::Args;
use super::{Answer, calls};
use crate::limits::MAX_INODE;
use crate::options::{BLOCK_SIZE, BUCKET_SIZE_KB, Kind, MODE};
use crate::set::hub::Hub;

/// When a method can be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Before framework_start_init, and never after.
    Startup,
    /// Once the framework runs.
    Runtime,
}

/// Whether a parameter must be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It must.
    Required,
    /// It may be left out; what then holds, for people; empty where that goes without saying.
    Optional(&'static str),
}

/// One parameter.
#[derive(Debug)]
pub struct Param {
    /// Its name.
    pub name: &'static str,
    /// Its type and range.
    pub kind: Kind,
    /// Whether it must be given.
    pub need: Need,
    /// A short flag of the plugin, like `-m`; empty where there is none.
    pub short: &'static str,
    /// What it is, for people.
    pub help: &'static str,
}

impl Param {
    const fn required(name: &'static str, kind: Kind, help: &'static str) -> Param {
        Param {
            name,
            kind,
            need: Need::Required,
            short: "",
            help,
        }
    }

    const fn optional(
        name: &'static str,
        kind: Kind,
        default: &'static str,
        help: &'static str,
    ) -> Param {
        Param {
            need: Need::Optional(default),
            ..Param::required(name, kind, help)
        }
    }

    const fn short(self, short: &'static str) -> Param {
        Param { short, ..self }
    }
}

/// Options that a method takes as parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// None.
    Nothing,
    /// Those of a volume.
    VolumeOptions,
    /// Those of a set.
    SetOptions,
    /// Those of the module.
    ModuleOptions,
}

/// A member of a result, and what it says.
pub type Field = (&'static str, &'static str);

/// What a method does with its checked parameters.
pub type Run = fn(Rc<Hub>, Args) -> Pin<Box<dyn Future<Output = Answer>>>;

/// One method.
pub struct Method {
    /// Its name.
    pub name: &'static str,
    /// What it does: a sentence without a full stop.
    pub help: &'static str,
    /// When it can be called.
    pub when: When,
    /// Its parameters.
    pub params: &'static [Param],
    /// Options that are parameters, too.
    pub takes: Takes,
    /// Parameters of which exactly one must be given.
    pub one_of: &'static [&'static str],
    /// What it answers.
    pub result: &'static str,
    /// The members of the objects that it answers, where they need words.
    pub fields: &'static [Field],
    /// Does it.
    pub run: Run,
}

/// A method of which a row says only what is special.
const PLAIN: Method = Method {
    name: "",
    help: "",
    when: When::Runtime,
    params: &[],
    takes: Takes::Nothing,
    one_of: &[],
    result: "true",
    fields: &[],
    run: |_, _| Box::pin(async { Ok(true.into()) }),
};

const NAME: Param = Param::required("name", Kind::Name, "name of the volume");
const NEW_NAME: Param = Param::required(
    "name",
    Kind::Name,
    "name of the volume's bdev, kept on disk as its label",
);
const SET: Param = Param::required("set", Kind::Uuid, "UUID of the cache set");
const ONE_NAME: Param = Param::optional("name", Kind::Name, "", "name of the volume").short("-b");
const ONE_SET: Param = Param::optional("set", Kind::Uuid, "", "UUID of the cache set").short("-u");
const SIZE_MB: Param = Param::required("size_mb", Kind::Uint(1, 1 << 42), "size in MiB");
const DISCARD: Param = Param::optional(
    "discard_dirty",
    Kind::Bool,
    "false",
    "give up data that are nowhere else",
);
const WHEN_UP: Param = Param::optional(
    "when_up",
    Kind::Bool,
    "false",
    "do it as soon as what is named is there, if it is not there yet",
)
.short("-w");

/// All methods, by name.
pub const METHODS: &[Method] = &[
    Method {
        name: "bdev_bcache_attach",
        help: "Attach a volume without a cache to a running set",
        params: &[NAME, SET, DISCARD],
        run: |hub, args| Box::pin(calls::attach(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_create",
        help: "Make a cached bdev of two bdevs: formats what is blank, opens what is bcache's already, attaches and starts",
        params: &[
            NEW_NAME,
            Param::required(
                "cache_bdev",
                Kind::Bdev,
                "the fast bdev that caches; it may be in a running set already",
            ),
            Param::required("backing_bdev", Kind::Bdev, "the slow bdev that is cached"),
            Param::optional(
                MODE.name,
                MODE.kind,
                "what the disk says, or writethrough",
                "cache mode",
            )
            .short("-m"),
            Param::optional(
                BUCKET_SIZE_KB.name,
                BUCKET_SIZE_KB.kind,
                "512, less where the device would have fewer than 1024 buckets",
                "bucket size of a new cache device in KiB",
            ),
            Param::optional(
                BLOCK_SIZE.name,
                BLOCK_SIZE.kind,
                "the larger of the two bdevs'",
                "block size of a new cache device in bytes",
            ),
            Param::optional(
                "force",
                Kind::Bool,
                "false",
                "take bdevs that hold other data or belong to another set; dirty data are never destroyed by this alone",
            )
            .short("-f"),
            Param::optional(
                "discard_dirty",
                Kind::Bool,
                "false",
                "together with force: destroy even data that are nowhere else",
            ),
        ],
        result: "the name",
        run: |hub, args| Box::pin(calls::create(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_create_flash_volume",
        help: "Make a volume that lives on the cache device alone",
        params: &[SET, NEW_NAME, SIZE_MB],
        result: "the name",
        run: |hub, args| Box::pin(calls::create_flash(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_delete",
        help: "Remove the volume's bdev; what is on disk stays and comes back by register",
        params: &[NAME],
        run: |hub, args| Box::pin(calls::delete(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_delete_flash_volume",
        help: "Remove a volume that lives on the cache device alone, with its data",
        params: &[NAME, DISCARD],
        run: |hub, args| Box::pin(calls::delete_flash(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_detach",
        help: "Write a volume's dirty data back and let it run without a cache",
        params: &[
            NAME,
            Param::optional(
                "discard_dirty",
                Kind::Bool,
                "false",
                "give up dirty data beyond the end of a backing device that has shrunk",
            ),
        ],
        result: "true, once all is written back and the volume runs without a cache",
        run: |hub, args| Box::pin(calls::detach(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_detach_cancel",
        help: "Give up detaching a volume, which then stays attached; too late once all is written back",
        params: &[NAME],
        run: |hub, args| Box::pin(calls::detach_cancel(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_detach_start",
        help: "Begin to detach a volume, as bdev_bcache_detach does, without waiting for the end",
        params: &[
            NAME,
            Param::optional(
                "discard_dirty",
                Kind::Bool,
                "false",
                "give up dirty data beyond the end of a backing device that has shrunk",
            ),
        ],
        run: |hub, args| Box::pin(calls::detach_start(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_detach_status",
        help: "How far the detachment of a volume is",
        params: &[NAME],
        result: "an object",
        fields: &[
            ("in_progress", "whether it is under way"),
            (
                "failure",
                "why the last one failed, or that it was cancelled; null otherwise",
            ),
            ("attached", "whether the volume is in its set"),
            ("dirty_bytes", "data that are not written back yet"),
        ],
        run: |hub, args| Box::pin(calls::detach_status(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_flush_cancel",
        help: "Give up a write-back begun with bdev_bcache_flush_start",
        params: &[NAME],
        run: |hub, args| Box::pin(calls::flush_cancel(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_flush_start",
        help: "Begin to write a volume's dirty data back",
        params: &[NAME],
        run: |hub, args| Box::pin(calls::flush_start(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_flush_status",
        help: "How far a write-back begun with bdev_bcache_flush_start is",
        params: &[NAME],
        result: "an object",
        fields: &[
            ("in_progress", "whether it is under way"),
            (
                "failure",
                "why the last one failed, or that it was cancelled; null otherwise",
            ),
            ("dirty_bytes", "data that are not written back yet; null where only the set knows, which is not running"),
        ],
        run: |hub, args| Box::pin(calls::flush_status(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_forget_volume",
        help: "Drop what a set holds of a volume that will never come back (known_volumes of bdev_bcache_get_sets lists them)",
        params: &[
            SET,
            Param::optional("uuid", Kind::Uuid, "", "UUID of the volume").short("-U"),
            Param::optional(
                "inode",
                Kind::Uint(0, MAX_INODE as u64),
                "",
                "its inode, where it has no UUID",
            )
            .short("-i"),
            DISCARD,
        ],
        one_of: &["uuid", "inode"],
        run: |hub, args| Box::pin(calls::forget(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_gc",
        help: "Run a full pass of garbage collection",
        params: &[SET],
        result: "true, once the pass is done",
        run: |hub, args| Box::pin(calls::gc(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_get_bdevs",
        help: "List the volumes, or one of them",
        params: &[ONE_NAME],
        result: "a list of objects; the same stand in bdev_get_bdevs under driver_specific",
        fields: BDEV_FIELDS,
        run: |hub, args| Box::pin(calls::get_bdevs(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_get_sets",
        help: "List the cache sets that run, or one of them",
        params: &[ONE_SET],
        result: "a list of objects",
        fields: SET_FIELDS,
        run: |hub, args| Box::pin(calls::get_sets(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_get_stats",
        help: "Hits, misses and bypassed bytes of a volume, or of all that a set cached",
        params: &[ONE_NAME, ONE_SET],
        one_of: &["name", "set"],
        result: "an object with total (since the last reset), five_minute, hour and day (decaying averages), each an object",
        fields: STATS_FIELDS,
        run: |hub, args| Box::pin(calls::get_stats(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_register",
        help: "Read a bdev's bcache superblock and bring up what is whole",
        params: &[
            Param::required("bdev_name", Kind::Bdev, "a cache or backing bdev"),
            WHEN_UP,
            Param::optional(
                "name",
                Kind::Name,
                "its label",
                "name of a backing device's volume, kept on disk as its label",
            ),
            Param::optional(
                "new_uuid",
                Kind::Bool,
                "false",
                "the bdev is a clean copy of a backing device: give it a UUID of its own, of no set",
            ),
        ],
        result: "an object; true with when_up",
        fields: &[
            ("kind", "cache or backing"),
            ("uuid", "UUID of the device"),
            ("set", "UUID of its cache set; null for a backing device that is in none"),
        ],
        run: |hub, args| Box::pin(calls::register(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_rename",
        help: "Give a volume another name, on disk too; exports stay connected, and the old name stays an alias until the bdev is taken down",
        params: &[
            NAME,
            Param::required("new_name", Kind::Name, "the new name"),
        ],
        run: |hub, args| Box::pin(calls::rename(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_reset_stats",
        help: "Start the statistics of a volume, or of a set and its volumes, from zero",
        params: &[ONE_NAME, ONE_SET],
        one_of: &["name", "set"],
        run: |hub, args| Box::pin(calls::reset_stats(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_resize_flash_volume",
        help: "Give a volume that lives on the cache device alone another size",
        params: &[NAME, SIZE_MB, DISCARD],
        run: |hub, args| Box::pin(calls::resize_flash(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_run",
        help: "Run a volume that waits for its cache set without it: what the set holds of it is given up; or, with accept_size, one whose backing device has shrunk",
        params: &[
            NAME,
            DISCARD,
            Param::optional(
                "accept_size",
                Kind::Bool,
                "false",
                "start it although its backing device is smaller than it was: dirty data beyond the end stay on the cache, or are given up with discard_dirty",
            ),
        ],
        run: |hub, args| Box::pin(calls::run(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_set_cache_mode",
        help: "Change a volume's cache mode, on disk too",
        params: &[
            NAME,
            Param::required(MODE.name, MODE.kind, "the new cache mode"),
        ],
        run: |hub, args| Box::pin(calls::set_cache_mode(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_set_module_options",
        help: "Change options of the module",
        when: When::Startup,
        takes: Takes::ModuleOptions,
        run: |hub, args| Box::pin(calls::set_module_options(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_set_options",
        help: "Change options of a volume",
        params: &[NAME, WHEN_UP],
        takes: Takes::VolumeOptions,
        run: |hub, args| Box::pin(calls::set_options(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_set_set_options",
        help: "Change options of a cache set",
        params: &[SET, WHEN_UP],
        takes: Takes::SetOptions,
        run: |hub, args| Box::pin(calls::set_set_options(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_stop_set",
        help: "Stop a cache set and its volumes in good order; dirty data stay on the cache device",
        params: &[SET],
        run: |hub, args| Box::pin(calls::stop_set(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_unregister_set",
        help: "Write every volume of a cache set back, detach it, then stop the set",
        params: &[SET],
        result: "true, once all volumes are written back and detached",
        run: |hub, args| Box::pin(calls::unregister_set(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_unregister_set_cancel",
        help: "Give up unregistering a cache set; volumes detached so far stay so",
        params: &[SET],
        run: |hub, args| Box::pin(calls::unregister_cancel(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_unregister_set_start",
        help: "Begin to unregister a cache set, as bdev_bcache_unregister_set does, without waiting for the end",
        params: &[SET],
        run: |hub, args| Box::pin(calls::unregister_start(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_unregister_set_status",
        help: "How far unregistering a cache set is",
        params: &[SET],
        result: "an object",
        fields: &[
            ("in_progress", "whether it is under way"),
            (
                "failure",
                "why the last one failed, or that it was cancelled; null otherwise",
            ),
            ("volumes", "names of the volumes that are still attached"),
            ("dirty_bytes", "data of theirs that are not written back yet"),
        ],
        run: |hub, args| Box::pin(calls::unregister_status(hub, args)),
        ..PLAIN
    },
    Method {
        name: "bdev_bcache_wait_for_volume",
        help: "Wait until a volume is up, for start_wait_s at most: the saved configuration calls it, so that exports find their volumes",
        params: &[
            NAME,
            Param::optional("uuid", Kind::Uuid, "", "UUID of the volume, for the list of absent ones"),
        ],
        result: "true, also when the volume has not come up: it is then logged, and listed as absent by bdev_bcache_get_bdevs",
        run: |hub, args| Box::pin(calls::wait_for_volume(hub, args)),
        ..PLAIN
    },
];

const BDEV_FIELDS: &[Field] = &[
    ("name", "name of the volume and its bdev"),
    ("uuid", "UUID of the volume"),
    (
        "kind",
        "cached, or flash for a volume on the cache device alone; cache for a cache device that examine left alone",
    ),
    ("state", "no cache, clean, dirty or inconsistent"),
    ("cache_mode", "writethrough, writeback, writearound or none"),
    (
        "absent",
        "whether a start has waited for the volume in vain, and nothing but its name is known",
    ),
    (
        "running",
        "whether hosts can use it; false while it waits for its set, and for a device that examine left alone",
    ),
    (
        "reason",
        "why it does not run, or not under the name it wants; null otherwise",
    ),
    (
        "backing_bdev",
        "its backing device; null for a flash volume",
    ),
    (
        "set",
        "UUID of the cache set that it is attached to or waits for; null for none",
    ),
    (
        "inode",
        "its number in the set; null while it is not attached",
    ),
    ("size_bytes", "size of the bdev"),
    (
        "dirty_bytes",
        "data that are on the cache device alone; null where only its set knows, which is not running",
    ),
    (
        "dirty_bytes_beyond_end",
        "those of them beyond the end of a backing device that has shrunk",
    ),
    (
        "io_errors",
        "errors of the backing device that count; null for a flash volume",
    ),
    (
        "options",
        "its options, see below; those that need a cache only while it has one",
    ),
];

const SET_FIELDS: &[Field] = &[
    ("set", "UUID of the cache set"),
    (
        "state",
        "running, degraded (dirty data could not be read) or failed",
    ),
    (
        "failure",
        "why it is degraded or failed; null where it runs",
    ),
    (
        "devices",
        "the cache device, in a list: bdev_name, uuid, index, nbuckets, bucket_size_kb, block_size (bytes), buckets (how many are free, clean, dirty, metadata)",
    ),
    ("volumes", "names of the volumes that are attached"),
    (
        "known_volumes",
        "whose data the set holds, attached or not: uuid, name, kind, inode, attached, dirty_bytes",
    ),
    ("tree_depth", "levels of the btree"),
    ("btree_nodes", "nodes of the btree"),
    ("cached_extents", "extents in the map"),
    ("index_bytes", "memory of the map"),
    ("dirty_bytes", "data that are on the cache device alone"),
    (
        "cache_available_percent",
        "free and clean buckets among those for data",
    ),
    (
        "written_back_bytes",
        "data written back since the set started",
    ),
    ("journal", "blocks, free_blocks, oldest_seq, open_seq"),
    (
        "io_errors",
        "recent (that count, decayed), reads and writes that failed",
    ),
    ("writeback_failures", "rounds of write-back that failed"),
    ("options", "its options, see below"),
];

const STATS_FIELDS: &[Field] = &[
    ("cache_hits", "reads served from the cache alone"),
    ("cache_misses", "reads that needed the backing device"),
    ("cache_hit_ratio", "hits in percent of hits and misses"),
    (
        "cache_bypass_hits",
        "reads past the cache whose data were in it",
    ),
    (
        "cache_bypass_misses",
        "reads past the cache whose data were not in it",
    ),
    (
        "cache_miss_collisions",
        "fills that were dropped because something changed under them",
    ),
    ("bypassed_bytes", "written past the cache"),
    ("reads", "host reads"),
    ("writes", "host writes"),
    ("read_bytes", "read by hosts"),
    ("written_bytes", "written by hosts"),
    ("flushes", "host flushes"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_complete() {
        assert!(METHODS.is_sorted_by(|a, b| a.name < b.name));
        for method in METHODS {
            let name = method.name;
            assert!(name.starts_with("bdev_bcache_"), "{name}");
            assert!(
                !method.help.is_empty() && !method.help.ends_with('.'),
                "{name}"
            );
            for choice in method.one_of {
                assert!(method.params.iter().any(|p| p.name == *choice), "{name}");
            }
            for param in method.params {
                assert!(!param.help.is_empty(), "{name}: {}", param.name);
                let optional = matches!(param.need, Need::Optional(_));
                assert!(optional || param.short.is_empty(), "{name}: {}", param.name);
            }
        }
    }
}
