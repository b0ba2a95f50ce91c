//! One simulated reactor's lane: moves bytes between simulated disks and the hosts' memory.
//!
//! What a disk answers is put into a queue; the reactor takes it from there when it runs, as a
//! poller does. So nothing is ever answered from within the call that started it.
//!
//! A device transfers as much as the list of memory has that it is given. As SPDK's lane does, this one
//! hands the host's own list on for a whole I/O that ends where its list does ([`admit::Fit::is_exact`]).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::iter::once;
use std::ops::{Deref, Range};
use std::rc::Rc;

use super::lower::Lower;
use crate::disk::IoError;
use crate::request::Request;
use crate::request::admit;
use crate::request::front::{FILLS_MAX, Front};
use crate::request::lane::{Direction, Ended, Lane, Outcome, Side};
use crate::units::{SECTOR_BYTES, Sector};

/// A host I/O and its memory.
pub struct HostIo {
    request: Request,
    token: u64,
    /// The host's memory.
    pub memory: RefCell<Vec<u8>>,
    /// The bytes of the pieces that the I/O uses of it.
    list: Vec<usize>,
    fills_list: bool,
    /// What the load calls it.
    pub tag: u64,
}

/// A handle to a host I/O.
#[derive(Clone)]
pub struct SimIo(Rc<HostIo>);

impl SimIo {
    /// The I/O.
    pub fn host(&self) -> &HostIo {
        &self.0
    }
}

impl HostIo {
    /// The memory of a part of the I/O, piece by piece.
    fn pieces(&self, host_sectors: u32, sectors: u32) -> Vec<Range<usize>> {
        let starts = self.list.iter().scan(0, |next, &length| {
            *next += length;
            Some(*next - length)
        });
        let starts: Vec<usize> = starts.collect();
        let mut all = Vec::new();
        let lengths = self.list.iter().copied();
        admit::pieces(
            lengths,
            bytes(host_sectors),
            bytes(sectors),
            |piece, skip, bytes| {
                let start = starts[piece] + skip;
                all.push(start..start + bytes);
            },
        );
        all
    }

    /// The memory that a device is given for a part of the I/O.
    fn given(&self, host_sectors: u32, sectors: u32) -> Vec<Range<usize>> {
        let is_whole = host_sectors == 0 && u64::from(sectors) == self.request.sectors.get();
        match is_whole && self.fills_list {
            true => once(0..self.list.iter().sum()).collect(),
            false => self.pieces(host_sectors, sectors),
        }
    }

    fn fill(&self, pieces: &[Range<usize>], data: &[u8]) {
        let (mut memory, mut from) = (self.memory.borrow_mut(), 0);
        for piece in pieces {
            let n = piece.len().min(data.len() - from);
            memory[piece.start..piece.start + n].copy_from_slice(&data[from..from + n]);
            from += n;
        }
    }
}

impl Deref for SimIo {
    type Target = Request;
    fn deref(&self) -> &Request {
        &self.0.request
    }
}

enum Done {
    Part(SimIo, u8, Ended),
    Fill(u16, Ended),
}

type Queue = Rc<RefCell<VecDeque<Done>>>;
type Buffers = Rc<RefCell<Vec<Option<Vec<u8>>>>>;

/// A lane of one reactor to the devices of one volume.
pub struct SimLane {
    cache: Option<Lower>,
    backing: Option<Lower>,
    live: RefCell<BTreeMap<u64, SimIo>>,
    next_token: Cell<u64>,
    done: Queue,
    finished: RefCell<VecDeque<(SimIo, Outcome)>>,
    fills: Buffers,
    /// Every transfer with a device of this side ends so, without reaching the device.
    pub ends: Cell<Option<(Side, IoError)>>,
    /// Fills that it has buffers for.
    pub fills_max: Cell<usize>,
    fills_held: Cell<usize>,
}

fn bytes(sectors: u32) -> usize {
    sectors as usize * SECTOR_BYTES
}

impl SimLane {
    /// A lane to these devices.
    pub fn new(cache: Option<impl Into<Lower>>, backing: Option<impl Into<Lower>>) -> SimLane {
        SimLane {
            cache: cache.map(Into::into),
            backing: backing.map(Into::into),
            live: RefCell::default(),
            next_token: Cell::new(1),
            done: Rc::default(),
            finished: RefCell::default(),
            fills: Rc::new(RefCell::new(vec![None; usize::from(FILLS_MAX)])),
            ends: Cell::new(None),
            fills_max: Cell::new(usize::from(FILLS_MAX)),
            fills_held: Cell::new(0),
        }
    }

    /// A new host I/O with this memory, in one piece.
    pub fn host_io(&self, tag: u64, memory: Vec<u8>) -> SimIo {
        let list = vec![memory.len()];
        self.host_io_of(tag, memory, list, true)
    }

    /// A new host I/O that uses these pieces of a memory, of so many bytes each, and `fills_list` if it
    /// ends where they do.
    pub fn host_io_of(
        &self,
        tag: u64,
        memory: Vec<u8>,
        list: Vec<usize>,
        fills_list: bool,
    ) -> SimIo {
        let token = self.next_token.get();
        self.next_token.set(token + 1);
        let io = SimIo(Rc::new(HostIo {
            request: Request::new(),
            token,
            memory: RefCell::new(memory),
            list,
            fills_list,
            tag,
        }));
        self.live.borrow_mut().insert(token, io.clone());
        io
    }

    /// The host changes the memory of an I/O under way; false when there is none of that tag.
    pub fn change_memory(&self, tag: u64, memory: &[u8]) -> bool {
        let live = self.live.borrow();
        let Some(io) = live.values().find(|io| io.host().tag == tag) else {
            return false;
        };
        io.host().memory.borrow_mut()[..memory.len()].copy_from_slice(memory);
        true
    }

    /// Whether nothing waits to be taken to the front, or to the host.
    pub fn is_idle(&self) -> bool {
        self.done.borrow().is_empty() && self.finished.borrow().is_empty()
    }

    /// A host I/O that has been answered, if there is one.
    pub fn finished(&self) -> Option<(SimIo, Outcome)> {
        self.finished.borrow_mut().pop_front()
    }

    /// Takes at most `n` answers of the disks to the front. Returns how many there were.
    pub fn deliver(front: &Front<SimLane>, n: usize) -> usize {
        for i in 0..n {
            let next = front.lane().done.borrow_mut().pop_front();
            match next {
                Some(Done::Part(io, part, ended)) => front.part_done(io, part, ended),
                Some(Done::Fill(fill, ended)) => front.fill_done(fill, ended),
                None => return i,
            }
        }
        n
    }

    fn backing(&self) -> &Lower {
        self.backing.as_ref().expect("a backing device")
    }

    fn cache(&self) -> &Lower {
        self.cache.as_ref().expect("a cache device")
    }

    /// How a transfer with a device of this side ends before it begins.
    fn ends_early(&self, side: Side) -> Option<IoError> {
        let (of, why) = self.ends.get()?;
        (of == side).then_some(why)
    }

    fn part_end(&self, io: &SimIo, part: u8) -> impl FnOnce(Ended) + use<> {
        let (queue, io) = (self.done.clone(), io.clone());
        move |ended| queue.borrow_mut().push_back(Done::Part(io, part, ended))
    }
}

impl Lane for SimLane {
    type Io = SimIo;

    fn token(&self, io: &SimIo) -> u64 {
        io.0.token
    }

    fn io(&self, token: u64) -> SimIo {
        let live = self.live.borrow();
        live.get(&token).expect("the I/O is in flight").clone()
    }

    fn transfer(
        &self,
        io: &SimIo,
        part: u8,
        side: Side,
        direction: Direction,
        at: Sector,
        host_sectors: u32,
        sectors: u32,
    ) {
        let disk = match side {
            Side::Cache => self.cache(),
            Side::Backing => self.backing(),
        };
        // As at SPDK's boundary no transfer is empty or a part of no host I/O.
        let end_sectors = u64::from(host_sectors) + u64::from(sectors);
        assert!(sectors > 0 && end_sectors <= io.0.request.sectors.get());
        let memory = io.0.given(host_sectors, sectors);
        let end = self.part_end(io, part);
        if let Some(why) = self.ends_early(side) {
            return end(Err(why));
        }
        match direction {
            Direction::Read => {
                let io = io.clone();
                let given: usize = memory.iter().map(Range::len).sum();
                disk.start_read(at, (given / SECTOR_BYTES) as u64, move |data| {
                    if let Ok(data) = &data {
                        io.0.fill(&memory, data);
                    }
                    end(data.map(|_| ()));
                });
            }
            Direction::Write => {
                let from = io.0.memory.borrow();
                let mut data: Vec<u8> = Vec::new();
                memory
                    .into_iter()
                    .for_each(|piece| data.extend_from_slice(&from[piece]));
                data.truncate(data.len() / SECTOR_BYTES * SECTOR_BYTES);
                disk.start_write(at, data, end);
            }
        }
    }

    fn zero_host(&self, io: &SimIo, host_sectors: u32, sectors: u32) {
        let zeros = vec![0; bytes(sectors)];
        io.0.fill(&io.0.pieces(host_sectors, sectors), &zeros);
    }

    fn backing_zeroes(&self, io: &SimIo, part: u8, at: Sector, sectors: u64) {
        let end = self.part_end(io, part);
        let zeros = vec![0; sectors as usize * SECTOR_BYTES];
        self.backing().start_write(at, zeros, end);
    }

    fn backing_unmap(&self, io: &SimIo, part: u8, at: Sector, sectors: u64) {
        let end = self.part_end(io, part);
        self.backing().start_unmap(at, sectors, end);
    }

    fn backing_flush(&self, io: &SimIo, part: u8) {
        let end = self.part_end(io, part);
        self.backing().start_flush(end);
    }

    fn complete(&self, io: SimIo, outcome: Outcome) {
        let gone = self.live.borrow_mut().remove(&io.0.token);
        assert!(gone.is_some(), "a host I/O was answered twice");
        self.finished.borrow_mut().push_back((io, outcome));
    }

    fn fill_begin(&self, fill: u16, sectors: u32) -> bool {
        if self.fills_held.get() >= self.fills_max.get() {
            return false;
        }
        self.fills_held.set(self.fills_held.get() + 1);
        let before = self.fills.borrow_mut()[usize::from(fill)].replace(vec![0; bytes(sectors)]);
        assert!(before.is_none(), "fill {fill} is taken");
        true
    }

    fn fill_read(&self, fill: u16, at: Sector, sectors: u32) {
        let (queue, fills) = (self.done.clone(), self.fills.clone());
        if let Some(why) = self.ends_early(Side::Backing) {
            return queue.borrow_mut().push_back(Done::Fill(fill, Err(why)));
        }
        self.backing().start_read(at, sectors.into(), move |data| {
            let ended = data.map(|data| fills.borrow_mut()[usize::from(fill)] = Some(data));
            queue.borrow_mut().push_back(Done::Fill(fill, ended));
        });
    }

    fn fill_copy(&self, fill: u16, io: &SimIo, host_sectors: u32, sectors: u32) {
        let fills = self.fills.borrow();
        let data = fills[usize::from(fill)].as_ref().expect("the fill is read");
        io.0.fill(&io.0.pieces(host_sectors, sectors), &data[..bytes(sectors)]);
    }

    fn fill_write(&self, fill: u16, at: Sector, sectors: u32) {
        let data = self.fills.borrow()[usize::from(fill)].clone();
        let mut data = data.expect("the fill is read");
        data.truncate(bytes(sectors));
        let queue = self.done.clone();
        if let Some(why) = self.ends_early(Side::Cache) {
            return queue.borrow_mut().push_back(Done::Fill(fill, Err(why)));
        }
        self.cache().start_write(at, data, move |done| {
            queue.borrow_mut().push_back(Done::Fill(fill, done));
        });
    }

    fn fill_end(&self, fill: u16) {
        self.fills_held.set(self.fills_held.get() - 1);
        self.fills.borrow_mut()[usize::from(fill)] = None;
    }
}
