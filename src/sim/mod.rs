//! The engine in a world made of memory: simulated disks, clock and reactors, all from one seed.
//!
//! Everything below the SPDK boundary runs here unchanged, on one thread. A [`world::World`] steps
//! the owner, its tasks and every reactor in an order drawn from the seed, lets time jump to the
//! next event, cuts the power when it likes, and starts the set again on what the disks kept.
//! An [`oracle::Oracle`] knows what every sector may hold. A run is a function of its seed: what fails
//! once fails again. Where seeds take any way, a [`sweep`] takes one way and stops at each of its steps.
//!
//! | file | what |
//! |---|---|
//! | [`sched`] | the clock and what is due when |
//! | [`disk`] | disks with a volatile write cache, power cuts that tear and reorder |
//! | [`fuse`] | power cuts and failures at a moment that is chosen |
//! | [`ills`] | what a device does wrong, or otherwise than others |
//! | [`lane`] | one reactor's way to the disks and to the hosts' memory |
//! | [`bytes`] | what a device holds, in pages that copies share |
//! | [`queue`] | a queue that all devices share, as AIO bdevs do |
//! | [`lower`] | what lies under a volume: a disk, or another volume |
//! | [`device`] | a device as the engine's own I/O sees it, with its flaws |
//! | [`host`] | the lifecycle's world: devices by name, entropy, the date |
//! | [`reactor`] | a volume on one reactor: its front, and what is held there |
//! | [`stage`] | fronts for the volumes that the lifecycle shows, on any number of reactors |
//! | [`machine`] | one life of all that, driven step by step and by RPC |
//! | [`operator`] | a random operator: RPC calls, host I/O, devices that fail and move |
//! | [`oracle`] | the versions that a sector may show, in a life and after a crash |
//! | [`plan`] | what a run does, drawn from its seed |
//! | [`world`] | a set, its volumes, fronts and load over several lives |
//! | [`check`] | what must be true of a set at rest |
//! | [`kernel`] | how Linux would read a set, as one more judge |
//! | [`seeds`] | many seeds at once |
//! | [`script`] | the whole engine with its lifecycle, driven by a script |
//! | [`sweep`] | the power cut at every single write of a script |
//! | [`scenario`] | the scripts of the sweep |

pub mod bytes;
pub mod check;
pub mod device;
pub mod disk;
pub mod fuse;
pub mod host;
pub mod ills;
pub mod kernel;
pub mod lane;
pub mod lower;
pub mod machine;
pub mod operator;
pub mod oracle;
pub mod plan;
pub mod queue;
pub mod reactor;
pub mod scenario;
pub mod sched;
pub mod script;
pub mod seeds;
pub mod stage;
pub mod sweep;
pub mod tight;
pub mod world;
