//! What the set layer asks of SPDK: devices, and volumes as bdevs. On the owner thread.
//!
//! A volume's life here: *exposed* (its bdev is registered), then *going* (unregistered by
//! [`Host::hide`], or by SPDK's shutdown), then *gone*: no host, no channel and no front is
//! left, and its devices are let go. SPDK learns that the bdev is destroyed right after that; in a
//! shutdown only when the sets are stopped, because SPDK then goes on to take the devices away that
//! lie under them.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::io::Read;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::bounce::BouncePool;
use super::channel::{self, Channel, Volume};
use super::disk::{Access, RawDevice, SpdkDisk};
use super::thread::ticks;
use super::{module, sys};
use crate::disk::steps::Reserve;
use crate::disk::{Disk, DoneFuture};
use crate::request::volume::{Name, VolumeShared};
use crate::set::host::{Host, OpenError};
use crate::task::{Executor, Lock, Notify, OnceSender, once};

/// How often it is looked whether the last fronts have ended. They end within one I/O's time.
const LOOK_AGAIN_US: u64 = 100;

/// Devices that a volume's data lie on.
#[derive(Clone, Default)]
struct Devices {
    cache: Option<Rc<dyn Disk>>,
    backing: Option<Rc<dyn Disk>>,
}

/// A registered bdev of ours.
struct Exposed {
    name: Name,
    volume: Arc<Volume>,
    bdev: *mut sys::spdk_bdev,
    /// Held for the fronts, which have the devices' raw pointers.
    devices: RefCell<Devices>,
    going: Cell<bool>,
    gone: Cell<bool>,
    /// Steps over all channels under way: SPDK does not unregister a volume under one.
    steps: Cell<usize>,
    changed: Notify,
    /// One change of what the volume is made of at a time.
    turn: Lock,
}

impl Exposed {
    async fn wait_gone(&self) {
        while !self.gone.get() {
            self.changed.wait().await;
        }
    }
}

/// Keeps a volume registered while steps over its channels are under way.
struct Steps(Rc<Exposed>);

impl Steps {
    fn of(exposed: &Rc<Exposed>) -> Steps {
        exposed.steps.set(exposed.steps.get() + 1);
        Steps(exposed.clone())
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.0.steps.set(self.0.steps.get() - 1);
        self.0.changed.notify();
    }
}

/// The set layer's way to SPDK.
pub struct SpdkHost {
    exec: Executor,
    volumes: RefCell<HashMap<String, Rc<Exposed>>>,
    disks: RefCell<Vec<Weak<SpdkDisk>>>,
    buffers: Rc<BouncePool>,
    reserve: Reserve,
}

impl SpdkHost {
    /// Without any device or volume; tasks run on `exec`.
    pub fn new(exec: Executor) -> SpdkHost {
        SpdkHost {
            exec,
            volumes: RefCell::default(),
            disks: RefCell::default(),
            buffers: Rc::default(),
            reserve: Reserve::default(),
        }
    }

    /// Memory for the owner thread's I/O.
    pub fn buffers(&self) -> &Rc<BouncePool> {
        &self.buffers
    }

    /// Memory for that I/O when there is no other.
    pub fn reserve(&self) -> &Reserve {
        &self.reserve
    }

    /// Whether any volume is exposed.
    pub fn has_volumes(&self) -> bool {
        !self.volumes.borrow().is_empty()
    }

    fn spdk_disk(&self, disk: &Rc<dyn Disk>) -> Rc<SpdkDisk> {
        let disks = self.disks.borrow();
        let address = Rc::as_ptr(disk).cast::<()>();
        let found = disks.iter().find(|d| d.as_ptr().cast::<()>() == address);
        let found = found.and_then(Weak::upgrade);
        found.expect("all of the engine's devices were opened here")
    }

    fn raw(&self, disk: &Option<Rc<dyn Disk>>) -> Option<RawDevice> {
        disk.as_ref().map(|disk| self.spdk_disk(disk).raw_device())
    }

    fn expose(&self, shared: Arc<VolumeShared>, devices: Devices) -> Result<(), i32> {
        let own = shared.name.get();
        let name = CString::new(own.as_str()).map_err(|_| sys::EINVAL)?;
        if self.find(&own).is_some() {
            return Err(sys::EEXIST);
        }
        let (cache, backing) = (self.raw(&devices.cache), self.raw(&devices.backing));
        let volume = Arc::new(Volume::new(shared.clone(), cache, backing));
        let info = sys::bcache_volume_info {
            name: name.as_ptr(),
            uuid: shared.uuid.0,
            block_bytes: shared.block_sectors << crate::units::SECTOR_SHIFT,
            num_blocks: shared.size_sectors() / u64::from(shared.block_sectors),
            volume: volume.io_device(),
        };
        // SAFETY: `info` and the name in it are read during the call.
        let bdev = unsafe { sys::bcache_volume_new(&info) };
        if bdev.is_null() {
            return Err(sys::ENOMEM);
        }
        let exposed = Rc::new(Exposed {
            name: shared.name.clone(),
            volume,
            bdev,
            devices: RefCell::new(devices),
            going: Cell::new(false),
            gone: Cell::new(false),
            steps: Cell::new(0),
            changed: Notify::default(),
            turn: Lock::default(),
        });
        self.register(exposed, &name)
    }

    fn register(&self, exposed: Rc<Exposed>, c_name: &CStr) -> Result<(), i32> {
        let io_device = exposed.volume.io_device();
        let ctx_bytes = size_of::<*const Channel>() as u32;
        let (create, destroy) = (Some(channel::create as _), Some(channel::destroy as _));
        let bdev = exposed.bdev;
        let name = exposed.name.get();
        self.volumes.borrow_mut().insert(name.clone(), exposed);
        // SAFETY: the volume is held in `volumes` until its channels are gone; the functions take
        // the context that is announced here; SPDK copies the name. What fails to register was
        // seen by nobody: SPDK is done with it when the calls return.
        unsafe {
            sys::spdk_io_device_register(io_device, create, destroy, ctx_bytes, c_name.as_ptr());
            let rc = sys::spdk_bdev_register(bdev);
            if rc == 0 {
                return Ok(());
            }
            sys::spdk_io_device_unregister(io_device, None);
            sys::bcache_volume_free(bdev);
            self.volumes.borrow_mut().remove(&name);
            Err(-rc)
        }
    }

    fn find(&self, name: &str) -> Option<Rc<Exposed>> {
        self.volumes.borrow().get(name).cloned()
    }

    /// Holds new host I/O of a volume. Done when none is in flight, nor any fill.
    async fn quiesce(&self, exposed: &Rc<Exposed>) {
        exposed.volume.hold();
        each_channel(exposed, channel::quiesce_each).await;
        while exposed.volume.busy() > 0 {
            self.exec.sleep_us(LOOK_AGAIN_US).await;
        }
    }

    /// Lets a quiesced volume's host I/O in again, to what the volume is now. Done when no thread
    /// uses what it was before.
    async fn resume(
        &self,
        exposed: &Rc<Exposed>,
        shared: Arc<VolumeShared>,
        cache: Option<Rc<dyn Disk>>,
    ) {
        exposed.volume.become_of(shared, self.raw(&cache));
        // The old one is let go when no front has its pointers any more.
        let old = std::mem::replace(&mut exposed.devices.borrow_mut().cache, cache);
        each_channel(exposed, channel::resume_each).await;
        drop(old);
    }

    /// Tells hosts that a volume has another size.
    pub fn resize(&self, name: &str, size_sectors: u64) -> Result<(), i32> {
        let exposed = self.find(name).ok_or(sys::ENODEV)?;
        let block_sectors = u64::from(exposed.volume.shape().shared.block_sectors);
        let blocks = size_sectors / block_sectors;
        // SAFETY: the bdev is registered: it is freed after it has left `volumes`.
        match unsafe { sys::bcache_volume_resize(exposed.bdev, blocks) } {
            0 => Ok(()),
            rc => Err(-rc),
        }
    }

    fn find_device(&self, io_device: *mut c_void) -> Option<Rc<Exposed>> {
        let volumes = self.volumes.borrow();
        let mut all = volumes.values();
        all.find(|e| e.volume.io_device() == io_device).cloned()
    }

    /// Gives a volume another name; its cell has it afterwards.
    fn rename(&self, name: &str, new: &str) -> Result<(), i32> {
        let exposed = self.find(name).filter(|exposed| !exposed.going.get());
        let exposed = exposed.ok_or(sys::ENODEV)?;
        let c_new = CString::new(new).map_err(|_| sys::EINVAL)?;
        // SAFETY: the bdev is registered: it is freed after it has left `volumes`; the name is copied.
        match unsafe { sys::bcache_volume_rename(exposed.bdev, c_new.as_ptr()) } {
            0 => {}
            rc => return Err(-rc),
        }
        let mut volumes = self.volumes.borrow_mut();
        volumes.remove(name);
        volumes.insert(new.into(), exposed);
        Ok(())
    }

    /// The name of the volume that SPDK knows by this handle.
    pub fn name_of(&self, io_device: *mut c_void) -> Option<String> {
        self.find_device(io_device).map(|e| e.name.get())
    }

    /// SPDK destroys a volume's bdev: nobody has it open any more.
    fn destruct(&self, io_device: *mut c_void) {
        let found = self.find_device(io_device);
        let exposed = found.expect("a bdev of ours is in the table until it is gone");
        exposed.going.set(true);
        // Before 26.01 the bdev layer leaves aliases behind: from 21.07 on in its tree of names.
        // SAFETY: the bdev is unregistered, and is freed in `channels_gone`.
        unsafe { sys::spdk_bdev_alias_del_all(exposed.bdev) };
        self.exec.spawn(async move {
            while exposed.steps.get() > 0 {
                exposed.changed.wait().await;
            }
            // SAFETY: the volume was registered once and is unregistered once; it is held in
            // `volumes` until `unregistered`.
            unsafe { sys::spdk_io_device_unregister(io_device, Some(unregistered)) };
        });
    }

    /// SPDK has no channel of the volume any more.
    fn channels_gone(&'static self, io_device: *mut c_void) {
        let found = self.find_device(io_device);
        let exposed = found.expect("a bdev of ours is in the table until it is gone");
        self.exec.spawn(async move {
            while exposed.volume.open() > 0 {
                self.exec.sleep_us(LOOK_AGAIN_US).await;
            }
            self.volumes.borrow_mut().remove(&exposed.name.get());
            exposed.devices.take();
            exposed.gone.set(true);
            exposed.changed.notify();
            module::before_destruct_done().await;
            // SAFETY: SPDK waits for this since `destruct`, which happens once; it uses the bdev
            // no more when it returns.
            unsafe {
                sys::spdk_bdev_destruct_done(exposed.bdev, 0);
                sys::bcache_volume_free(exposed.bdev);
            }
        });
    }
}

/// The [`Host`] that the set layer gets: the one that the module keeps.
#[derive(Clone, Copy)]
pub struct ModuleHost(pub &'static SpdkHost);

impl Host for ModuleHost {
    fn open(&self, name: &str) -> Result<Rc<dyn Disk>, OpenError> {
        let disk = Rc::new(SpdkDisk::open(name, Access::Exclusive)?);
        let mut disks = self.0.disks.borrow_mut();
        disks.retain(|disk| disk.strong_count() > 0);
        disks.push(Rc::downgrade(&disk));
        Ok(disk)
    }

    fn peek(&self, name: &str) -> Result<Rc<dyn Disk>, OpenError> {
        Ok(Rc::new(SpdkDisk::open(name, Access::ReadOnly)?))
    }

    fn resolve(&self, name: &str) -> Option<String> {
        let name = CString::new(name).ok()?;
        // SAFETY: the name ends in NUL and is read during the call; the bdev's own name is copied
        // before anything else runs on this thread.
        unsafe {
            let bdev = sys::spdk_bdev_get_by_name(name.as_ptr());
            (!bdev.is_null()).then(|| {
                let own = CStr::from_ptr(sys::spdk_bdev_get_name(bdev));
                own.to_string_lossy().into_owned()
            })
        }
    }

    fn is_open(&self, name: &str) -> bool {
        let found = self.0.find(name);
        // SAFETY: the bdev is registered: it is freed after it has left `volumes`.
        found.is_some_and(|exposed| unsafe { sys::bcache_volume_is_open(exposed.bdev) })
    }

    fn is_taken(&self, name: &str) -> bool {
        let Ok(name) = CString::new(name) else {
            return false;
        };
        // SAFETY: the name ends in NUL and is read during the call; what is found is not used.
        !unsafe { sys::spdk_bdev_get_by_name(name.as_ptr()) }.is_null()
    }

    fn beneath(&self, name: &str) -> Vec<String> {
        beneath(name)
    }

    fn expose(
        &self,
        volume: Arc<VolumeShared>,
        backing: Option<Rc<dyn Disk>>,
        cache: Option<Rc<dyn Disk>>,
    ) -> Result<(), i32> {
        self.0.expose(volume, Devices { cache, backing })
    }

    fn hide(&self, name: &str) -> DoneFuture {
        let found = self.0.find(name);
        // Unregistering begins at once, not at the first poll of the answer.
        if let Some(exposed) = found.as_ref().filter(|e| !e.going.replace(true)) {
            // SAFETY: the bdev is registered and nobody has begun to unregister it.
            unsafe { sys::spdk_bdev_unregister(exposed.bdev, None, std::ptr::null_mut()) };
        }
        Box::pin(async move {
            if let Some(exposed) = found {
                exposed.wait_gone().await;
            }
            Ok(())
        })
    }

    fn replace(&self, volume: Arc<VolumeShared>, cache: Option<Rc<dyn Disk>>) -> DoneFuture {
        let host = self.0;
        Box::pin(async move {
            let Some(exposed) = host.find(&volume.name.get()) else {
                return Ok(());
            };
            let _turn = exposed.turn.lock().await;
            if exposed.going.get() {
                exposed.wait_gone().await;
                return Ok(());
            }
            let _steps = Steps::of(&exposed);
            host.quiesce(&exposed).await;
            host.resume(&exposed, volume, cache).await;
            Ok(())
        })
    }

    fn rename(&self, name: &str, new: &str) -> Result<(), i32> {
        self.0.rename(name, new)
    }

    fn resize(&self, name: &str, size_sectors: u64) -> Result<(), i32> {
        self.0.resize(name, size_sectors)
    }

    fn panic(&self, why: &str) {
        log::error!("errors=panic: {why}");
        std::process::abort()
    }

    fn entropy(&self) -> u64 {
        let mut bits = [0u8; 8];
        let read = std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bits));
        // Without the kernel's generator (a bare chroot) the time has to do: what is made of it is
        // unique on this machine, which suffices for a name.
        read.map_or_else(
            |_| ticks() ^ u64::from(self.now_s()) << 32,
            |()| u64::from_ne_bytes(bits),
        )
    }

    fn now_s(&self) -> u32 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| since.as_secs() as u32)
    }
}

/// The bdevs that a bdev is made of, as far as its module tells.
fn beneath(name: &str) -> Vec<String> {
    let mut names = Vec::new();
    base_names(&super::json::info_of(name), false, &mut names);
    names
}

/// Whether a bdev is a volume of ours, or lies on one.
pub fn lies_on_volume(name: &str) -> bool {
    let mut seen = vec![name.to_string()];
    let mut next = 0;
    while next < seen.len() {
        if let Ok(name) = CString::new(seen[next].as_str()) {
            // SAFETY: the name ends in NUL and is read during the call.
            if unsafe { sys::bcache_is_volume(name.as_ptr()) } {
                return true;
            }
        }
        for lower in beneath(&seen[next]) {
            if !seen.contains(&lower) {
                seen.push(lower);
            }
        }
        next += 1;
    }
    false
}

/// The names in what a bdev's module tells that stand under keys like `base_bdev`: SPDK's modules
/// name there what a bdev is made of.
fn base_names(info: &Value, is_base: bool, names: &mut Vec<String>) {
    match info {
        Value::String(name) if is_base => names.push(name.clone()),
        Value::Array(list) => list.iter().for_each(|v| base_names(v, is_base, names)),
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            let is_base = key.starts_with("base_bdev") || is_base && key == "name";
            base_names(value, is_base, names);
        }),
        _ => {}
    }
}

/// Calls `each` for every channel of a volume, one after the other; done when all have answered.
fn each_channel(
    exposed: &Rc<Exposed>,
    each: unsafe extern "C" fn(*mut sys::spdk_io_channel_iter),
) -> impl Future<Output = ()> + use<> {
    let (sender, done) = once::<()>();
    let ctx = Box::into_raw(Box::new(sender));
    // SAFETY: the volume is registered; the context is taken back in `all_answered`, which is
    // called once, on this thread.
    unsafe {
        sys::spdk_for_each_channel(
            exposed.volume.io_device(),
            Some(each),
            ctx.cast(),
            Some(all_answered),
        );
    }
    done
}

unsafe extern "C" fn all_answered(iter: *mut sys::spdk_io_channel_iter, _status: i32) {
    // SAFETY: the context is the box made in `each_channel`.
    let sender = unsafe {
        let ctx = sys::spdk_io_channel_iter_get_ctx(iter);
        Box::from_raw(ctx.cast::<OnceSender<()>>())
    };
    sender.send(());
}

/// The `destruct` of the module's table. On any thread: that of whoever closed the bdev last.
///
/// # Safety
/// `volume` is the io_device of an exposed volume whose bdev nobody has open.
pub unsafe extern "C" fn destruct(volume: *mut c_void) {
    // SAFETY: the volume stays until the bdev layer is told that it is destroyed.
    unsafe { module::send_to_owner(destruct_on_owner, volume) };
}

unsafe extern "C" fn destruct_on_owner(volume: *mut c_void) {
    module::host().destruct(volume);
}

unsafe extern "C" fn unregistered(volume: *mut c_void) {
    module::host().channels_gone(volume);
}

/// This thread's channel of a volume; the `get_io_channel` of the module's table.
///
/// # Safety
/// `volume` is the io_device of an exposed volume.
pub unsafe extern "C" fn get_io_channel(volume: *mut c_void) -> *mut sys::spdk_io_channel {
    // SAFETY: by contract.
    unsafe { sys::spdk_get_io_channel(volume) }
}
