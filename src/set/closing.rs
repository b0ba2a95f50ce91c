//! Volumes and sets are taken down, from the top down where one stands on another.
//!
//! Closing a volume is a task of its own: its bdev is unregistered, which ends when every host and
//! every bdev on top has let go of it, and then it leaves its set. Whatever waits for that end holds
//! no turn, and a call waits for a bounded time: another module may keep the bdev open for good.
//!
//! A volume that another one of ours stands on, directly or through other bdevs, is not taken down
//! by request. When the device beneath it is removed, the removal reaches the volumes above through
//! the bdev layer. At the end of the process each volume waits until nothing stands on it.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use super::cache::CacheSet;
use super::error::SetError;
use super::hub::{Hub, STOP_LIMIT_US};
use super::join::drop_clean;
use super::turns::Place;
use super::volume::{Link, Volume};
use crate::canary::{self, Bug};
use crate::task::{Notify, either, join_all, yield_now};

/// How long a call waits for all that have a volume open to close it: 10 s.
const CLOSE_WAIT_US: u64 = 10_000_000;

/// The end of a volume's bdev, under way or done.
#[derive(Default)]
pub struct Closing {
    done: Cell<bool>,
    ended: Notify,
}

impl Closing {
    pub(super) async fn wait(&self) {
        while !self.done.get() {
            self.ended.wait().await;
        }
    }
}

/// Something that is taken down at the end of the process.
type Stop = Pin<Box<dyn Future<Output = ()>>>;

/// Takes down all of these, each when nothing stands on it any more.
async fn stop_each(stops: Vec<Stop>) {
    if !canary::has(Bug::StopsFromBelow) {
        join_all(stops).await;
        return;
    }
    for stop in stops {
        stop.await;
    }
}

impl Volume {
    /// Whether its bdev stays.
    ///
    /// # Errors
    /// It is being taken away.
    pub(super) fn check_open(&self) -> Result<(), SetError> {
        match *self.closing.borrow() {
            None => Ok(()),
            Some(_) => Err(SetError::Busy(format!(
                "volume {} is being taken down, and its bdev is still open",
                self.name
            ))),
        }
    }
}

impl Hub {
    /// Begins to take a volume down; that goes on by itself.
    pub(super) fn begin_close(&self, volume: &Rc<Volume>) -> Rc<Closing> {
        if let Some(closing) = &*volume.closing.borrow() {
            return closing.clone();
        }
        let closing: Rc<Closing> = Rc::default();
        *volume.closing.borrow_mut() = Some(closing.clone());
        volume.detaching.cancel();
        if !canary::has(Bug::JobOutlives) {
            volume.flushing.cancel();
        }
        let (me, volume, answer) = (self.me.clone(), volume.clone(), closing.clone());
        self.exec.spawn(async move {
            if let Some(hub) = me.upgrade() {
                if volume.is_shown() {
                    // What waits would keep hosts from letting go.
                    hub.fail_missing(&volume).await;
                    if let Err(error) = hub.host.hide(&volume.name()).await {
                        log::error!("{}: {error}", volume.name());
                    }
                }
                hub.finish_close(&volume).await;
                drop(volume);
                answer.done.set(true);
                answer.ended.notify();
                hub.changed.notify();
            }
        });
        closing
    }

    /// No host sees the volume any more: it leaves its set and the table.
    async fn finish_close(&self, volume: &Rc<Volume>) {
        volume.shared.take();
        self.keep_options(volume);
        self.keep_figures(volume);
        let link = volume.link.borrow().clone();
        if let Some(link) = link {
            // All fronts are gone; their last messages are in the ring before this returns.
            link.set.owner.settled(&link.volume).await;
            make_clean_durable(volume, &link).await;
            link.set.remove_volume(&link.volume).await;
            // The task of a flush request ends now that the volume is gone.
            volume.flushing.ended().await;
            volume.link.take();
        }
        let mut volumes = self.volumes.borrow_mut();
        if volumes
            .get(&volume.name())
            .is_some_and(|v| Rc::ptr_eq(v, volume))
        {
            volumes.remove(&volume.name());
            drop(volumes);
            self.list_again(volume);
        }
    }

    /// Waits until a volume that is being taken down is gone.
    ///
    /// # Errors
    /// Something has it open, and did not close it in time. It goes when that closes it.
    pub(super) async fn closed(&self, name: &str, closing: &Closing) -> Result<(), SetError> {
        either(closing.wait(), self.exec.sleep_us(CLOSE_WAIT_US)).await;
        match closing.done.get() {
            true => Ok(()),
            false => Err(SetError::Busy(format!(
                "{name} is being taken down, but something still has its bdev open, or its backing \
                 device does not answer; it goes when that ends"
            ))),
        }
    }

    /// Takes a volume's bdev away; what is on disk stays.
    ///
    /// # Errors
    /// There is no such volume, another one stands on it, or it could not be taken away in time.
    pub async fn delete(&self, name: &str) -> Result<(), SetError> {
        let volume = match self.volume_soon(name).await {
            Err(SetError::LeftAlone { device, .. }) => {
                // There is no bdev: it is not listed any more.
                self.left.borrow_mut().remove(&device);
                return Ok(());
            }
            other => other?,
        };
        let under_way = volume.closing.borrow().clone();
        let closing = match under_way {
            Some(closing) => closing,
            None => {
                let (_turn, volume) = self.turn_of(name).await?;
                self.check_no_user(&volume)?;
                self.begin_close(&volume)
            }
        };
        let device = volume.backing.as_ref().map(|b| b.disk.name());
        drop(volume);
        self.closed(name, &closing).await?;
        match device {
            Some(device) => log::info!(
                "volume {name} is deleted; {device} keeps its data, and bdev_bcache_register brings it \
                 back"
            ),
            None => log::info!("volume {name} is deleted; its set keeps its data"),
        }
        Ok(())
    }

    /// What stands on a volume, directly or through other bdevs: a volume's name, or a set.
    fn user_of(&self, name: &str) -> Option<String> {
        let volumes = self.volumes.borrow();
        let on_top = volumes.values().find(|volume| {
            let backing = volume.backing.as_ref();
            backing.is_some_and(|b| self.stands_on(&b.disk.name(), name))
        });
        let sets = self.sets.borrow();
        let set = || {
            sets.iter()
                .find(|set| self.stands_on(&set.disk.name(), name))
        };
        let on_top = on_top.map(|volume| volume.name());
        on_top.or_else(|| set().map(|set| format!("cache set {}", set.set_uuid())))
    }

    /// Whether a bdev is another one or lies on it.
    fn stands_on(&self, bdev: &str, lower: &str) -> bool {
        let mut seen = vec![bdev.to_string()];
        let mut next = 0;
        while next < seen.len() {
            if seen[next] == lower {
                return true;
            }
            for name in self.host.beneath(&seen[next]) {
                // A module may know it by a name that it had.
                let name = self.own_name(&name);
                if !seen.contains(&name) {
                    seen.push(name);
                }
            }
            next += 1;
        }
        false
    }

    /// # Errors
    /// Another volume of ours, or a set, stands on this one.
    pub(super) fn check_no_user(&self, volume: &Volume) -> Result<(), SetError> {
        let Some(user) = self.user_of(&volume.name()).filter(|_| volume.is_running()) else {
            return Ok(());
        };
        let call = match self.volume(&user) {
            Ok(_) => "bdev_bcache_delete",
            Err(_) => "bdev_bcache_stop_set",
        };
        Err(SetError::Busy(format!(
            "{} is used by {user}, which lies on it: take that down first ({call})",
            volume.name()
        )))
    }

    /// Stops a set and its volumes in good order; dirty data stay on the cache.
    ///
    /// # Errors
    /// No such set runs, a volume stands on one of its volumes, one of these could not be taken
    /// away in time (the set runs on then), or the set had failed.
    pub async fn stop_set(&self, set: &str) -> Result<(), SetError> {
        let (turn, set) = self.turn_of_set(set).await?;
        for volume in self.volumes_of(&set) {
            self.check_no_user(&volume)?;
        }
        set.closing.set(true);
        drop(turn);
        loop {
            let closed = self.close_volumes(&set).await;
            if closed.is_err() {
                set.closing.set(set.device_goes.get());
                return closed;
            }
            let _turn = self.turns.take(&[Place::Set(set.set_uuid())]).await;
            set.closing.set(true);
            // Another stop, which has given up since, has opened the set again, and a volume came.
            if self.volumes_of(&set).is_empty() {
                return self.stop_in_turn(&set).await;
            }
        }
    }

    /// Takes down the volumes of a set that takes in no others.
    pub(super) async fn close_volumes(&self, set: &Rc<CacheSet>) -> Result<(), SetError> {
        let volumes = self.volumes_of(set);
        let closings: Vec<_> = volumes
            .iter()
            .map(|volume| (volume.name(), self.begin_close(volume)))
            .collect();
        drop(volumes);
        for (name, closing) in closings {
            self.closed(&name, &closing).await?;
        }
        Ok(())
    }

    /// Stops a set whose volumes have been taken down.
    pub(super) async fn stop_empty(&self, set: &Rc<CacheSet>) -> Result<(), SetError> {
        let _turn = self.turns.take(&[Place::Set(set.set_uuid())]).await;
        self.stop_in_turn(set).await
    }

    /// As [`stop_empty`](Self::stop_empty), for an operation that has the set's turn.
    pub(super) async fn stop_in_turn(&self, set: &Rc<CacheSet>) -> Result<(), SetError> {
        if set.is_stopped() {
            // A stop and a removal of its device came together.
            return Ok(());
        }
        self.keep_set_options(set);
        self.keep_set_figures(set);
        let done = set.stop().await;
        self.sets.borrow_mut().retain(|s| !Rc::ptr_eq(s, set));
        self.changed.notify();
        done
    }

    /// The end of the process has begun: nothing comes up any more, and what takes long is given up.
    pub fn begin_end(&self) {
        self.ending.set(true);
        for volume in self.volumes() {
            volume.detaching.cancel();
            volume.flushing.cancel();
        }
        self.sets()
            .iter()
            .for_each(|set| set.unregistering.cancel());
    }

    /// Takes down, from the top, the volumes that nothing has open, and stops the sets that are left
    /// without one: a part of the end of the process. A volume on which another module's bdev lies stays
    /// up, for the I/O with which that one ends.
    pub async fn stop_free(&self) {
        let limit = self.stop_limit();
        let stopping = async { while self.stop_topmost().await {} };
        either(stopping, limit).await;
    }

    /// False where nothing is left that could be stopped.
    async fn stop_topmost(&self) -> bool {
        let mut volumes = self.volumes();
        let sets = self.sets();
        let empty = |set: &&Rc<CacheSet>| {
            let mut volumes = volumes.iter().filter_map(|v| v.link.borrow().clone());
            !volumes.any(|link| Rc::ptr_eq(&link.set, set))
        };
        let empty: Vec<_> = sets.iter().filter(empty).cloned().collect();
        volumes.retain(|volume| {
            let closing = volume.closing.borrow();
            let is_over = closing.as_ref().is_some_and(|closing| closing.done.get());
            let is_free =
                self.user_of(&volume.name()).is_none() && !self.host.is_open(&volume.name());
            is_free && !is_over
        });
        let any = !(volumes.is_empty() && empty.is_empty());
        let closings: Vec<_> = volumes.iter().map(|v| self.begin_close(v)).collect();
        drop((volumes, sets));
        join_all(closings.iter().map(|closing| closing.wait()).collect()).await;
        for set in empty {
            set.closing.set(true);
            if let Err(error) = self.stop_empty(&set).await {
                log::error!("{}: {error}", set.disk.name());
            }
        }
        any
    }

    /// The time that is left for the end of the process, which begins with the first call.
    fn stop_limit(&self) -> impl Future<Output = ()> + use<> {
        self.begin_end();
        let now_us = self.exec.now_us();
        let end_us = self.stop_by_us.get().unwrap_or(now_us + STOP_LIMIT_US);
        self.stop_by_us.set(Some(end_us));
        self.exec.sleep_us(end_us.saturating_sub(now_us))
    }

    /// Stops everything in good order: the end of the process. What takes longer than
    /// [`STOP_LIMIT_US`] in all is left as it is, as a crash would leave it; false then.
    pub async fn stop_all(self: &Rc<Self>) -> bool {
        let limit = self.stop_limit();
        let in_time = Cell::new(false);
        let stopping = async {
            while self.is_busy() {
                self.stop_all_once().await;
                // An operation that was under way may have brought something up meanwhile, or still
                // may.
                match self.has_any() {
                    true => yield_now().await,
                    false if self.turns.are_taken() => self.turns.freed().await,
                    false => {}
                }
            }
            in_time.set(true);
        };
        either(stopping, limit).await;
        if !in_time.get() {
            self.abandon();
        }
        in_time.get()
    }

    fn is_busy(&self) -> bool {
        self.has_any() || self.turns.are_taken()
    }

    /// Whether any set or volume is there.
    fn has_any(&self) -> bool {
        !self.sets.borrow().is_empty() || !self.volumes.borrow().is_empty()
    }

    async fn stop_all_once(self: &Rc<Self>) {
        let mut stops: Vec<Stop> = Vec::new();
        for set in self.sets() {
            stops.push(Box::pin(self.clone().stop_from_the_top(set)));
        }
        for volume in self.volumes() {
            if volume.link.borrow().is_none() {
                stops.push(Box::pin(self.clone().close_from_the_top(volume)));
            }
        }
        stop_each(stops).await;
    }

    async fn stop_from_the_top(self: Rc<Self>, set: Rc<CacheSet>) {
        set.closing.set(true);
        let volumes = self.volumes_of(&set).into_iter();
        let close = |volume| -> Stop { Box::pin(self.clone().close_from_the_top(volume)) };
        stop_each(volumes.map(close).collect()).await;
        if self.find_set(set.set_uuid()).is_none() {
            return;
        }
        if let Err(error) = self.stop_empty(&set).await {
            log::error!("{}: {error}", set.disk.name());
        }
    }

    async fn close_from_the_top(self: Rc<Self>, volume: Rc<Volume>) {
        while self.user_of(&volume.name()).is_some() && !canary::has(Bug::StopsFromBelow) {
            self.changed.wait().await;
        }
        let closing = self.begin_close(&volume);
        // A volume above or a host may wait for the last handle of its devices.
        drop(volume);
        closing.wait().await;
    }

    /// Gives up what did not stop in time.
    fn abandon(&self) {
        for volume in self.volumes.take().into_values() {
            log::error!("volume {} was not taken down in time", volume.name());
        }
        for set in self.sets.take() {
            let (name, uuid) = (set.disk.name(), set.set_uuid());
            set.latch
                .trip(format!("{name}: cache set {uuid} was not stopped in time"));
        }
    }
}

/// Makes durable on the backing device what the set has as clean, before the volume leaves the set and
/// its device is flushed for no leaf any more. Where the device cannot, it may have lost what it was given
/// last: what is clean then means nothing, and is dropped.
pub(super) async fn make_clean_durable(volume: &Volume, link: &Link) {
    let Err(error) = link.volume.flush_backing().await else {
        return;
    };
    log::warn!("{}: {error}; its clean data are dropped", volume.name());
    if let Err(error) = drop_clean(&link.set, link.volume.inode).await {
        log::warn!("{}: {error}", volume.name());
    }
}
