//! Turns: which operation may change which volumes, devices and sets.
//!
//! An operation takes its turn on *places*: the name of a volume, a bdev, a set. Operations whose
//! places differ run side by side, so that a device which never answers holds up what lies on it
//! and nothing else.
//!
//! No two operations can wait for each other, by two rules:
//! - A turn on several places is taken at once or not at all; what waits for one holds nothing.
//! - An operation that learns of a name or a set only by reading a superblock may
//!   [widen](Turn::widen) its turn, in the order device, name, set. One that holds a set's turn never
//!   waits for another place ([`Turns::try_take`]).
//!
//! Nothing holds a turn while it waits for write-back, or for a bdev to be closed.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use super::error::SetError;
use super::hub::Hub;
use super::volume::Volume;
use crate::canary::{self, Bug};
use crate::task::Notify;
use crate::units::Uuid;

/// What an operation changes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A volume's name, given or to be given.
    Volume(String),
    /// A bdev, as a cache or backing device.
    Device(String),
    /// A set with all volumes that are attached to it.
    Set(Uuid),
}

impl Place {
    /// Places are waited for in this order.
    fn rank(&self) -> u8 {
        match self {
            Place::Device(_) => 0,
            Place::Volume(_) => 1,
            Place::Set(_) => 2,
        }
    }
}

/// The places that operations are at.
#[derive(Default)]
pub struct Turns {
    held: RefCell<BTreeSet<Place>>,
    freed: Notify,
}

/// A turn, until it is dropped.
pub struct Turn {
    turns: Rc<Turns>,
    places: Vec<Place>,
}

impl Turns {
    /// Waits until all places are free, and takes them.
    pub async fn take(self: &Rc<Self>, places: &[Place]) -> Turn {
        loop {
            if let Some(turn) = self.try_take(places) {
                return turn;
            }
            self.freed.wait().await;
        }
    }

    /// Whether any operation is under way.
    pub fn are_taken(&self) -> bool {
        !self.held.borrow().is_empty()
    }

    /// Whether an operation is at a place.
    pub fn is_taken(&self, place: &Place) -> bool {
        self.held.borrow().contains(place)
    }

    /// Waits until an operation ends.
    pub async fn freed(&self) {
        self.freed.wait().await;
    }

    /// Takes all places if they are free now.
    pub fn try_take(self: &Rc<Self>, places: &[Place]) -> Option<Turn> {
        let mut turn = Turn {
            turns: self.clone(),
            places: Vec::new(),
        };
        turn.add(places).then_some(turn)
    }
}

impl Turn {
    /// Waits for one more place, which comes after those that are held.
    pub async fn widen(&mut self, place: Place) {
        let in_order = |held: &Place| *held == place || held.rank() < place.rank();
        debug_assert!(
            self.places.iter().all(in_order),
            "{place:?} after a later place"
        );
        while !self.add(std::slice::from_ref(&place)) {
            let turns = self.turns.clone();
            turns.freed.wait().await;
        }
    }

    /// Waits for the set of a volume, if it has one.
    pub async fn widen_by_set_of(&mut self, volume: &Volume) {
        if let Some(set) = Hub::places_of(volume)
            .pop()
            .filter(|p| matches!(p, Place::Set(_)))
        {
            self.widen(set).await;
        }
    }

    /// Takes more places, all or none; those that are held already count as free.
    fn add(&mut self, places: &[Place]) -> bool {
        let mut held = self.turns.held.borrow_mut();
        let counts = |p: &&Place| {
            let forgotten = canary::has(Bug::SetTurnForgotten) && matches!(p, Place::Set(_));
            !self.places.contains(p) && !forgotten
        };
        let more: BTreeSet<&Place> = places.iter().filter(counts).collect();
        if more.iter().any(|place| held.contains(place)) {
            return false;
        }
        held.extend(more.iter().map(|&place| place.clone()));
        self.places.extend(more.into_iter().cloned());
        true
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // One that got no place frees none: those that wait would wake each other for ever.
        if self.places.is_empty() {
            return;
        }
        let mut held = self.turns.held.borrow_mut();
        self.places.iter().for_each(|place| {
            held.remove(place);
        });
        drop(held);
        self.turns.freed.notify();
    }
}

impl Hub {
    /// Where an operation on a volume is: its name, its backing device, the set that it is attached
    /// to or waits for.
    pub(super) fn places_of(volume: &Volume) -> Vec<Place> {
        let mut places = vec![Place::Volume(volume.name())];
        let backing = volume.backing.as_ref();
        places.extend(backing.map(|b| Place::Device(b.disk.name())));
        let link = volume.link.borrow().as_ref().map(|l| l.set.set_uuid());
        let named = backing.map(|b| b.superblock().set_uuid);
        let set = link.or(named.filter(|uuid| !uuid.is_nil()));
        places.extend(set.map(Place::Set));
        places
    }

    /// The volume of a name. Where one of that name is just being made, waits for it: calls have the
    /// effect of the order in which they came.
    ///
    /// # Errors
    /// There is none.
    pub(super) async fn volume_soon(&self, name: &str) -> Result<Rc<Volume>, SetError> {
        let place = Place::Volume(name.into());
        loop {
            match self.volume(name) {
                Err(_) if self.turns.is_taken(&place) => self.turns.freed().await,
                found => return found,
            }
        }
    }

    /// A turn on a volume that stays, with its set.
    ///
    /// # Errors
    /// There is no such volume, or its bdev is being taken away.
    pub(super) async fn turn_of(&self, name: &str) -> Result<(Turn, Rc<Volume>), SetError> {
        self.turn_of_with(name, &[]).await
    }

    /// As [`turn_of`](Self::turn_of), on more places.
    ///
    /// # Errors
    /// As there.
    pub(super) async fn turn_of_with(
        &self,
        name: &str,
        more: &[Place],
    ) -> Result<(Turn, Rc<Volume>), SetError> {
        let mut name = name.to_string();
        loop {
            let volume = self.volume_soon(&name).await?;
            volume.check_open()?;
            let mut places = Self::places_of(&volume);
            let own = places.clone();
            places.extend_from_slice(more);
            // Not held while others are waited for: its backing device may be about to go.
            let (before, named) = (Rc::downgrade(&volume), volume.name.clone());
            drop(volume);
            let turn = self.turns.take(&places).await;
            // The volume may have left its set, have gone, or have another name since.
            name = named.get();
            let now = self.volume(&name).ok();
            let same = |v: &Rc<Volume>| std::ptr::eq(Rc::as_ptr(v), before.as_ptr());
            if let Some(volume) = now.filter(|v| same(v) && Self::places_of(v) == own) {
                volume.check_open()?;
                return Ok((turn, volume));
            }
        }
    }

    /// A turn on a running set.
    ///
    /// # Errors
    /// No such set runs.
    pub(super) async fn turn_of_set(
        &self,
        uuid: &str,
    ) -> Result<(Turn, Rc<super::cache::CacheSet>), SetError> {
        let set = self.set(uuid)?;
        let turn = self.turns.take(&[Place::Set(set.set_uuid())]).await;
        Ok((turn, self.set(uuid)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Executor;

    #[test]
    fn those_that_wait_for_a_turn_do_not_wake_each_other() {
        let (turns, exec): (Rc<Turns>, Executor) = (Rc::default(), Executor::new());
        let place = |name: &str| Place::Volume(name.into());
        let held = turns.try_take(&[place("a"), place("b")]);
        let taken = Rc::new(std::cell::Cell::new(0));
        for name in ["a", "b", "a"] {
            let (turns, taken) = (turns.clone(), taken.clone());
            let place = place(name);
            exec.spawn(async move {
                let _turn = turns.take(&[place]).await;
                taken.set(taken.get() + 1);
            });
        }
        while exec.poll(0, 1) > 0 {}
        assert_eq!((taken.get(), exec.poll(0, 100)), (0, 0), "they wait");
        drop(held);
        while exec.poll(0, 1) > 0 {}
        assert_eq!(taken.get(), 3);
    }

    #[test]
    fn a_turn_on_several_places_is_taken_at_once_or_not_at_all() {
        let turns: Rc<Turns> = Rc::default();
        let device = |name: &str| Place::Device(name.into());
        let first = turns.try_take(&[device("a")]).expect("free");
        assert!(turns.try_take(&[device("b"), device("a")]).is_none());
        let other = turns.try_take(&[device("b"), device("b")]).expect("free");
        drop((first, other));
        assert!(turns.held.borrow().is_empty());
    }

    #[test]
    fn operations_on_other_places_go_on() {
        let (turns, exec): (Rc<Turns>, _) = (Rc::default(), Executor::new());
        let uuids = [Uuid([1; 16]), Uuid([2; 16])];
        let stuck = turns.try_take(&[Place::Set(uuids[0])]).expect("free");
        let done: Rc<RefCell<Vec<usize>>> = Rc::default();
        for (nth, uuid) in uuids.into_iter().enumerate() {
            let (turns, done) = (turns.clone(), done.clone());
            exec.spawn(async move {
                let mut turn = turns.take(&[Place::Device(nth.to_string())]).await;
                turn.widen(Place::Set(uuid)).await;
                done.borrow_mut().push(nth);
            });
        }
        exec.poll(0, 10);
        assert_eq!(*done.borrow(), [1]);
        drop(stuck);
        exec.poll(0, 10);
        assert_eq!(*done.borrow(), [1, 0]);
        assert!(turns.held.borrow().is_empty());
    }
}
