//! Backing devices against what the set says of them.

use super::report::{Kind, Place};
use super::{CannotCheck, Check, Source, kind_of_super, read_super};
use crate::format::superblock::{BackingState, BackingSuper, SUPER_SECTOR, Super};
use crate::units::{SECTOR_BYTES, Sector, Uuid};

/// A backing device that was given and that belongs to the set.
pub(super) struct Given {
    device: String,
    inode: Option<usize>,
    state: BackingState,
}

impl Check<'_> {
    fn find_on(&mut self, device: &str, kind: Kind, byte: u64, text: String) {
        let place = Place {
            device: device.to_string(),
            bucket: None,
            byte: Some(byte),
        };
        self.report.add(kind, place, text);
    }

    /// Reads the superblock of a backing device and says what is wrong with it.
    fn backing_super(&mut self, source: &dyn Source) -> Option<BackingSuper> {
        let name = source.name();
        let found = match read_super(source) {
            Ok(found) => found,
            Err(error) => {
                let kind = match error {
                    CannotCheck::TooSmall(_) => Kind::SuperMagic,
                    _ => Kind::Unreadable,
                };
                self.find_on(&name, kind, SUPER_SECTOR.bytes(), error.to_string());
                return None;
            }
        };
        if found.foreign.is_some() {
            let text = CannotCheck::NotOurs(name.clone()).to_string();
            self.find_on(&name, Kind::SuperMagic, SUPER_SECTOR.bytes(), text);
            return None;
        }
        if let Some(error) = &found.error {
            self.find_on(&name, kind_of_super(error), error.byte(), error.to_string());
        }
        match found.says {
            Some(Super::Backing(sb)) => Some(sb),
            Some(Super::Cache(sb)) => {
                let text = format!(
                    "a cache device (of set {}), not a backing device",
                    sb.set_uuid
                );
                self.find_on(&name, Kind::BackingElsewhere, SUPER_SECTOR.bytes(), text);
                None
            }
            None => None,
        }
    }

    /// The backing devices of a set that has never run.
    pub(super) fn backings_of_nothing(&mut self, backings: &[&dyn Source]) {
        for source in backings {
            let Some(sb) = self.backing_super(*source) else {
                continue;
            };
            if sb.state() == BackingState::Dirty && sb.set_uuid == self.cache.sb.set_uuid {
                let text = "says that the set has dirty data of it, but the set was never started"
                    .to_string();
                let byte = SUPER_SECTOR.bytes();
                self.find_on(&source.name(), Kind::NotStarted, byte, text);
            }
        }
    }

    /// Reads the backing devices and says which do not belong here.
    pub(super) fn take_backings(
        &mut self,
        backings: &[&dyn Source],
        uuids_known: bool,
    ) -> Vec<Given> {
        let mut given: Vec<Given> = Vec::new();
        let mut seen: Vec<Uuid> = Vec::new();
        for source in backings {
            let (name, byte) = (source.name(), SUPER_SECTOR.bytes());
            let Some(sb) = self.backing_super(*source) else {
                continue;
            };
            if seen.contains(&sb.uuid) {
                let text = format!("a backing device of uuid {} was given already", sb.uuid);
                self.find_on(&name, Kind::BackingTwice, byte, text);
                continue;
            }
            seen.push(sb.uuid);
            if sb.block_sectors < self.cache.sb.block_sectors {
                let text = format!(
                    "its blocks of {} bytes are smaller than the cache's, {} bytes",
                    u32::from(sb.block_sectors) * SECTOR_BYTES as u32,
                    u32::from(self.cache.sb.block_sectors) * SECTOR_BYTES as u32
                );
                self.find_on(&name, Kind::BlockSize, byte, text);
            }
            given.extend(self.take_backing(*source, &sb, uuids_known));
        }
        given
    }

    fn take_backing(
        &mut self,
        source: &dyn Source,
        sb: &BackingSuper,
        uuids_known: bool,
    ) -> Option<Given> {
        let (name, byte, state) = (source.name(), SUPER_SECTOR.bytes(), sb.state());
        let is_entry = |entry: &crate::format::uuids::UuidEntry| {
            entry.is_live() && !entry.is_flash_only() && entry.uuid == sb.uuid
        };
        let inode = self.uuids.iter().position(is_entry);
        if sb.set_uuid != self.cache.sb.set_uuid {
            if state == BackingState::None {
                self.report.note(format!("{name} is attached to no set"));
            } else {
                let text = format!("attached to set {}, {state}", sb.set_uuid);
                self.find_on(&name, Kind::BackingElsewhere, byte, text);
                return None;
            }
        } else if inode.is_none() && uuids_known && state != BackingState::None {
            let text = format!(
                "says it is {state}, but the set does not know its uuid {}",
                sb.uuid
            );
            if state == BackingState::Dirty {
                self.find_on(&name, Kind::BackingUnknown, byte, text);
            } else {
                // Nothing is lost: the set takes it in anew when it starts.
                self.report.note(format!("{name} {text}"));
            }
        }
        if let Some(i) = inode {
            let sectors = source.size_bytes() / SECTOR_BYTES as u64;
            self.bounds[i] = (sb.data_offset, Sector(sectors));
            self.volumes[i].backing = Some(name.clone());
        }
        Some(Given {
            device: name,
            inode,
            state,
        })
    }

    /// Compares the states of backing devices with what is dirty, when all keys have been seen.
    pub(super) fn states(&mut self, given: &[Given]) {
        for Given {
            device,
            inode,
            state,
        } in given
        {
            let dirty = inode.map_or(0, |i| self.volumes[i].dirty_bytes);
            if dirty == 0 || *state == BackingState::Dirty {
                continue;
            }
            let (kind, why) = match state {
                BackingState::Stale => (
                    Kind::StateStale,
                    "it was written without its set, so these are older than what it holds",
                ),
                _ => (Kind::StateNotDirty, "they would be forgotten"),
            };
            let text =
                format!("says it is {state}, but the set has {dirty} dirty bytes of it: {why}");
            self.find_on(device, kind, SUPER_SECTOR.bytes(), text);
        }
        let missing = |sum: &&super::VolumeSum| {
            sum.kind == "backing" && sum.backing.is_none() && sum.dirty_bytes > 0
        };
        let notes: Vec<String> = self
            .volumes
            .iter()
            .filter(missing)
            .map(|sum| {
                format!(
                    "the set has {} dirty bytes of backing device {}, which was not given",
                    sum.dirty_bytes, sum.uuid
                )
            })
            .collect();
        notes.into_iter().for_each(|note| self.report.note(note));
    }
}
