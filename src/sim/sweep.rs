//! The power cut at every single write and flush of a script, and an error at every operation.
//!
//! A scenario is prepared once; what its devices hold then is the start of every run. Run n cuts
//! the power at step n of the script: what was not flushed by then is lost, torn or kept in an
//! order of its own for each n. After that the set is started again, and everything is looked at:
//! that all that was acknowledged is there, each sector of each volume, every invariant of the set
//! ([`check`]), that it goes on working, and that the next start finds the same map.
//!
//! Or one operation fails: read, write or flush n of the script is answered with an error, or from
//! there on all that its device is told. The script may end there, but only in errors, never in wrong
//! data; it does not hang; and where the device failed but once, either the set says that it has
//! stopped, or everything works as before. Then the power goes, and all of the above is looked at.
//!
//! What a cut may leave of a volume that was being created: nothing, or the volume; the same call
//! creates it then. Where a torn superblock is refused, it takes `force` and `discard_dirty`.

use std::cell::RefCell;
use std::rc::Rc;

use super::check;
use super::disk::{Fault, Fuse};
use super::kernel::judge::{Judged, judge_media};
use super::kernel::volumes::backing_super;
use super::kernel::{self, Sizes};
use super::script::{Books, Job, Layout, Machine, Media, VolumeKind, name};
use crate::format::superblock::CacheMode;
use crate::index::Extent;
use crate::rng::Rng;
use crate::set::error::SetError;
use crate::set::format::{Permission, label};
use crate::units::Inode;

/// A script.
pub type Script = fn(Rc<Machine>) -> Job;

/// What is swept.
pub struct Scenario {
    /// What people call it.
    pub name: &'static str,
    /// Devices and volumes.
    pub layout: Layout,
    /// What happens before, uncut. The power goes at its end, too.
    pub prepare: Script,
    /// What is cut.
    pub script: Script,
}

/// Flushes that devices ignore: canaries.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spoil {
    /// Those of the cache device.
    pub fast: bool,
    /// Those of the backing devices.
    pub slow: bool,
}

/// A scenario that is prepared.
pub struct Sweep {
    layout: Layout,
    script: Script,
    seed: u64,
    media: Media,
    books: Books,
    /// Which flushes are ignored from here on.
    pub spoil: Spoil,
}

impl Sweep {
    /// Prepares a scenario.
    ///
    /// # Errors
    /// What goes wrong although nothing is cut.
    pub fn new(scenario: &Scenario, seed: u64) -> Result<Sweep, String> {
        let media = Media::new(&scenario.layout);
        let books = Rc::new(RefCell::new(Books::new(&scenario.layout)));
        let machine = Machine::new(
            scenario.layout,
            media.clone(),
            books.clone(),
            seed,
            Fuse::sound(),
        );
        let done = machine.run((scenario.prepare)(machine.clone()));
        machine.die(&Rng::new(seed), true);
        done?.ok_or("the power went")??;
        let books = books.borrow().clone();
        Ok(Sweep {
            layout: scenario.layout,
            script: scenario.script,
            seed,
            media,
            books,
            spoil: Spoil::default(),
        })
    }

    /// The steps that the script takes when nothing cuts it.
    ///
    /// # Errors
    /// What goes wrong then.
    pub fn steps(&self) -> Result<u64, String> {
        self.cut(u64::MAX - 1)
    }

    /// The operations that it takes when none fails.
    ///
    /// # Errors
    /// What goes wrong then.
    pub fn operations(&self) -> Result<u64, String> {
        let none = Fault {
            operation: u64::MAX,
            lasting: false,
        };
        self.fail(none)
    }

    /// Cuts the power at step `n`, starts again, and looks at everything. Returns how many steps
    /// there were: at most `n` when the script ended before.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn cut(&self, n: u64) -> Result<u64, String> {
        let run = self.run_of(n);
        let machine = run.switch_on(self.seed, Fuse::new(n));
        let done = machine.run((self.script)(machine.clone()));
        let steps = machine.fuse.steps();
        machine.die(&run.chance, true);
        done.map_err(|why| format!("the script: {why}"))?
            .unwrap_or(Ok(()))
            .map_err(|why| format!("the script: {why}"))?;
        run.later_lives()?;
        Ok(steps)
    }

    /// Lets an operation fail, then cuts the power, starts again, and looks at everything. Returns
    /// how many operations the script took.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn fail(&self, fault: Fault) -> Result<u64, String> {
        let run = self.run_of(fault.operation);
        let machine = run.switch_on(self.seed, Fuse::with(fault));
        let done = machine.run((self.script)(machine.clone()));
        let operations = machine.fuse.operations();
        machine.fuse.disarm();
        let after = match &done {
            Ok(Some(Err(why))) if operations <= fault.operation => Err(why.clone()),
            Ok(_) => powered(machine.run(endure(machine.clone(), fault.lasting))),
            Err(why) => Err(format!("the script: {why}")),
        };
        let wrong = machine.wrong.take();
        machine.die(&run.chance, true);
        wrong.map_or(after, Err)?;
        for medium in run.media.all() {
            medium.cure();
        }
        run.later_lives()?;
        Ok(operations)
    }

    /// What run `n` begins with.
    fn run_of(&self, n: u64) -> Run {
        let media = self.media.copy();
        media.fast.ignore_flush.set(self.spoil.fast);
        for slow in media.slow.iter().flatten() {
            slow.ignore_flush.set(self.spoil.slow);
        }
        Run {
            layout: self.layout,
            media,
            books: Rc::new(RefCell::new(self.books.clone())),
            chance: Rng::new(self.seed.wrapping_mul(0x1_0001).wrapping_add(n)),
        }
    }
}

/// One run: what outlives its machines.
struct Run {
    layout: Layout,
    media: Media,
    books: Rc<RefCell<Books>>,
    chance: Rng,
}

impl Run {
    fn switch_on(&self, seed: u64, fuse: Rc<Fuse>) -> Rc<Machine> {
        Machine::new(
            self.layout,
            self.media.clone(),
            self.books.clone(),
            seed,
            fuse,
        )
    }

    /// The two lives after the one that went wrong.
    fn later_lives(&self) -> Result<(), String> {
        self.ask_linux()
            .map_err(|why| format!("after the cut: {why}"))?;
        let machine = self.switch_on(self.chance.next(), Fuse::sound());
        let done = machine.run(revive(machine.clone()));
        machine.die(&self.chance, true);
        let map = powered(done).map_err(|why| format!("after the cut: {why}"))?;
        self.ask_linux()
            .map_err(|why| format!("after a stop: {why}"))?;

        let machine = self.switch_on(self.chance.next(), Fuse::sound());
        let done = machine.run(look_again(machine.clone(), map));
        machine.die(&self.chance, true);
        powered(done).map_err(|why| format!("a start later: {why}"))
    }
}

impl Run {
    /// What Linux would make of the devices, if any volume was acknowledged to be there.
    fn ask_linux(&self) -> Result<(), String> {
        let books = self.books.borrow();
        if !books.made.contains(&true) {
            return Ok(());
        }
        let cache = self.media.fast.look();
        let view = kernel::open(&*cache, &[], Sizes::Any).map_err(|why| why.to_string())?;
        let made = (0..).zip(&books.made).filter(|&(_, &made)| made);
        let volumes = made.map(|(nr, _)| {
            let uuid = match &self.media.slow[nr] {
                Some(slow) => backing_super(&*slow.look()).map(|sb| sb.uuid),
                None => view
                    .flash_volumes()
                    .find(|entry| label(&name(nr)).is_ok_and(|label| label == entry.label))
                    .map(|entry| entry.uuid),
            };
            let uuid = uuid.ok_or_else(|| format!("Linux finds no {}", name(nr)))?;
            Ok(Judged {
                nr,
                uuid,
                same: true,
            })
        });
        let volumes: Result<Vec<Judged>, String> = volumes.collect();
        judge_media(&self.media.fast, &self.media.slow, &volumes?, &books.oracle).map(|_| ())
    }
}

type Map = Vec<(Inode, Extent)>;

fn powered<T>(done: Result<Option<Result<T, String>>, String>) -> Result<T, String> {
    done?.ok_or("the power went")?
}

/// Brings everything up as the cut left it, and looks at it before anything is written.
async fn bring_up(m: &Machine, map: Option<Map>) -> Result<(), String> {
    let made = m.books.borrow().made.clone();
    let set = match m.hub.register("fast").await {
        Ok(_) => Some(m.set()?),
        Err(why) if made.contains(&true) => return Err(format!("the set: {why}")),
        // It was being formatted.
        Err(_) => None,
    };
    if let Some(set) = &set {
        check::counts(set)?;
        check::marks(set, m.media.backings())?;
        check::clean_data(set, &m.media.fast, m.media.backings())?;
    }
    if let (Some(set), Some(map)) = (&set, map) {
        check::same_map(set, &map)?;
    }
    for (i, slow) in m.media.slow.iter().enumerate() {
        let Some(slow) = slow else { continue };
        match m.hub.register(slow.name()).await {
            Err(why) if made[i] => return Err(format!("{}: {why}", slow.name())),
            _ => {}
        }
    }
    for (i, &was_made) in made.iter().enumerate() {
        if m.host.stage.volume(&name(i)).is_none() {
            if was_made {
                return Err(format!("{} is not there", name(i)));
            }
            make(m, i).await?;
        }
    }
    Ok(())
}

/// Goes on after an error. Where the device works again, so must everything, unless the set says
/// that it has stopped.
async fn endure(m: Rc<Machine>, lasting: bool) -> Result<(), String> {
    let done = work_on(&m).await;
    let loud = m.hub.sets().iter().find_map(|set| set.latch.why());
    match (done, loud) {
        (Err(why), None) if !lasting => Err(format!("nothing says that the set failed: {why}")),
        _ => Ok(()),
    }
}

/// Brings up what is not, uses all volumes that there are, and cleans them.
async fn work_on(m: &Machine) -> Result<(), String> {
    if m.hub.is_ending() {
        return Ok(());
    }
    let made = m.books.borrow().made.clone();
    if m.hub.sets().is_empty() && made.contains(&true) {
        // Where it failed while it stopped, it comes back as after a crash.
        m.books.borrow_mut().oracle.crash(false);
        m.register("fast").await?;
    }
    for (slow, made) in m.media.slow.iter().zip(made) {
        if let (Some(slow), true) = (slow, made) {
            m.register(slow.name()).await?;
        }
    }
    let up = |i: &usize| m.host.stage.volume(&name(*i)).is_some();
    let volumes: Vec<usize> = (0..m.layout.volumes.len()).filter(up).collect();
    for &i in &volumes {
        m.read_all(i).await?;
        m.burst(i, 8, 4).await?;
        m.flush(i).await?;
    }
    for &i in &volumes {
        m.hub.flush_start(&name(i)).map_err(|e| e.to_string())?;
        if m.media.slow[i].is_some() {
            m.calm(i).await?;
        }
    }
    Ok(())
}

/// Creates a volume that a cut may have left unfinished.
async fn make(m: &Machine, i: usize) -> Result<(), String> {
    if let VolumeKind::Flash(_) = m.layout.volumes[i] {
        return m.create_flash(i).await;
    }
    let mode = CacheMode::WriteBack;
    let done = m.create(i, mode, Permission::default()).await;
    let Err(why) = done else { return Ok(()) };
    let refused = why.is_damage() || matches!(why, SetError::Occupied(_));
    if !refused {
        return Err(format!("{} cannot be created: {why}", name(i)));
    }
    let force = Permission {
        force: true,
        discard_dirty: true,
    };
    let done = m.create(i, mode, force).await;
    done.map_err(|why| format!("{} cannot be created by force: {why}", name(i)))
}

/// The first life after a cut: everything is read, work goes on, and ends in good order.
async fn revive(m: Rc<Machine>) -> Result<Map, String> {
    bring_up(&m, None).await?;
    for i in 0..m.layout.volumes.len() {
        m.read_all(i).await?;
    }
    check::counts(&*m.set()?)?;
    for i in 0..m.layout.volumes.len() {
        m.burst(i, 8, 4).await?;
        m.flush(i).await?;
    }
    let set = m.set()?;
    m.hub.stop_all().await;
    check::counts(&set)?;
    check::no_pins(&set)?;
    Ok(check::extents(&set))
}

/// The second: nothing has changed.
async fn look_again(m: Rc<Machine>, map: Map) -> Result<(), String> {
    bring_up(&m, Some(map)).await?;
    for i in 0..m.layout.volumes.len() {
        m.read_all(i).await?;
    }
    check::counts(&*m.set()?)
}
