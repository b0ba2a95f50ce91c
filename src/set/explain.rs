//! What failed, for people: the volume, the device, the place on it, and the reason, and what that
//! leaves as it was.

use std::fmt;

use super::cache::CacheSet;
use super::error::SetError;
use super::volume::Volume;
use crate::disk::IoError;
use crate::request::volume::Name;
use crate::units::Uuid;

/// Dirty data could not be written back; they stay on the cache device.
#[derive(Debug)]
pub struct WriteBackFailed {
    volume: String,
    /// The device, the place and the reason.
    why: String,
    dirty_bytes: u64,
}

impl fmt::Display for WriteBackFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (volume, bytes, why) = (&self.volume, self.dirty_bytes, &self.why);
        write!(
            f,
            "volume {volume} stays attached: write-back failed, and {bytes} bytes stay on the cache \
             device: {why}"
        )
    }
}

/// An operation on all volumes of a set ended before the last one.
#[derive(Debug)]
pub struct HalfWay {
    set: Uuid,
    /// Volumes that it was done for.
    done: String,
    /// Volumes that it was not begun for.
    left: String,
    /// What ended it.
    pub error: Box<SetError>,
}

impl fmt::Display for HalfWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (set, done, left, error) = (self.set, &self.done, &self.left, &self.error);
        write!(
            f,
            "cache set {set} still runs: {error}; detached: {done}; untouched: {left}"
        )
    }
}

/// Why the dirty data of a volume could not be written back to its backing device.
pub(super) fn write_back_failed(volume: &Volume, set: &CacheSet, error: IoError) -> SetError {
    let cache = set.disk.name();
    let backing = volume
        .backing
        .as_ref()
        .and_then(|b| b.health.last_failure());
    let why = if let Some(why) = set.latch.why() {
        format!("cache set {} has stopped: {why}", set.set_uuid())
    } else if let Some(why) = set.owner.health.lost() {
        format!("cache device {cache}: {why}")
    } else if let Some(why) = backing {
        format!("backing device {why}")
    } else {
        format!("cache device {cache}: {error}")
    };
    SetError::WriteBack(WriteBackFailed {
        volume: volume.name(),
        why,
        dirty_bytes: volume.dirty_bytes(),
    })
}

/// An operation on all volumes of a set that one of them ended: which are done and which untouched.
pub(super) fn half_way(set: &CacheSet, done: &[Name], left: &[Name], error: SetError) -> SetError {
    let list = |names: &[Name]| match names {
        [] => "none".to_string(),
        names => names.iter().map(Name::get).collect::<Vec<_>>().join(", "),
    };
    SetError::HalfWay(HalfWay {
        set: set.set_uuid(),
        done: list(done),
        left: list(left),
        error: Box::new(error),
    })
}
