//! What becomes of the volumes of a set whose cache device failed.
//!
//! The set has stopped: nothing in it changes any more, in memory or on disk. A volume without dirty
//! data has all its data on its backing device, so it leaves the set and goes on without a cache;
//! its superblock says so before the first write goes past the set, as when it is detached. Where it
//! last said dirty, the journal may not know that nothing is dirty any more: it says stale then, for
//! what such a set would take for dirty data when it is started again is older than the device. A volume
//! with dirty data stays: what it reads is right, and what it cannot read or write ends in errors.

use std::rc::Rc;

use super::cache::CacheSet;
use super::error::SetError;
use super::hub::Hub;
use super::join::leave;
use super::options::OnError;
use super::turns::Place;
use super::volume::Volume;
use crate::format::superblock::{BackingState, BackingSuper};
use crate::task::join_all;

impl Hub {
    /// Looks after a set that has just been started, until it ends.
    pub(super) fn watch(&self, set: &Rc<CacheSet>) {
        let (me, latch, set) = (self.me.clone(), set.latch.clone(), Rc::downgrade(set));
        self.exec.spawn(async move {
            latch.tripped().await;
            let (Some(hub), Some(set)) = (me.upgrade(), set.upgrade()) else {
                return;
            };
            if let Some(why) = latch.why() {
                hub.failed(&set, &why).await;
            }
        });
    }

    async fn failed(&self, set: &Rc<CacheSet>, why: &str) {
        if set.on_error.get() == OnError::Panic {
            return self.host.panic(why);
        }
        let _turn = self.turns.take(&[Place::Set(set.set_uuid())]).await;
        if set.is_stopped() {
            return;
        }
        // All at once: a volume whose backing device is silent holds up no other one.
        let mut volumes = self.volumes_of(set);
        volumes.retain(|volume| volume.check_open().is_ok());
        let moves = volumes.into_iter().map(async |volume| {
            if let Err(error) = self.go_on_without(&volume).await {
                log::error!(
                    "volume {} stays with its failed set: {error}",
                    volume.name()
                );
            }
        });
        join_all(moves.collect()).await;
    }

    async fn go_on_without(&self, volume: &Rc<Volume>) -> Result<(), SetError> {
        let (Some(backing), Some(link)) = (volume.backing.clone(), volume.link.borrow().clone())
        else {
            return Err(SetError::Busy("it lives on the set alone".into()));
        };
        let go = |sb: &mut BackingSuper| match sb.state() {
            BackingState::Dirty => sb.set_state(BackingState::Stale),
            _ => leave(sb),
        };
        let gone = backing.change_if(|| volume.dirty_bytes() == 0, go).await;
        if !gone.map_err(|e| SetError::Io(backing.disk.name(), e))? {
            return Err(SetError::Dirty(backing.disk.name()));
        }
        volume.link.take();
        self.reshape(volume).await?;
        link.set.owner.settled(&link.volume).await;
        link.set.remove_volume(&link.volume).await;
        log::warn!("volume {} goes on without a cache", volume.name());
        Ok(())
    }
}
