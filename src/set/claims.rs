//! Reservations: bdevs, names and UUIDs that an operation is about to use.
//!
//! Sets and volumes that exist stand in the hub's tables. Between the moment an operation has looked
//! there and the moment its own result stands there, it holds a [`Claim`], so that no two operations
//! come to use the same bdev, name or UUID. A key is checked and entered in one step, without a wait
//! in between. Bdevs are claimed before anything else and are waited for; names and UUIDs, which
//! become known later, are refused at once while another operation holds them.

use std::cell::RefCell;
use std::rc::Rc;

use super::error::SetError;
use crate::task::Notify;
use crate::units::Uuid;

/// What only one operation may use at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// A bdev, by its own name.
    Bdev(String),
    /// The name of a volume.
    Name(String),
    /// The UUID of a device.
    Uuid(Uuid),
}

impl Key {
    fn text(&self) -> String {
        match self {
            Key::Bdev(name) => format!("bdev {name}"),
            Key::Name(name) => format!("the name {name}"),
            Key::Uuid(uuid) => format!("UUID {uuid}"),
        }
    }
}

#[derive(Default)]
struct Table {
    held: RefCell<Vec<Key>>,
    freed: Notify,
}

/// All reservations. At most a few for each operation under way.
#[derive(Default)]
pub(super) struct Claims(Rc<Table>);

/// The reservations of one operation; they end when it is dropped.
pub(super) struct Claim {
    table: Rc<Table>,
    keys: Vec<Key>,
}

impl Claims {
    /// A reservation of nothing yet.
    pub(super) fn none(&self) -> Claim {
        Claim {
            table: self.0.clone(),
            keys: Vec::new(),
        }
    }

    /// # Errors
    /// An operation holds a key.
    pub(super) fn check(&self, key: &Key) -> Result<(), SetError> {
        check(&self.0.held.borrow(), key)
    }

    /// Claims bdevs, all at once, as soon as no other operation holds any of them.
    pub(super) async fn bdevs(&self, names: &[&str]) -> Claim {
        let keys: Vec<Key> = names.iter().map(|name| Key::Bdev((*name).into())).collect();
        loop {
            let taken = |held: &Vec<Key>| keys.iter().any(|key| held.contains(key));
            if !taken(&self.0.held.borrow()) {
                break;
            }
            self.0.freed.wait().await;
        }
        self.0.held.borrow_mut().extend(keys.iter().cloned());
        Claim {
            table: self.0.clone(),
            keys,
        }
    }
}

impl Claim {
    /// Claims one key more.
    ///
    /// # Errors
    /// Another operation holds it.
    pub(super) fn add(&mut self, key: Key) -> Result<(), SetError> {
        if self.keys.contains(&key) {
            return Ok(());
        }
        let mut held = self.table.held.borrow_mut();
        check(&held, &key)?;
        held.push(key.clone());
        self.keys.push(key);
        Ok(())
    }
}

fn check(held: &[Key], key: &Key) -> Result<(), SetError> {
    match held.contains(key) {
        false => Ok(()),
        true => Err(SetError::Busy(format!(
            "another call is using {}: try again when it is done",
            key.text()
        ))),
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut held = self.table.held.borrow_mut();
        held.retain(|key| !self.keys.contains(key));
        drop(held);
        self.table.freed.notify();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::task::Executor;

    #[test]
    fn a_bdev_is_waited_for_and_a_uuid_is_refused() {
        let exec = Executor::new();
        let claims: Rc<Claims> = Rc::default();
        let (first, second): (Rc<RefCell<Option<Claim>>>, Rc<Cell<bool>>) = Default::default();
        let (table, slot) = (claims.clone(), first.clone());
        exec.spawn(async move {
            let mut claim = table.bdevs(&["a", "b"]).await;
            claim.add(Key::Uuid(Uuid([1; 16]))).expect("it is free");
            claim.add(Key::Uuid(Uuid([1; 16]))).expect("it is its own");
            *slot.borrow_mut() = Some(claim);
        });
        let (table, done) = (claims.clone(), second.clone());
        exec.spawn(async move {
            let mut other = table.bdevs(&["c"]).await;
            let refused = other.add(Key::Uuid(Uuid([1; 16]))).expect_err("it is held");
            assert!(refused.to_string().contains("01010101"), "{refused}");
            table.bdevs(&["b"]).await;
            done.set(true);
        });
        exec.poll(0, 64);
        assert!(first.borrow().is_some() && !second.get());
        first.take();
        exec.poll(0, 64);
        assert!(second.get());
        assert!(claims.0.held.borrow().is_empty());
    }
}
