//! spdk-bcache: Linux bcache as a virtual bdev of SPDK, on the kernel's own disk format.
//!
//! A fast device caches slow ones. A *set* is a cache device and what it caches; a *volume* is what
//! hosts see: a backing device as cached by a set, or space on the cache device alone. Either side,
//! the kernel or this engine, opens what the other left, dirty data included.
//!
//! # The data path
//! ```text
//!  NVMe-oF, iSCSI, vhost                                    JSON-RPC, examine
//!        │ host I/O, any reactor                                  │
//!        ▼                                                        ▼
//!      front ──────── lookup ────────▶ index               rpc ─▶ set: start, recover, attach …
//!        │ │                             ▲                        │
//!        │ └─ insert, fill, through ─▶ owner ◀── dirty extents ── writeback
//!        │      (bounded rings)          │                        │ read, write, flush, then clean
//!        │                               ├─▶ journal ─▶ entry: flush · write · flush
//!        ▼                               ├─▶ btree ───▶ runs of keys, appended to nodes
//!      lane                              └─▶ alloc ───▶ generations and priorities
//!        │ hits, new data                               │
//!        ├─────────────────▶ cache device ◀─────────────┘
//!        └─────────────────▶ backing device
//!            misses, writes past the cache
//! ```
//! - **A read hit** is a lookup, a read of the cache device, and a second look at the bucket's
//!   generation: no lock, no allocation, no message. **A miss** reads the backing device, answers
//!   the host, and offers the data to the owner as a fill.
//! - **A write-back write** puts the data into an open bucket of its reactor's, then gives the key
//!   to the owner: journal entry in memory, index, answer. **Any other write** first has the owner
//!   take the range out of the map, then goes to the backing device.
//! - **A flush** is one group commit: all that was answered before it is in a journal entry, and
//!   that entry is durable on the cache device. The backing device is flushed only if something
//!   was written to it since its last flush.
//!
//! [`request`] says what keeps stale bytes out of that, [`journal`] and [`btree`] what is written
//! when, [`alloc`] how a bucket is used again.
//!
//! # Layers
//! Arrows go down only: a module uses those in rows below its own, never one beside it.
//! `tests/style.rs` reads this table and every `use` line.
//!
//! | modules | what they are |
//! |---|---|
//! | `bin` | the programs |
//! | `spdk` `sim` | the two worlds: real devices and reactors, simulated ones; they never meet |
//! | `check` | verifies a set on its devices, without running it |
//! | `rpc` | methods, parameters, results, error codes |
//! | `set` | sets and volumes: create, start, recover, attach, detach, stop |
//! | `writeback` `gc` | dirty data on their way to the backing device · keys of reused buckets |
//! | `request` | one host I/O: the fronts on the reactors, and the owner of all changes |
//! | `btree` | the map: what is cached where, and the nodes that are its form on disk |
//! | `alloc` | buckets: generations, priorities, free lists, reserves |
//! | `journal` `index` | ring, group commit, replay · the lockless map in memory |
//! | `format` `disk` | the bytes on disk · one device, by owned buffers |
//! | `limits` `rng` `options` | what the format bounds · random numbers from a seed · tables of options |
//! | `task` `stats` `units` `canary` | executor and its clock · counters · sectors, buckets, generations · seeded bugs |
//!
//! Write-back stands *above* the request path: it is one more party that moves ranges of a volume,
//! so it asks the same owner for them that host I/O asks; the owner knows nothing of it. What would
//! point up is cut: who waits for space, for a sweep or for the journal waits on a notice that the
//! lower side gives ([`task::Notify`]); replay only yields entries, which `set` inserts; how a
//! superblock is marked dirty and which volumes are flushed before btree nodes are written comes
//! down as a trait ([`btree::Backings`]); and a failure deep down trips a latch ([`disk::Latch`]) that all look at.
//! Below `spdk` and `sim` nothing knows a clock, a thread or a file, so the same engine runs in
//! both worlds.
//!
//! # Threads
//! One *owner* thread makes every change: of the map, the journal, the allocator, the tree and the
//! superblocks, in tasks of one executor whose steps are all bounded. *Reactors* have a front for
//! each volume: they look up, and move data between the host and the devices. The two talk through
//! bounded rings; reactors share nothing but the index, the generations of buckets and counters.
//!
//! # What a crash may leave
//! At any write, with unflushed writes lost, torn between sectors, or reordered:
//! - Everything that an answered flush covered reads back. Of writes after the last flush each
//!   sector holds the new data or what it held before, never anything else.
//! - Data may be dirty that were clean, never the other way round: a key becomes clean only after
//!   the backing device has been flushed. A backing device may say dirty with nothing dirty left,
//!   never clean with something dirty.
//! - Clean data may be forgotten. A bucket is not used again before its raised generation is on the
//!   disk, so no old key ever reads new data.
//! - A device that was being formatted is blank, fresh, or finished; a torn superblock is refused.
#![deny(unsafe_code)]

pub mod alloc;
pub mod btree;
pub mod canary;
pub mod check;
pub mod disk;
pub mod format;
pub mod gc;
#[allow(unsafe_code)]
pub mod index;
pub mod journal;
pub mod limits;
pub mod options;
pub mod request;
pub mod rng;
pub mod rpc;
pub mod set;
pub mod sim;
#[cfg(feature = "spdk")]
pub mod spdk;
pub mod stats;
pub mod task;
pub mod units;
pub mod writeback;
