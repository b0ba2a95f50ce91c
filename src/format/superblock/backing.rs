//! The superblock of a backing device: its set, its cache mode, and what it knows of the set's data.

use std::fmt;

use super::*;

/// How a volume treats its writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CacheMode {
    /// Writes go to both devices.
    WriteThrough,
    /// Writes go to the cache and later to the backing device.
    WriteBack,
    /// Writes go to the backing device; the cache forgets the range.
    WriteAround,
    /// Reads are not cached either.
    None,
}

impl CacheMode {
    /// Every mode.
    pub const ALL: [CacheMode; 4] = [
        CacheMode::WriteThrough,
        CacheMode::WriteBack,
        CacheMode::WriteAround,
        CacheMode::None,
    ];

    /// Its name: `writethrough`, `writeback`, `writearound` or `none`.
    pub const fn name(self) -> &'static str {
        match self {
            CacheMode::WriteThrough => "writethrough",
            CacheMode::WriteBack => "writeback",
            CacheMode::WriteAround => "writearound",
            CacheMode::None => "none",
        }
    }

    /// The mode of that name.
    pub fn from_name(name: &str) -> Option<CacheMode> {
        CacheMode::ALL.into_iter().find(|mode| mode.name() == name)
    }

    const fn bits(self) -> u64 {
        self as u64
    }
}

impl fmt::Display for CacheMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a backing device knows of its set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackingState {
    /// It is attached to none.
    None,
    /// It has all data.
    Clean,
    /// The set holds data that it lacks.
    Dirty,
    /// It was written without its set: what the set holds of it is old.
    Stale,
}

impl BackingState {
    /// Its name: `none`, `clean`, `dirty` or `stale`.
    pub const fn name(self) -> &'static str {
        match self {
            BackingState::None => "none",
            BackingState::Clean => "clean",
            BackingState::Dirty => "dirty",
            BackingState::Stale => "stale",
        }
    }
}

impl fmt::Display for BackingState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The superblock of a backing device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackingSuper {
    /// 1, 4 with a data offset of its own, 6 with feature words.
    pub version: u64,
    /// Of the device.
    pub uuid: Uuid,
    /// Of the set it is attached to; zero for none.
    pub set_uuid: Uuid,
    /// A name, padded with zeros.
    pub label: [u8; 32],
    /// As on disk; read and changed by the methods.
    pub flags: u64,
    /// Counts up with some writings.
    pub seq: u64,
    /// Feature words (compat, incompat, ro_compat) and five unused words, as on disk.
    pub words: [u64; WORDS],
    /// The sector of this device where the volume's data begin.
    pub data_offset: Sector,
    /// Sectors in a block.
    pub block_sectors: u16,
    /// Seconds of the epoch.
    pub last_mount: u32,
    /// Bucket size, number in set, this device, first bucket: mean nothing here, kept.
    pub(super) unused: [u16; 4],
}

impl BackingSuper {
    /// A fresh one: attached to nothing, writethrough.
    ///
    /// # Errors
    /// A zero uuid, a bad block size, or a data offset below 16.
    pub fn new(
        uuid: Uuid,
        block_sectors: u16,
        data_offset: Sector,
    ) -> Result<BackingSuper, SuperError> {
        if uuid.is_nil() {
            return Err(SuperError::ZeroUuid);
        }
        if !is_block_size(block_sectors.into()) {
            return Err(SuperError::BadBlockSize {
                sectors: block_sectors,
            });
        }
        if data_offset < DEFAULT_DATA_OFFSET {
            return Err(SuperError::BadDataOffset {
                sector: data_offset.0,
            });
        }
        let is_default = data_offset == DEFAULT_DATA_OFFSET;
        Ok(BackingSuper {
            version: if is_default {
                VERSION_BACKING
            } else {
                VERSION_BACKING_OFFSET
            },
            uuid,
            set_uuid: Uuid::NIL,
            label: [0; 32],
            flags: 0,
            seq: 0,
            words: [0; WORDS],
            data_offset,
            block_sectors,
            last_mount: 0,
            unused: [0; 4],
        })
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<BackingSuper, SuperError> {
        let c = Common::parse(bytes)?;
        let data_offset = match c.version {
            VERSION_BACKING => DEFAULT_DATA_OFFSET,
            _ => Sector(u64_at(bytes, AT_DATA_OFFSET)),
        };
        if data_offset < DEFAULT_DATA_OFFSET {
            return Err(SuperError::BadDataOffset {
                sector: data_offset.0,
            });
        }
        let mode = (c.flags & MODE_MASK) as u8;
        if usize::from(mode) >= CacheMode::ALL.len() {
            return Err(SuperError::UnknownCacheMode { mode });
        }
        Ok(BackingSuper {
            version: c.version,
            uuid: c.uuid,
            set_uuid: c.set_uuid,
            label: c.label,
            flags: c.flags,
            seq: c.seq,
            words: c.words,
            data_offset,
            block_sectors: c.block_sectors,
            last_mount: c.last_mount,
            unused: [
                AT_BUCKET_SIZE,
                AT_NR_IN_SET,
                AT_NR_THIS_DEV,
                AT_FIRST_BUCKET,
            ]
            .map(|at| u16_at(bytes, at)),
        })
    }

    /// Whether a device of `device_sectors` has room for any data behind the offset.
    ///
    /// # Errors
    /// [`SuperError::DeviceTooSmall`].
    pub fn check_device(&self, device_sectors: u64) -> Result<(), SuperError> {
        let needs = self.data_offset.0.saturating_add(self.block_sectors.into());
        if device_sectors < needs {
            return Err(SuperError::DeviceTooSmall {
                has: device_sectors,
                needs,
            });
        }
        Ok(())
    }

    /// The 4096 bytes that stand at sector 8.
    pub fn encode(&self) -> [u8; SUPER_BYTES] {
        let mut out = Common {
            version: self.version,
            uuid: self.uuid,
            set_uuid: self.set_uuid,
            label: self.label,
            flags: self.flags,
            seq: self.seq,
            words: self.words,
            block_sectors: self.block_sectors,
            last_mount: self.last_mount,
        }
        .encode();
        if self.version != VERSION_BACKING {
            put(&mut out, AT_DATA_OFFSET, &self.data_offset.0.to_le_bytes());
        }
        let places = [
            AT_BUCKET_SIZE,
            AT_NR_IN_SET,
            AT_NR_THIS_DEV,
            AT_FIRST_BUCKET,
        ];
        for (at, value) in places.into_iter().zip(self.unused) {
            put(&mut out, at, &value.to_le_bytes());
        }
        seal(&mut out);
        out
    }

    /// How writes are treated.
    pub fn cache_mode(&self) -> CacheMode {
        // Values beyond the four are refused by `parse`.
        CacheMode::ALL[(self.flags & MODE_MASK) as usize % CacheMode::ALL.len()]
    }

    /// Says how writes are to be treated.
    pub fn set_cache_mode(&mut self, mode: CacheMode) {
        self.flags = self.flags & !MODE_MASK | mode.bits();
    }

    /// What the device knows of its set.
    pub const fn state(&self) -> BackingState {
        match self.flags >> STATE_SHIFT & STATE_MASK {
            0 => BackingState::None,
            1 => BackingState::Clean,
            2 => BackingState::Dirty,
            _ => BackingState::Stale,
        }
    }

    /// Says what the device is to know of its set.
    pub fn set_state(&mut self, state: BackingState) {
        self.flags = self.flags & !(STATE_MASK << STATE_SHIFT) | (state as u64) << STATE_SHIFT;
    }
}
