//! The tables of options, a row each. The head of [`super`] says how to add one.

use super::{Kept, Kind, Of, Row, Table, Value};

/// The highest limit of errors that can be set.
const IO_ERROR_LIMIT_MAX: u64 = 1 << 31;

/// An enum of options with a row for each variant, in one place.
macro_rules! table {
    ($(#[$doc:meta])* $name:ident of $of:ident: $($variant:ident => {
        $option:literal, $kind:expr, $unit:literal, $default:expr, $kept:ident, $help:literal
    })*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $(#[doc = $help] $variant,)*
        }

        impl $name {
            const ROWS: &'static [Row] = &[$(Row {
                name: $option,
                of: Of::$of,
                kind: $kind,
                unit: $unit,
                default: $default,
                kept: Kept::$kept,
                help: $help,
            },)*];

            /// The default of an option that is a number. A constant of it does not compile for
            /// any other option.
            pub const fn number(self) -> u64 {
                match &Self::ROWS[self as usize].default {
                    Value::Uint(number) => *number,
                    _ => panic!("the option is no number"),
                }
            }
        }

        impl Table for $name {
            const ALL: &'static [$name] = &[$($name::$variant,)*];

            fn row(self) -> &'static Row {
                &Self::ROWS[self as usize]
            }
        }
    };
}

// name, type and range, unit, default, where it is kept, what it does
table! {
    /// Options of a volume.
    VolumeOption of Volume:
    WritebackRunning => {
        "writeback_running", Kind::Bool, "", Value::Bool(true), Config,
        "whether dirty data are written back without being asked for"
    }
    WritebackPercent => {
        "writeback_percent", Kind::Uint(0, 40), "% of the cache", Value::Uint(10), Config,
        "dirty data that are left alone while the volume is busy"
    }
    IoErrorLimit => {
        "io_error_limit", Kind::Uint(1, IO_ERROR_LIMIT_MAX), "errors", Value::Uint(64), Config,
        "errors of the backing device at which it is given up"
    }
    IoDisable => {
        "io_disable", Kind::Bool, "", Value::Bool(false), Run,
        "the backing device is given up: misses, writes and discards fail at once, hits are still served; set it to false once the device works, and errors count from zero again"
    }
    StopWhenCacheSetFailed => {
        "stop_when_cache_set_failed", Kind::Word(&["auto", "always"]), "", Value::Word("auto"), Config,
        "what becomes of the volume when its cache device is removed: it goes on without, or is taken down; with dirty data and auto the kernel takes it down, here see cache_missing_io"
    }
    CacheMissingIo => {
        "cache_missing_io", Kind::Word(&["wait", "fail"]), "", Value::Word("wait"), Config,
        "with dirty data on a cache device that was removed: what becomes of reads of these, and of all writes, until the device is back"
    }
    CacheMissingTimeoutS => {
        "cache_missing_timeout_s", Kind::Uint(0, 31_536_000), "s", Value::Uint(600), Config,
        "with dirty data on a cache device that was removed: how long the volume stays before it is taken down; 0: for ever"
    }
}

table! {
    /// Options of a cache set.
    SetOption of Set:
    JournalDelayMs => {
        "journal_delay_ms", Kind::Uint(1, 60_000), "ms", Value::Uint(100), Config,
        "how long a change waits for its journal entry without a flush"
    }
    IoErrorLimit => {
        "io_error_limit", Kind::Uint(1, IO_ERROR_LIMIT_MAX), "errors", Value::Uint(8), Config,
        "errors of the cache device, at data, at which it is given up"
    }
    IoErrorHalflife => {
        "io_error_halflife", Kind::Uint(0, 1 << 40), "I/Os", Value::Uint(0), Config,
        "I/Os after which half of the errors are forgotten; 0: never"
    }
    Errors => {
        "errors", Kind::Word(&["unregister", "panic"]), "", Value::Word("unregister"), Config,
        "what becomes of a set whose cache device is given up: volumes without dirty data go on without a cache, or the process ends"
    }
    CopyGcEnabled => {
        "copy_gc_enabled", Kind::Bool, "", Value::Bool(true), Config,
        "whether data are moved out of mostly empty buckets when space is wanted"
    }
}

table! {
    /// Options of the module, set before framework_start_init.
    ModuleOption of Module:
    Examine => {
        "examine", Kind::Bool, "", Value::Bool(true), Config,
        "whether superblocks found on bdevs are brought up"
    }
    ExamineExclude => {
        "examine_exclude", Kind::Bdevs, "", Value::Texts(Vec::new()), Config,
        "bdevs, by name or alias, that are left alone whatever is found on them; bdev_bcache_register and bdev_bcache_create take them all the same"
    }
    StartWaitS => {
        "start_wait_s", Kind::Uint(0, 3600), "s", Value::Uint(10), Config,
        "how long the start with a saved configuration waits for a volume; those that never come share that time"
    }
}

/// What is kept on disk and set by methods of its own: the cache mode, bucket and block size.
pub const FORMAT_ROWS: &[Row] = &[MODE, BUCKET_SIZE_KB, BLOCK_SIZE];

/// The cache mode of a volume.
pub const MODE: Row = Row {
    name: "mode",
    of: Of::Volume,
    kind: Kind::Word(&["writethrough", "writeback", "writearound", "none"]),
    unit: "",
    default: Value::Word("writethrough"),
    kept: Kept::Disk,
    help: "which writes go to the cache and when they are answered",
};

/// The size of a bucket.
pub const BUCKET_SIZE_KB: Row = Row {
    name: "bucket_size_kb",
    of: Of::Set,
    kind: Kind::PowerOfTwo(4, 16384),
    unit: "KiB",
    default: Value::Uint(512),
    kept: Kept::Disk,
    help: "size of a bucket of a new cache device; the default is less where the device would have fewer than 1024",
};

/// The block size.
pub const BLOCK_SIZE: Row = Row {
    name: "block_size",
    of: Of::Set,
    kind: Kind::PowerOfTwo(512, 4096),
    unit: "bytes",
    default: Value::Null,
    kept: Kept::Disk,
    help: "block size of a new cache device; the default is the larger of the two bdevs'",
};
