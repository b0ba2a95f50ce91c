//! Volumes as hosts see them: fronts on simulated reactors for each volume that the lifecycle shows.
//!
//! Hiding a volume or making it anew waits until its fronts are idle and closed, as the boundary
//! does; host I/O that comes while a volume is made anew waits too. An I/O that finds no volume of
//! its name is answered with a failure at once.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use super::disk::SimDisk;
use super::lane::SimLane;
use crate::disk::DoneFuture;
use crate::request::Kind;
use crate::request::front::Front;
use crate::request::lane::Outcome;
use crate::request::volume::VolumeShared;
use crate::rng::Rng;
use crate::task::{Notify, Once, OnceSender, once};
use crate::units::Sector;

/// A host I/O before a front has it.
struct Held {
    kind: Kind,
    start: u64,
    sectors: u64,
    memory: Vec<u8>,
    tag: u64,
}

/// How a host I/O ended: whether well, and the host's memory.
pub type Answer = (bool, Vec<u8>);

struct Shown {
    volume: Arc<VolumeShared>,
    backing: Option<Rc<SimDisk>>,
    fronts: Vec<Front<SimLane>>,
    closing: bool,
    held: VecDeque<Held>,
}

impl Shown {
    fn new(
        reactors: usize,
        volume: Arc<VolumeShared>,
        backing: Option<Rc<SimDisk>>,
        cache: Option<Rc<SimDisk>>,
    ) -> Shown {
        let fronts = (0..reactors).map(|_| {
            let lane = SimLane::new(cache.clone(), backing.clone());
            Front::new(lane, volume.clone()).expect("a reader's slot")
        });
        Shown {
            fronts: fronts.collect(),
            volume,
            backing,
            closing: false,
            held: VecDeque::new(),
        }
    }

    /// Ends the fronts once they are idle; true when none is left.
    fn close(&mut self) -> bool {
        if self.fronts.iter().all(Front::is_idle) {
            self.fronts.retain(|front| !front.close());
        }
        self.fronts.is_empty()
    }
}

/// The hosts' side of one machine.
pub struct Stage {
    reactors: usize,
    rng: Rc<Rng>,
    shown: RefCell<BTreeMap<String, Shown>>,
    next_tag: Cell<u64>,
    answers: RefCell<BTreeMap<u64, OnceSender<Answer>>>,
    closed: Notify,
}

impl Stage {
    /// A stage with so many fronts for each volume.
    pub fn new(reactors: usize, rng: Rc<Rng>) -> Rc<Stage> {
        Rc::new(Stage {
            reactors,
            rng,
            shown: RefCell::default(),
            next_tag: Cell::new(1),
            answers: RefCell::default(),
            closed: Notify::default(),
        })
    }

    /// Shows a volume; false when its name is taken.
    pub fn show(
        &self,
        volume: Arc<VolumeShared>,
        backing: Option<Rc<SimDisk>>,
        cache: Option<Rc<SimDisk>>,
    ) -> bool {
        let mut shown = self.shown.borrow_mut();
        if shown.contains_key(&volume.name) {
            return false;
        }
        let name = volume.name.clone();
        shown.insert(name, Shown::new(self.reactors, volume, backing, cache));
        true
    }

    /// The volume shown under a name.
    pub fn volume(&self, name: &str) -> Option<Arc<VolumeShared>> {
        self.shown.borrow().get(name).map(|s| s.volume.clone())
    }

    /// All volumes shown.
    pub fn volumes(&self) -> Vec<Arc<VolumeShared>> {
        let shown = self.shown.borrow();
        shown.values().map(|s| s.volume.clone()).collect()
    }

    /// Ends the fronts of a volume and takes it away.
    pub fn hide(self: &Rc<Self>, name: &str) -> DoneFuture {
        let (stage, name) = (self.clone(), name.to_string());
        Box::pin(async move {
            stage.quiet(&name).await;
            let gone = stage.shown.borrow_mut().remove(&name);
            for held in gone.into_iter().flat_map(|s| s.held) {
                stage.answer(held.tag, (false, held.memory));
            }
            Ok(())
        })
    }

    /// Makes a volume's fronts anew.
    pub fn replace(
        self: &Rc<Self>,
        volume: Arc<VolumeShared>,
        cache: Option<Rc<SimDisk>>,
    ) -> DoneFuture {
        let stage = self.clone();
        Box::pin(async move {
            stage.quiet(&volume.name).await;
            let mut shown = stage.shown.borrow_mut();
            let Some(old) = shown.remove(&volume.name) else {
                return Ok(());
            };
            let new = Shown::new(stage.reactors, volume, old.backing, cache);
            for held in old.held {
                stage.submit(&new, held);
            }
            shown.insert(new.volume.name.clone(), new);
            Ok(())
        })
    }

    /// Lets no new I/O to a volume's fronts and waits until they are gone.
    async fn quiet(&self, name: &str) {
        if let Some(shown) = self.shown.borrow_mut().get_mut(name) {
            shown.closing = true;
        }
        loop {
            let open = match self.shown.borrow().get(name) {
                Some(shown) => !shown.fronts.is_empty(),
                None => false,
            };
            if !open {
                return;
            }
            self.closed.wait().await;
        }
    }

    fn submit(&self, shown: &Shown, held: Held) {
        let front = &shown.fronts[self.rng.below(shown.fronts.len() as u64) as usize];
        let io = front.lane().host_io(held.tag, held.memory);
        io.start(held.kind, Sector(held.start), held.sectors);
        front.submit(io);
    }

    fn answer(&self, tag: u64, answer: Answer) {
        if let Some(waiting) = self.answers.borrow_mut().remove(&tag) {
            waiting.send(answer);
        }
    }

    /// Starts a host I/O on a volume, on any of its fronts.
    pub fn io(
        &self,
        volume: &str,
        kind: Kind,
        start: u64,
        sectors: u64,
        memory: Vec<u8>,
    ) -> Once<Answer> {
        let tag = self.next_tag.get();
        self.next_tag.set(tag + 1);
        let (tx, rx) = once();
        self.answers.borrow_mut().insert(tag, tx);
        let held = Held {
            kind,
            start,
            sectors,
            memory,
            tag,
        };
        match self.shown.borrow_mut().get_mut(volume) {
            Some(shown) if shown.closing => shown.held.push_back(held),
            Some(shown) => self.submit(shown, held),
            None => self.answer(tag, (false, held.memory)),
        }
        rx
    }

    /// Every reactor runs once. Returns how much was done.
    pub fn poll(&self) -> usize {
        let (mut done, mut answers, mut closed) = (0, Vec::new(), false);
        for shown in self.shown.borrow_mut().values_mut() {
            for front in &shown.fronts {
                done += SimLane::deliver(front, 1 + self.rng.below(8) as usize);
                done += front.poll();
                while let Some((io, outcome)) = front.lane().finished() {
                    let memory = io.host().memory.take();
                    answers.push((io.host().tag, (outcome == Outcome::Success, memory)));
                }
            }
            if shown.closing && !shown.fronts.is_empty() && shown.close() {
                closed = true;
            }
        }
        done += answers.len() + usize::from(closed);
        for (tag, answer) in answers {
            self.answer(tag, answer);
        }
        if closed {
            self.closed.notify();
        }
        done
    }

    /// Forgets everything, as a crash does.
    pub fn clear(&self) {
        let gone = (self.shown.take(), self.answers.take());
        drop(gone);
    }
}
