//! Places at a queue that several devices share, each of which may fall silent.
//!
//! An operation takes as many places as it needs, or waits in its device's line. Operations get theirs in
//! the order in which they came, but for one rule: a device has no more than its *share*, so that one
//! that never answers leaves places to the others. The share is an equal part of all places, and never
//! less than the largest operation needs: with places for four of those, four devices have to be silent
//! before a fifth one waits.
//!
//! A device's line is bounded by its operations in flight; nothing is allocated once the lines have grown
//! to what the load needs.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// The places, for operations that are known by a `T` while they wait.
pub struct Places<T> {
    all: usize,
    /// What the largest operation needs.
    most: usize,
    /// What a device may have.
    share: Cell<usize>,
    free: Cell<usize>,
    users: RefCell<Vec<Rc<User<T>>>>,
    waiting: Cell<usize>,
    next_ticket: Cell<u64>,
}

/// A device at the places, under a key of its own.
pub struct User<T> {
    key: usize,
    taken: Cell<usize>,
    line: RefCell<VecDeque<Waiting<T>>>,
}

struct Waiting<T> {
    ticket: u64,
    places: usize,
    operation: T,
}

impl<T> Places<T> {
    /// So many places, of which an operation needs `most` at most.
    pub fn new(all: usize, most: usize) -> Places<T> {
        assert!((1..=all).contains(&most), "{most} of {all} places");
        Places {
            all,
            most,
            share: Cell::new(all),
            free: Cell::new(all),
            users: RefCell::default(),
            waiting: Cell::new(0),
            next_ticket: Cell::new(0),
        }
    }

    /// The device of this key, which comes to the places with its first user. To be given back with
    /// [`part`](Self::part).
    pub fn join(&self, key: usize) -> Rc<User<T>> {
        let mut users = self.users.borrow_mut();
        if let Some(user) = users.iter().find(|user| user.key == key) {
            return user.clone();
        }
        let user = Rc::new(User {
            key,
            taken: Cell::new(0),
            line: RefCell::default(),
        });
        users.push(user.clone());
        self.share_out(users.len());
        user
    }

    /// One user of a device less. The last one leaves nothing under way. The others' shares may have
    /// grown: [`next`](Self::next) says who goes on.
    pub fn part(&self, user: Rc<User<T>>) {
        const IN_THE_LIST_AND_HERE: usize = 2;
        if Rc::strong_count(&user) == IN_THE_LIST_AND_HERE {
            let idle = user.taken.get() == 0 && user.line.borrow().is_empty();
            debug_assert!(idle, "an operation of a device that is closed");
            let mut users = self.users.borrow_mut();
            users.retain(|other| !Rc::ptr_eq(other, &user));
            self.share_out(users.len());
        }
    }

    fn share_out(&self, users: usize) {
        self.share.set((self.all / users.max(1)).max(self.most));
    }

    /// Takes `places` places, to be given back with [`leave`](Self::leave). False: the operation waits,
    /// and [`next`](Self::next) returns it when its turn has come; it has its places then.
    pub fn enter(&self, user: &User<T>, places: usize, operation: T) -> bool {
        debug_assert!((1..=self.most).contains(&places), "{places} places");
        let first = self.waiting.get() == 0
            || user.line.borrow().is_empty() && self.first_waiting().is_none();
        if first && self.has_share(user, places) && self.free.get() >= places {
            self.take(user, places);
            return true;
        }
        let ticket = self.next_ticket.get();
        self.next_ticket.set(ticket + 1);
        self.waiting.set(self.waiting.get() + 1);
        user.line.borrow_mut().push_back(Waiting {
            ticket,
            places,
            operation,
        });
        false
    }

    /// Gives places back.
    pub fn leave(&self, user: &User<T>, places: usize) {
        user.taken.set(user.taken.get() - places);
        self.free.set(self.free.get() + places);
        debug_assert!(self.free.get() <= self.all, "more places than there are");
    }

    /// The operation whose turn has come, if there is one.
    pub fn next(&self) -> Option<T> {
        if self.waiting.get() == 0 {
            return None;
        }
        let user = self.first_waiting()?;
        let mut line = user.line.borrow_mut();
        let places = line.front()?.places;
        if self.free.get() < places {
            return None;
        }
        self.take(&user, places);
        self.waiting.set(self.waiting.get() - 1);
        line.pop_front().map(|waiting| waiting.operation)
    }

    /// The device whose line's head has waited longest, of those that have not their share.
    fn first_waiting(&self) -> Option<Rc<User<T>>> {
        let users = self.users.borrow();
        let heads = users.iter().filter_map(|user| {
            let line = user.line.borrow();
            let head = line.front()?;
            self.has_share(user, head.places)
                .then_some((head.ticket, user))
        });
        heads
            .min_by_key(|(ticket, _)| *ticket)
            .map(|(_, user)| user.clone())
    }

    /// Whether a device may have so many places more.
    fn has_share(&self, user: &User<T>, places: usize) -> bool {
        user.taken.get() + places <= self.share.get()
    }

    fn take(&self, user: &User<T>, places: usize) {
        user.taken.set(user.taken.get() + places);
        self.free.set(self.free.get() - places);
    }

    /// Whether nothing waits.
    pub fn is_idle(&self) -> bool {
        self.waiting.get() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives places back, and says who goes on.
    fn leave(places: &Places<u32>, user: &User<u32>, n: usize) -> Vec<u32> {
        places.leave(user, n);
        std::iter::from_fn(|| places.next()).collect()
    }

    #[test]
    fn a_device_alone_has_all_places_and_its_operations_keep_their_order() {
        let places = Places::new(8, 4);
        let user = places.join(1);
        assert!(places.enter(&user, 4, 0) && places.enter(&user, 3, 1));
        assert!(!places.enter(&user, 2, 2) && !places.enter(&user, 1, 3));
        assert_eq!(leave(&places, &user, 3), [2, 3]);
        assert!(places.is_idle());
    }

    #[test]
    fn devices_that_are_silent_leave_places_to_the_others() {
        for silent in 1..=3 {
            let places = Places::new(128, 32);
            let sound = places.join(0);
            let users: Vec<_> = (1..=silent).map(|key| places.join(key)).collect();
            for user in &users {
                for operation in 0..200 {
                    places.enter(user, 16, operation);
                }
            }
            for _ in 0..100 {
                assert!(places.enter(&sound, 32, 0), "beside {silent} silent ones");
                assert!(leave(&places, &sound, 32).is_empty());
            }
        }
    }

    #[test]
    fn users_of_one_device_have_one_share() {
        let places = Places::new(8, 4);
        let (other, user, again) = (places.join(0), places.join(1), places.join(1));
        assert!(places.enter(&user, 4, 0));
        assert!(!places.enter(&again, 1, 1));
        assert!(places.enter(&other, 4, 2));
        places.part(again);
        assert_eq!(leave(&places, &user, 4), [1]);
    }

    #[test]
    fn a_large_operation_is_not_passed_by_small_ones_that_came_later() {
        let places = Places::new(8, 6);
        let (a, b, c) = (places.join(0), places.join(1), places.join(2));
        assert!(places.enter(&a, 4, 0));
        assert!(!places.enter(&b, 6, 1));
        assert!(!places.enter(&c, 1, 2), "it would fit");
        assert_eq!(leave(&places, &a, 4), [1, 2]);
    }

    #[test]
    fn what_waits_for_its_share_does_not_hold_up_another_device() {
        let places = Places::new(8, 4);
        let (a, b) = (places.join(0), places.join(1));
        assert!(places.enter(&a, 4, 0));
        assert!(!places.enter(&a, 1, 1));
        assert!(places.enter(&b, 4, 2));
        assert_eq!(leave(&places, &b, 4), [0u32; 0]);
        assert_eq!(leave(&places, &a, 4), [1]);
    }

    #[test]
    fn shares_grow_when_a_device_goes() {
        let places = Places::new(8, 2);
        let (a, b) = (places.join(0), places.join(1));
        for operation in 0..4 {
            assert_eq!(places.enter(&a, 2, operation), operation < 2);
        }
        places.part(b);
        assert_eq!(places.next(), Some(2));
        assert_eq!(places.next(), Some(3));
        assert_eq!(places.next(), None);
    }
}
