//! What all reactors share of a volume and of its cache set.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::Kind;
use super::missing::Missing;
use super::msg::Door;
use super::trouble::BackingHealth;
use crate::alloc::gens::Gens;
use crate::format::superblock::CacheMode;
use crate::index::{Domain, Index};
use crate::stats::{Apart, Counting, Totals};
use crate::units::{Sector, Uuid};

/// What all reactors share of a cache set.
pub struct SetShared {
    /// Generations of the buckets.
    pub gens: Arc<Gens>,
    /// Where readers of the indexes register.
    pub domain: Arc<Domain>,
    /// Where new fronts come in.
    pub door: Door,
    /// Sectors of a bucket; a power of two.
    pub bucket_sectors: u32,
    /// Whether write-back writes may go into the cache: it is not too full of dirty data.
    pub writeback_ok: AtomicBool,
    /// Whether reads may be filled into the cache.
    pub fill_ok: AtomicBool,
    /// Set when the set has stopped for good.
    pub stopped: AtomicBool,
    /// What the fronts of all its volumes count.
    pub totals: Totals,
    /// Host reads and writes of volumes of the set so far, counted in coarse steps.
    ios: Apart<AtomicU64>,
    front_ids: Mutex<(Vec<u32>, u32)>,
}

impl SetShared {
    /// What a new set's reactors start from.
    pub fn new(gens: Arc<Gens>, domain: Arc<Domain>, bucket_sectors: u32) -> SetShared {
        SetShared {
            gens,
            domain,
            door: Door::default(),
            bucket_sectors,
            writeback_ok: AtomicBool::new(true),
            fill_ok: AtomicBool::new(true),
            stopped: AtomicBool::new(false),
            totals: Totals::default(),
            ios: Apart(AtomicU64::new(0)),
            front_ids: Mutex::new((Vec::new(), 0)),
        }
    }

    /// Host reads and writes so far.
    pub fn ios(&self) -> u64 {
        self.ios.0.load(Ordering::Relaxed)
    }

    /// Counts host reads and writes.
    pub fn count_ios(&self, n: u64) {
        self.ios.0.fetch_add(n, Ordering::Relaxed);
    }

    /// A number for a new front.
    pub fn front_id(&self) -> u32 {
        let mut ids = self.front_ids.lock().unwrap_or_else(|e| e.into_inner());
        ids.0.pop().unwrap_or_else(|| {
            ids.1 += 1;
            ids.1 - 1
        })
    }

    /// Takes a front's number back, once the owner has seen it go.
    pub fn front_gone(&self, id: u32) {
        let mut ids = self.front_ids.lock().unwrap_or_else(|e| e.into_inner());
        ids.0.push(id);
    }
}

/// A volume's place in a cache set.
#[derive(Clone)]
pub struct Attached {
    /// The set.
    pub set: Arc<SetShared>,
    /// The volume's number with the owner.
    pub number: u32,
    /// What is cached.
    pub index: Arc<Index>,
    /// Counts the changes of the volume's map and backing device that a fill must not miss.
    pub changes: Arc<AtomicU64>,
}

/// The name of a volume and its bdev: one cell for all that show or log it, which a rename changes.
#[derive(Clone)]
pub struct Name(Arc<Mutex<String>>);

impl Name {
    /// A volume's first name.
    pub fn new(name: String) -> Name {
        Name(Arc::new(Mutex::new(name)))
    }

    /// The name now.
    pub fn get(&self) -> String {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Changes it everywhere.
    pub fn set(&self, name: &str) {
        *self.0.lock().unwrap_or_else(|e| e.into_inner()) = name.into();
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.lock().unwrap_or_else(|e| e.into_inner()))
    }
}

/// What all reactors share of a volume. A volume that is attached or detached gets a new one.
pub struct VolumeShared {
    /// The bdev's name.
    pub name: Name,
    /// The volume's UUID.
    pub uuid: Uuid,
    /// Sectors in a block of the volume.
    pub block_sectors: u32,
    size_sectors: AtomicU64,
    /// Where the data begin on the backing device; `None` for a volume on the cache alone.
    pub data_offset: Option<Sector>,
    /// Where it is cached.
    pub cache: Option<Attached>,
    mode: AtomicU8,
    totals: Arc<Totals>,
    /// The errors of its backing device.
    pub health: Arc<BackingHealth>,
    /// What it cannot serve while its cache device is gone.
    pub missing: Option<Missing>,
}

impl VolumeShared {
    /// A volume of so many sectors.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        name: Name,
        uuid: Uuid,
        block_sectors: u32,
        size_sectors: u64,
        data_offset: Option<Sector>,
        cache: Option<Attached>,
        mode: CacheMode,
        totals: Arc<Totals>,
    ) -> VolumeShared {
        VolumeShared {
            name,
            uuid,
            block_sectors,
            size_sectors: AtomicU64::new(size_sectors),
            data_offset,
            cache,
            mode: AtomicU8::new(mode as u8),
            totals,
            health: Arc::default(),
            missing: None,
        }
    }

    /// Without what is on a cache device that is gone.
    pub fn without(self, missing: Missing) -> VolumeShared {
        let missing = Some(missing);
        VolumeShared { missing, ..self }
    }

    /// Whether an I/O waits for the cache device to come back: it is not given to a front.
    #[inline]
    pub fn holds_back(&self, kind: Kind, start: Sector, sectors: u64) -> bool {
        let missing = self.missing.as_ref();
        missing.is_some_and(|m| m.waits && m.stops(kind, start.0, sectors))
    }

    /// With the errors of its backing device counted elsewhere too.
    pub fn with_health(self, health: Arc<BackingHealth>) -> VolumeShared {
        VolumeShared { health, ..self }
    }

    /// Its size in sectors.
    pub fn size_sectors(&self) -> u64 {
        self.size_sectors.load(Ordering::Relaxed)
    }

    /// Changes its size, before hosts are told of a larger one or after they were of a smaller.
    pub fn set_size_sectors(&self, sectors: u64) {
        self.size_sectors.store(sectors, Ordering::Relaxed);
    }

    /// The cache mode now.
    #[inline]
    pub fn mode(&self) -> CacheMode {
        CacheMode::ALL[usize::from(self.mode.load(Ordering::Relaxed)) & 3]
    }

    /// Changes the cache mode for all I/O that starts from now on.
    pub fn set_mode(&self, mode: CacheMode) {
        self.mode.store(mode as u8, Ordering::Relaxed);
    }

    /// The counters of all fronts of the volume.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Counters for a new front, which count for the volume and for the set that caches it.
    pub fn new_stats(&self) -> Counting {
        let counting = Counting::default();
        self.totals.add(&counting);
        if let Some(cache) = &self.cache {
            cache.set.totals.add(&counting);
        }
        counting
    }
}
