//! What every sector may hold.
//!
//! Every write of the load has a value of its own. The oracle keeps, for each sector, the versions
//! that a read may still return or a crash may still bring back, with the moments at which each was
//! begun and answered. One rule serves both questions: a version is out once another one, begun
//! after it was answered, was itself answered before *the floor*. For a read the floor is the
//! beginning of the read; for a crash it is the beginning of the last flush that was answered.
//!
//! What was seen counts: when a read that nothing overlaps returns one of several versions, the
//! others are older from then on. After a power cut what is left is durable, so the one that is
//! seen first is the only one for good, whatever happens to the power afterwards.
//!
//! A discard leaves either what was there or zeros; a failed write may have changed anything. Both
//! are *weak*: they may be seen, but put nothing else out. A write that is durable when it is answered
//! (FUA) counts as flushed, alone. Of a write whose memory the host changed under way either value may
//! be seen, now the one, now the other, until the sector is written again. Where data were given up, a
//! sector holds any value that it ever had ([`Oracle::give_up`]).

use super::bytes::{Bytes, Image};
use crate::request::Kind;
use crate::units::SECTOR_BYTES;

/// The order of events as the load sees them.
pub type Moment = u64;

/// The value of a sector that was never written, or was zeroed.
pub const ZERO: u32 = 0;

/// Any value that the sector ever had.
const ANY: u32 = u32::MAX;

/// What the sector held before the first host wrote: see [`Oracle::add`].
const FOREIGN: u32 = u32::MAX - 1;

/// What it held before that, or what no host wrote: only data that were given up may be that.
const ELDER: u32 = u32::MAX - 2;

/// Versions of a sector beyond which the old ones are looked through.
const MANY: usize = 12;

#[derive(Clone, Copy, Debug)]
struct Version {
    value: u32,
    begun: Moment,
    answered: Option<Moment>,
    weak: bool,
    /// It came through a power cut.
    survivor: bool,
    /// It is durable once it is answered.
    durable: bool,
    /// Seeing it says nothing of others that began at the same moment.
    torn: bool,
}

impl Version {
    fn is_out(&self, all: &[Version], floor: Moment) -> bool {
        let Some(answered) = self.answered else {
            return false;
        };
        all.iter().any(|other| {
            let done = |at| at < floor;
            !other.weak && other.begun > answered && other.answered.is_some_and(done)
        })
    }

    /// Whether no crash brings it back: `floor` is the beginning of the last flush.
    fn is_lost(&self, all: &[Version], floor: Moment) -> bool {
        let Some(answered) = self.answered else {
            return false;
        };
        all.iter().any(|other| {
            let done = |at| at < floor || other.durable;
            !other.weak && other.begun > answered && other.answered.is_some_and(done)
        })
    }

    fn may_be(&self, value: u32) -> bool {
        self.value == value || self.value == ANY
    }

    const fn blank() -> Version {
        Version {
            value: ZERO,
            begun: 0,
            answered: Some(0),
            weak: false,
            survivor: false,
            durable: false,
            torn: false,
        }
    }
}

#[derive(Clone)]
struct Volume {
    sectors: Vec<Vec<Version>>,
    /// The beginning of the last flush that was answered.
    flushed: Moment,
    /// What it held before the first host wrote, where that was not zeros.
    contents: Option<Bytes>,
}

impl Volume {
    fn new(sectors: u64, contents: Option<Bytes>) -> Volume {
        let first = |sector: u64| {
            let held = contents.as_ref().and_then(|all| all.get(range(sector)));
            let is_zero = held.is_none_or(|bytes| bytes.iter().all(|&byte| byte == 0));
            vec![Version {
                value: if is_zero { ZERO } else { FOREIGN },
                ..Version::blank()
            }]
        };
        Volume {
            sectors: (0..sectors).map(first).collect(),
            flushed: 0,
            contents,
        }
    }
}

/// The bytes of a sector.
fn range(sector: u64) -> std::ops::Range<usize> {
    let from = sector as usize * SECTOR_BYTES;
    from..from + SECTOR_BYTES
}

/// The oracle of all volumes.
#[derive(Clone)]
pub struct Oracle {
    now: Moment,
    volumes: Vec<Volume>,
    /// When the reads in flight were begun.
    reading: Vec<Moment>,
}

/// A host I/O under way.
#[derive(Clone, Copy, Debug)]
pub struct Io {
    /// What is wanted.
    pub kind: Kind,
    /// The volume's number.
    pub volume: usize,
    /// The first sector.
    pub start: u64,
    /// How many.
    pub sectors: u64,
    /// When it began.
    pub begun: Moment,
}

impl Io {
    /// One that no oracle was told of.
    pub fn unfollowed(kind: Kind, volume: usize, start: u64, sectors: u64) -> Io {
        Io {
            kind,
            volume,
            start,
            sectors,
            begun: 0,
        }
    }
}

/// What stands in a sector of a volume when it holds a value.
pub fn sector_of(volume: usize, sector: u64, value: u32) -> [u8; SECTOR_BYTES] {
    let mut out = [0; SECTOR_BYTES];
    if value != ZERO {
        let head = (volume as u64 + 1) << 56 | sector << 32 | u64::from(value);
        for (i, word) in out.chunks_exact_mut(8).enumerate() {
            let text = head.wrapping_add((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            word.copy_from_slice(&text.to_le_bytes());
        }
    }
    out
}

/// What stands in a range of a volume whose sectors hold a value.
pub fn data_of(volume: usize, start: u64, sectors: u64, value: u32) -> Vec<u8> {
    let each = (start..start + sectors).map(|sector| sector_of(volume, sector, value));
    each.flatten().collect()
}

/// The values that sectors seem to hold: runs of (sectors, value), for people.
pub fn values(data: &[u8]) -> Vec<(usize, u32)> {
    let mut runs: Vec<(usize, u32)> = Vec::new();
    for bytes in data.chunks_exact(SECTOR_BYTES) {
        let value = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        match runs.last_mut() {
            Some(run) if run.1 == value => run.0 += 1,
            _ => runs.push((1, value)),
        }
    }
    runs
}

/// The value that a sector holds, or what is wrong with it. `contents` is what its volume held first.
fn value_of(
    volume: usize,
    sector: u64,
    bytes: &[u8],
    contents: Option<&Bytes>,
) -> Result<u32, String> {
    let mut head = [0; 8];
    head.copy_from_slice(&bytes[..8]);
    let head = u64::from_le_bytes(head);
    let value = head as u32;
    if bytes == sector_of(volume, sector, value) {
        return Ok(value);
    }
    let first = contents.and_then(|all| all.get(range(sector)));
    if first.is_some_and(|first| *first == *bytes) {
        return Ok(FOREIGN);
    }
    if value != ZERO && head >> 56 > 0 {
        let (volume, sector) = ((head >> 56) - 1, head >> 32 & 0xff_ffff);
        return Err(format!("value {value} of volume {volume} sector {sector}"));
    }
    if contents.is_some() {
        return Ok(ELDER);
    }
    Err(format!("garbage ({:x?}…)", &bytes[..16]))
}

impl Oracle {
    /// An oracle for volumes of so many sectors, all zeros.
    pub fn new(sizes: &[u64]) -> Oracle {
        Oracle {
            now: 1,
            volumes: sizes.iter().map(|&n| Volume::new(n, None)).collect(),
            reading: Vec::new(),
        }
    }

    /// One more volume, of so many sectors: zeros, or what it held before any host of this oracle wrote.
    /// Returns its number.
    pub fn add(&mut self, sectors: u64, contents: Option<Bytes>) -> usize {
        self.volumes.push(Volume::new(sectors, contents));
        self.volumes.len() - 1
    }

    /// A volume has another size; what is new is zeros.
    pub fn resize(&mut self, volume: usize, sectors: u64) {
        let begun = self.tick();
        let new = Version {
            begun,
            answered: Some(begun),
            ..Version::blank()
        };
        self.volumes[volume]
            .sectors
            .resize(sectors as usize, vec![new]);
    }

    /// A new moment.
    pub fn tick(&mut self) -> Moment {
        self.now += 1;
        self.now
    }

    /// A write of `value` begins; `weak` if the sectors may as well stay what they are.
    pub fn write_begins(
        &mut self,
        volume: usize,
        start: u64,
        sectors: u64,
        value: u32,
        weak: bool,
    ) -> Moment {
        let begun = self.tick();
        let floor = self.volumes[volume].flushed;
        let floor = self
            .reading
            .iter()
            .copied()
            .min()
            .unwrap_or(floor)
            .min(floor);
        for sector in self.range(volume, start, sectors) {
            if sector.len() >= MANY {
                let all = sector.clone();
                sector.retain(|v| !v.is_out(&all, floor));
            }
            sector.push(Version {
                value,
                begun,
                answered: None,
                weak,
                survivor: false,
                durable: false,
                torn: false,
            });
        }
        begun
    }

    /// The write that was begun then has been answered.
    pub fn write_ends(&mut self, volume: usize, start: u64, sectors: u64, begun: Moment, ok: bool) {
        let now = self.tick();
        for sector in self.range(volume, start, sectors) {
            for version in sector.iter_mut().filter(|v| v.begun == begun) {
                version.answered = Some(now);
                version.weak |= !ok;
            }
        }
    }

    /// A write that has ended well is durable.
    pub fn is_durable(&mut self, io: &Io) {
        for sector in self.range(io.volume, io.start, io.sectors) {
            for version in sector.iter_mut().filter(|v| v.begun == io.begun) {
                version.durable = true;
            }
        }
    }

    /// The host has changed the memory of a write under way: `value` may be what is written.
    pub fn write_changes(&mut self, io: &Io, value: u32) {
        for sector in self.range(io.volume, io.start, io.sectors) {
            let Some(version) = sector.iter_mut().find(|v| v.begun == io.begun) else {
                continue;
            };
            version.torn = true;
            let other = Version { value, ..*version };
            sector.push(other);
        }
    }

    /// A host I/O begins; `value` is what a write writes. Returns it, and the host's memory.
    pub fn begins(
        &mut self,
        kind: Kind,
        volume: usize,
        start: u64,
        sectors: u64,
        value: u32,
    ) -> (Io, Vec<u8>) {
        let mut memory = Vec::new();
        let begun = match kind {
            Kind::Read => {
                memory.resize(sectors as usize * SECTOR_BYTES, 0xee);
                self.read_begins()
            }
            Kind::Write => {
                memory = data_of(volume, start, sectors, value);
                self.write_begins(volume, start, sectors, value, false)
            }
            Kind::Flush => self.tick(),
            Kind::Unmap => self.write_begins(volume, start, sectors, ZERO, true),
            Kind::WriteZeroes => self.write_begins(volume, start, sectors, ZERO, false),
        };
        let io = Io {
            kind,
            volume,
            start,
            sectors,
            begun,
        };
        (io, memory)
    }

    /// A host I/O has ended, with the host's memory; `None` where it failed.
    ///
    /// # Errors
    /// It was a read, and what it read cannot be.
    pub fn ends(&mut self, io: &Io, memory: Option<&[u8]>) -> Result<(), String> {
        let &Io {
            kind,
            volume,
            start,
            sectors,
            begun,
        } = io;
        match kind {
            Kind::Read => return self.read_ends(volume, start, begun, memory),
            Kind::Flush if memory.is_some() => self.flushed(volume, begun),
            Kind::Flush => {}
            _ => self.write_ends(volume, start, sectors, begun, memory.is_some()),
        }
        Ok(())
    }

    /// A read begins.
    pub fn read_begins(&mut self) -> Moment {
        let begun = self.tick();
        self.reading.push(begun);
        begun
    }

    /// The read that was begun then has been answered with `data`, or failed.
    ///
    /// # Errors
    /// What is wrong with the first sector that is wrong.
    pub fn read_ends(
        &mut self,
        volume: usize,
        start: u64,
        begun: Moment,
        data: Option<&[u8]>,
    ) -> Result<(), String> {
        let now = self.tick();
        self.reading.retain(|&at| at != begun);
        let Some(data) = data else { return Ok(()) };
        let Volume {
            sectors,
            flushed,
            contents,
        } = &mut self.volumes[volume];
        for (i, bytes) in data.chunks_exact(SECTOR_BYTES).enumerate() {
            let at = start + i as u64;
            let versions = &mut sectors[at as usize];
            let found = value_of(volume, at, bytes, contents.as_ref()).and_then(|value| {
                if see(versions, value, begun, now) {
                    Ok(())
                } else {
                    Err(format!("value {value}"))
                }
            });
            if let Err(found) = found {
                return Err(format!(
                    "volume {volume} sector {at}: a read from {begun} to {now} returned {found}; \
                     last flush from {flushed}; versions {versions:?}"
                ));
            }
        }
        Ok(())
    }

    /// A flush that was begun then has been answered well.
    pub fn flushed(&mut self, volume: usize, begun: Moment) {
        self.tick();
        let volume = &mut self.volumes[volume];
        volume.flushed = volume.flushed.max(begun);
    }

    /// The engine is gone, with what was under way; `power`: and what the disks had not flushed.
    pub fn crash(&mut self, power: bool) {
        let now = self.tick();
        self.reading.clear();
        for volume in &mut self.volumes {
            let floor = volume.flushed;
            for sector in &mut volume.sectors {
                let all = std::mem::take(sector);
                for version in &all {
                    let known = sector.iter().any(|kept| kept.value == version.value);
                    if !version.is_lost(&all, floor) && !known {
                        sector.push(Version {
                            begun: now,
                            answered: Some(now),
                            weak: false,
                            survivor: power,
                            durable: power,
                            ..*version
                        });
                    }
                }
            }
        }
    }

    /// What was not flushed of a volume may be lost, while its hosts go on: a device failed for good.
    pub fn may_lose(&mut self, volume: usize) {
        let now = self.tick();
        let volume = &mut self.volumes[volume];
        let floor = volume.flushed;
        for sector in &mut volume.sectors {
            let all = sector.clone();
            // A read that is in flight may have got it already.
            let in_flight = |v: &Version| self.reading.iter().any(|&at| !v.is_out(&all, at));
            sector.retain(|version| !version.is_lost(&all, floor) || in_flight(version));
            let may_stay = |v: &Version| v.answered.is_some() && !v.is_lost(&all, floor);
            for version in sector.iter_mut().filter(|v| may_stay(v)) {
                (version.begun, version.answered) = (now, Some(now));
                version.weak = false;
            }
        }
    }

    /// From `start` on, what a volume holds may be given up: it then holds any value that it ever had.
    pub fn give_up(&mut self, volume: usize, start: u64) {
        let now = self.tick();
        let sectors = self.volumes[volume].sectors.iter_mut();
        for sector in sectors.skip(start as usize) {
            sector.push(Version {
                value: ANY,
                begun: now,
                answered: Some(now),
                weak: true,
                torn: true,
                ..Version::blank()
            });
        }
    }

    /// Whether a sector may hold `bytes` at rest: nothing is in flight, or the oracle knows of the crash
    /// already. What it knows does not change.
    ///
    /// # Errors
    /// What stands there, and what might.
    pub fn allows(&self, volume: usize, sector: u64, bytes: &[u8]) -> Result<(), String> {
        let Volume {
            sectors, contents, ..
        } = &self.volumes[volume];
        let versions = &sectors[sector as usize];
        let found = value_of(volume, sector, bytes, contents.as_ref()).and_then(|value| {
            let may = |v: &&Version| v.may_be(value) && !v.is_out(versions, Moment::MAX);
            match versions.iter().find(may) {
                Some(_) => Ok(()),
                None => Err(format!("value {value}")),
            }
        });
        found.map_err(|found| {
            format!("volume {volume} sector {sector} holds {found}; versions {versions:?}")
        })
    }

    /// The sectors of a volume.
    pub fn sectors(&self, volume: usize) -> u64 {
        self.volumes[volume].sectors.len() as u64
    }

    fn range(
        &mut self,
        volume: usize,
        start: u64,
        sectors: u64,
    ) -> impl Iterator<Item = &mut Vec<Version>> {
        let end = (start + sectors) as usize;
        self.volumes[volume].sectors[start as usize..end].iter_mut()
    }
}

/// Takes note of a value seen between two moments; false if it cannot be.
fn see(versions: &mut Vec<Version>, value: u32, begun: Moment, now: Moment) -> bool {
    let may = |v: &Version| v.may_be(value) && v.begun < now && !v.is_out(versions, begun);
    let exact = versions.iter().rposition(|v| v.value != ANY && may(v));
    let Some(found) = exact.or_else(|| versions.iter().rposition(may)) else {
        return false;
    };
    if versions[found].torn || versions.iter().any(|v| v.value == ANY) {
        return true;
    }
    if versions[found].survivor {
        let chosen = versions[found].begun;
        let mut i = 0;
        versions.retain(|v| {
            i += 1;
            !v.survivor || v.begun != chosen || i - 1 == found
        });
        return true;
    }
    let calm = |v: &Version| v.answered.is_some_and(|at| at < begun);
    if versions.iter().all(calm) && versions.len() > 1 {
        let chosen = &mut versions[found];
        (chosen.begun, chosen.answered) = (begun, Some(now));
        chosen.weak = false;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(o: &mut Oracle, value: u32) -> bool {
        let at = o.read_begins();
        o.read_ends(0, 0, at, Some(&sector_of(0, 0, value))).is_ok()
    }

    fn write(o: &mut Oracle, value: u32) {
        let at = o.write_begins(0, 0, 1, value, false);
        o.write_ends(0, 0, 1, at, true);
    }

    #[test]
    fn a_read_sees_the_last_write_or_one_in_flight() {
        let mut o = Oracle::new(&[1]);
        write(&mut o, 1);
        let open = o.write_begins(0, 0, 1, 2, false);
        assert!(read(&mut o, 1) && read(&mut o, 2) && !read(&mut o, 0));
        o.write_ends(0, 0, 1, open, true);
        assert!(!read(&mut o, 1) && read(&mut o, 2));
    }

    #[test]
    fn a_crash_takes_what_was_not_flushed_and_what_is_seen_then_stays() {
        let mut o = Oracle::new(&[1]);
        write(&mut o, 1);
        let at = o.tick();
        o.flushed(0, at);
        write(&mut o, 2);
        write(&mut o, 3);
        o.crash(true);
        assert!(!read(&mut o, 0));
        assert!(read(&mut o, 2) && !read(&mut o, 3) && !read(&mut o, 1));
        o.crash(true);
        assert!(!read(&mut o, 1) && read(&mut o, 2));
    }

    #[test]
    fn a_read_in_flight_may_have_what_a_failed_device_has_lost() {
        let mut o = Oracle::new(&[1]);
        write(&mut o, 1);
        let early = o.read_begins();
        write(&mut o, 2);
        let flush = o.tick();
        o.flushed(0, flush);
        o.may_lose(0);
        let got = o.read_ends(0, 0, early, Some(&sector_of(0, 0, 1)));
        got.expect("it began before the write");
        assert!(!read(&mut o, 1) && read(&mut o, 2));
    }

    #[test]
    fn of_writes_at_once_the_one_seen_is_the_last() {
        let mut o = Oracle::new(&[1]);
        let a = o.write_begins(0, 0, 1, 1, false);
        let b = o.write_begins(0, 0, 1, 2, false);
        o.write_ends(0, 0, 1, a, true);
        o.write_ends(0, 0, 1, b, true);
        assert!(read(&mut o, 1) && !read(&mut o, 2));
        o.crash(false);
        assert!(read(&mut o, 0));
    }

    #[test]
    fn a_discard_leaves_either() {
        let mut o = Oracle::new(&[1]);
        write(&mut o, 1);
        let at = o.write_begins(0, 0, 1, ZERO, true);
        o.write_ends(0, 0, 1, at, true);
        assert!(read(&mut o, 1) && !read(&mut o, 0));
    }
}
