//! The backing devices of one set's volumes, as the owner of the volumes asks for them.
//!
//! Bounds: as many entries as volumes of the set that are up.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use super::volume::Backing;
use crate::btree::{Backings, Failed, Tree};
use crate::disk::{DoneFuture, IoError};
use crate::request::unflushed::Unflushed;
use crate::task::join_all;
use crate::units::{Inode, Uuid};

struct Member {
    backing: Rc<Backing>,
    unflushed: Rc<Unflushed>,
}

/// Those of a running set.
pub struct SetBackings {
    set: Uuid,
    tree: Weak<Tree>,
    members: RefCell<BTreeMap<Inode, Member>>,
}

impl SetBackings {
    /// None yet, of a set of that UUID.
    pub fn new(set: Uuid, tree: &Rc<Tree>) -> Rc<SetBackings> {
        Rc::new(SetBackings {
            set,
            tree: Rc::downgrade(tree),
            members: RefCell::default(),
        })
    }

    /// A volume has come.
    pub fn add(&self, inode: Inode, backing: Rc<Backing>, unflushed: Rc<Unflushed>) {
        let member = Member { backing, unflushed };
        self.members.borrow_mut().insert(inode, member);
    }

    /// A volume has gone.
    pub fn remove(&self, inode: Inode) {
        self.members.borrow_mut().remove(&inode);
    }

    fn backing(&self, inode: Inode) -> Option<Rc<Backing>> {
        let members = self.members.borrow();
        members.get(&inode).map(|member| member.backing.clone())
    }
}

impl Backings for SetBackings {
    fn mark_dirty(&self, inode: Inode) -> DoneFuture {
        let (backing, set) = (self.backing(inode), self.set);
        Box::pin(async move {
            match backing {
                Some(backing) => backing.mark_dirty(set).await,
                None => Err(IoError::Gone),
            }
        })
    }

    fn mark_clean(&self, inode: Inode) -> DoneFuture {
        let (backing, set, tree) = (self.backing(inode), self.set, self.tree.upgrade());
        Box::pin(async move {
            let (Some(backing), Some(tree)) = (backing, tree) else {
                return Err(IoError::Gone);
            };
            backing.mark_clean(set, inode, &tree).await
        })
    }

    fn says_clean(&self, inode: Inode) -> bool {
        let members = self.members.borrow();
        let member = members.get(&inode);
        member.is_some_and(|member| member.backing.says_clean(self.set))
    }

    fn flush(&self) -> Failed {
        let members = self.members.borrow();
        let due = members.iter().filter(|(_, m)| m.unflushed.needs_flush());
        // All at once, and each device is let go as soon as its own flush has ended.
        let flushes = due.map(|(&inode, member)| {
            let (disk, unflushed) = (member.backing.watched.clone(), member.unflushed.clone());
            let flush = async move {
                let done = unflushed.flush(|| disk.flush()).await;
                if let Err(why) = &done {
                    let name = disk.name();
                    log::warn!("backing device {name} was not flushed: {why}");
                }
                done.is_err().then_some(inode)
            };
            Box::pin(flush)
        });
        let flushes: Vec<_> = flushes.collect();
        Box::pin(async move { join_all(flushes).await.into_iter().flatten().collect() })
    }
}
