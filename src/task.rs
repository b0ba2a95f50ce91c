//! The executor of the cold paths: one thread, no lock taken, time handed in from outside.
//!
//! A poller (SPDK) or the simulator calls [`Executor::poll`]; each call runs a bounded number of
//! steps, so no task can hold a reactor longer than its own longest step. Tasks run in the order
//! in which they were woken, those that hosts wait for before the others, which have at least every
//! ninth step; so a run is a function of its inputs: the simulator replays it.
//!
//! How much a step may do, and how a long job ends its steps, stands in [`work`] and [`breathe`].
//! Memory that takes long to give back goes to [`scrap()`].
//!
//! A task lives until it finishes or the executor is dropped. Wakers may be called on any thread
//! (the contract of `std::task`), although the engine wakes on the owner thread alone.

mod budget;
mod scrap;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

pub use budget::{Work, breathe, is_spent, measured, work};
pub use scrap::scrap;

type Job = Pin<Box<dyn Future<Output = ()>>>;

/// Steps of tasks that hosts wait for, one after the other, behind which another task has one.
const FIRST_RUN: usize = 8;

/// The ids of tasks that are ready to run.
#[derive(Default)]
struct Ids {
    /// Those that hosts wait for.
    first: VecDeque<usize>,
    others: VecDeque<usize>,
    /// How many of the first have run one after the other.
    run: usize,
}

impl Ids {
    fn pop(&mut self) -> Option<usize> {
        let first = self.run < FIRST_RUN || self.others.is_empty();
        let id = if first { self.first.pop_front() } else { None };
        self.run = if id.is_some() { self.run + 1 } else { 0 };
        id.or_else(|| self.others.pop_front())
    }
}

/// What is ready to run. Behind a mutex because a [`Waker`] must be `Send`; it is never contended
/// on the owner thread.
#[derive(Default)]
struct Ready {
    ids: Mutex<Ids>,
    /// Whether there may be any: a poll with nothing to do takes no lock.
    any: AtomicBool,
}

impl Ready {
    fn push(&self, id: usize, first: bool) {
        let mut ids = self.ids.lock().unwrap_or_else(|e| e.into_inner());
        match first {
            true => ids.first.push_back(id),
            false => ids.others.push_back(id),
        }
        self.any.store(true, Ordering::Release);
    }

    #[inline]
    fn pop(&self) -> Option<usize> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let mut ids = self.ids.lock().unwrap_or_else(|e| e.into_inner());
        let id = ids.pop();
        let any = !ids.first.is_empty() || !ids.others.is_empty();
        self.any.store(any, Ordering::Relaxed);
        id
    }

    fn clear(&self) {
        while self.pop().is_some() {}
    }
}

struct TaskWaker {
    id: usize,
    first: bool,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.ready.push(self.id, self.first);
        }
    }
}

struct Task {
    job: Job,
    wake: Arc<TaskWaker>,
}

struct Inner {
    tasks: RefCell<Vec<Option<Task>>>,
    free: RefCell<Vec<usize>>,
    ready: Arc<Ready>,
    timers: RefCell<BTreeMap<(u64, u64), Waker>>,
    /// No timer is due before this.
    due_us: Cell<u64>,
    timer_nr: Cell<u64>,
    now_us: Cell<u64>,
}

/// A handle to the executor; clones share it.
#[derive(Clone)]
pub struct Executor(Rc<Inner>);

impl Default for Executor {
    fn default() -> Self {
        Self::new()
    }
}

impl Executor {
    /// An executor without tasks, at time 0.
    pub fn new() -> Executor {
        Executor(Rc::new(Inner {
            tasks: RefCell::new(Vec::new()),
            free: RefCell::new(Vec::new()),
            ready: Arc::new(Ready::default()),
            timers: RefCell::new(BTreeMap::new()),
            due_us: Cell::new(u64::MAX),
            timer_nr: Cell::new(0),
            now_us: Cell::new(0),
        }))
    }

    /// The time of the last [`poll`](Self::poll), in µs since an arbitrary start.
    pub fn now_us(&self) -> u64 {
        self.0.now_us.get()
    }

    /// Starts a task. It runs at the next poll.
    pub fn spawn(&self, job: impl Future<Output = ()> + 'static) {
        self.begin(job, false);
    }

    /// Starts a task that hosts wait for: it runs before the others.
    pub fn spawn_first(&self, job: impl Future<Output = ()> + 'static) {
        self.begin(job, true);
    }

    fn begin(&self, job: impl Future<Output = ()> + 'static, first: bool) {
        let mut tasks = self.0.tasks.borrow_mut();
        let id = self.0.free.borrow_mut().pop().unwrap_or_else(|| {
            tasks.push(None);
            tasks.len() - 1
        });
        let wake = Arc::new(TaskWaker {
            id,
            first,
            queued: AtomicBool::new(false),
            ready: self.0.ready.clone(),
        });
        tasks[id] = Some(Task {
            job: Box::pin(job),
            wake: wake.clone(),
        });
        wake.wake();
    }

    /// Sets the clock, fires due timers and runs at most `steps_max` task steps. Returns the
    /// number of steps run: 0 says that nothing was to be done.
    pub fn poll(&self, now_us: u64, steps_max: usize) -> usize {
        self.poll_while(now_us, steps_max, || true)
    }

    /// As [`poll`](Self::poll), but ends before the step from which on `more` says no; it is asked
    /// before each but the first.
    pub fn poll_while(
        &self,
        now_us: u64,
        steps_max: usize,
        mut more: impl FnMut() -> bool,
    ) -> usize {
        self.0.now_us.set(now_us);
        if now_us >= self.0.due_us.get() {
            self.fire_timers(now_us);
        }
        let mut steps = 0;
        while steps < steps_max && (steps == 0 || more()) {
            let Some(id) = self.0.ready.pop() else {
                break;
            };
            self.step(id);
            steps += 1;
        }
        scrap::drop_some();
        steps
    }

    fn step(&self, id: usize) {
        // The task leaves its slot while it runs, so that it can spawn others.
        let Some(mut task) = self.0.tasks.borrow_mut()[id].take() else {
            return;
        };
        task.wake.queued.store(false, Ordering::Release);
        let waker = Waker::from(task.wake.clone());
        match measured(|| task.job.as_mut().poll(&mut Context::from_waker(&waker))) {
            Poll::Ready(()) => self.0.free.borrow_mut().push(id),
            Poll::Pending => self.0.tasks.borrow_mut()[id] = Some(task),
        }
    }

    fn fire_timers(&self, now_us: u64) {
        loop {
            let due = {
                let mut timers = self.0.timers.borrow_mut();
                let first_us = timers.keys().next().map_or(u64::MAX, |k| k.0);
                self.0.due_us.set(first_us);
                if first_us <= now_us {
                    timers.pop_first()
                } else {
                    None
                }
            };
            match due {
                Some((_, waker)) => waker.wake(),
                None => return,
            }
        }
    }

    /// When the next timer is due (for a simulator that jumps in time).
    pub fn next_timer_us(&self) -> Option<u64> {
        self.0.timers.borrow().keys().next().map(|k| k.0)
    }

    /// Whether a task could run now.
    pub fn is_ready(&self) -> bool {
        self.0.ready.any.load(Ordering::Acquire)
    }

    /// Drops all tasks and timers where they stand, as a crash does.
    pub fn abandon(&self) {
        // Out of the cells first: what a task drops may look at the executor.
        let (tasks, timers) = (self.0.tasks.take(), self.0.timers.take());
        drop((tasks, timers));
        self.0.free.borrow_mut().clear();
        self.0.ready.clear();
        self.0.due_us.set(u64::MAX);
    }

    /// Waits for so many µs.
    pub fn sleep_us(&self, us: u64) -> impl Future<Output = ()> + use<> {
        let (inner, due_us) = (self.0.clone(), self.now_us() + us);
        let mut armed = None;
        poll_fn(move |cx| {
            if inner.now_us.get() >= due_us {
                return Poll::Ready(());
            }
            // Armed anew at every poll, because the waker may be another one.
            let nr = armed.unwrap_or_else(|| {
                inner.timer_nr.set(inner.timer_nr.get() + 1);
                inner.timer_nr.get()
            });
            armed = Some(nr);
            let waker = cx.waker().clone();
            inner.timers.borrow_mut().insert((due_us, nr), waker);
            inner.due_us.set(inner.due_us.get().min(due_us));
            Poll::Pending
        })
    }
}

/// Lets all other ready tasks run once: how a long job keeps its steps short.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// Something that tasks of one thread wait for. Every [`notify`](Self::notify) wakes all who
/// wait at that moment; they look at the state again and wait again if they must.
#[derive(Default)]
pub struct Notify {
    waiting: RefCell<Vec<Waker>>,
    epoch: Cell<u64>,
    /// How many wakers were there when those of the same task were last thinned out.
    thinned: Cell<usize>,
}

/// Wakers below which nothing is thinned out.
const WAKERS_FEW: usize = 64;

impl Notify {
    /// Wakes all who wait.
    pub fn notify(&self) {
        self.epoch.set(self.epoch.get() + 1);
        for waker in self.waiting.take() {
            waker.wake();
        }
    }

    /// Waits for the first notification after this call.
    pub fn wait(&self) -> impl Future<Output = ()> + '_ {
        let seen = self.epoch.get();
        poll_fn(move |cx| {
            if self.epoch.get() != seen {
                return Poll::Ready(());
            }
            self.thin();
            self.waiting.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
    }

    /// Who waits for this or for something else, again and again, leaves a waker behind each time:
    /// of each task one is enough. Costs nothing much, as it is done when their number has doubled.
    fn thin(&self) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() < WAKERS_FEW.max(2 * self.thinned.get()) {
            return;
        }
        let mut seen = BTreeSet::new();
        waiting.retain(|waker| seen.insert(waker.data() as usize));
        self.thinned.set(waiting.len());
    }
}

struct Slot<T> {
    value: Option<T>,
    waker: Option<Waker>,
}

/// The receiving end of a value that comes once, on the same thread.
pub struct Once<T>(Rc<RefCell<Slot<T>>>);

/// The giving end of a [`Once`].
pub struct OnceSender<T>(Rc<RefCell<Slot<T>>>);

/// Both ends of a value that comes once.
pub fn once<T>() -> (OnceSender<T>, Once<T>) {
    let slot = Rc::new(RefCell::new(Slot {
        value: None,
        waker: None,
    }));
    (OnceSender(slot.clone()), Once(slot))
}

impl<T> OnceSender<T> {
    /// Hands the value over and wakes who waits for it.
    pub fn send(self, value: T) {
        let waker = {
            let mut slot = self.0.borrow_mut();
            slot.value = Some(value);
            slot.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Future for Once<T> {
    type Output = T;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut slot = self.0.borrow_mut();
        match slot.value.take() {
            Some(value) => Poll::Ready(value),
            None => {
                slot.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// A lock for tasks of one thread, fair in the order of arrival at each release.
#[derive(Default)]
pub struct Lock {
    held: Cell<bool>,
    freed: Notify,
}

/// Holds a [`Lock`] until it is dropped.
pub struct LockGuard<'a>(&'a Lock);

impl Lock {
    /// Waits for the lock.
    pub async fn lock(&self) -> LockGuard<'_> {
        while self.held.replace(true) {
            self.freed.wait().await;
        }
        LockGuard(self)
    }
}

impl Drop for LockGuard<'_> {
    fn drop(&mut self) {
        self.0.held.set(false);
        self.0.freed.notify();
    }
}

/// Waits for the first of two, and drops the other.
pub async fn either(a: impl Future<Output = ()>, b: impl Future<Output = ()>) {
    let (mut a, mut b) = (std::pin::pin!(a), std::pin::pin!(b));
    poll_fn(|cx| {
        let ready = a.as_mut().poll(cx).is_ready() || b.as_mut().poll(cx).is_ready();
        if ready {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await
}

/// Runs all futures at once and returns their results in the order given. A step that is spent ends
/// before the next of them, which has its turn first in the step that follows.
pub async fn join_all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut running: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    let (count, mut first) = (running.len(), 0);
    poll_fn(move |cx| {
        for i in (0..count).map(|i| (first + i) % count) {
            if done[i].is_some() {
                continue;
            }
            if is_spent() {
                first = i;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if let Poll::Ready(value) = running[i].as_mut().poll(cx) {
                done[i] = Some(value);
            }
        }
        first = 0;
        if done.iter().any(Option::is_none) {
            return Poll::Pending;
        }
        Poll::Ready(done.iter_mut().filter_map(Option::take).collect())
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hosts_wait_for_runs_first_and_the_others_all_the_same() {
        let (exec, log) = (Executor::new(), Rc::new(RefCell::new(Vec::new())));
        for first in [false, true] {
            let (log, other) = (log.clone(), exec.clone());
            let job = async move {
                for _ in 0..2 * FIRST_RUN {
                    log.borrow_mut().push(first);
                    yield_now().await;
                }
            };
            match first {
                true => other.spawn_first(job),
                false => other.spawn(job),
            }
        }
        exec.poll(0, 2 * (FIRST_RUN + 1));
        let mut expected = vec![true; FIRST_RUN];
        expected.push(false);
        expected.extend(expected.clone());
        assert_eq!(*log.borrow(), expected);
        exec.poll(0, 100);
        assert_eq!(log.borrow().len(), 4 * FIRST_RUN);
        assert_eq!(exec.poll(0, 100), 0);
    }

    #[test]
    fn tasks_run_in_the_order_of_their_waking_and_steps_are_bounded() {
        let (exec, log) = (Executor::new(), Rc::new(RefCell::new(Vec::new())));
        for i in 0..3 {
            let log = log.clone();
            exec.spawn(async move {
                log.borrow_mut().push(i);
                yield_now().await;
                log.borrow_mut().push(i + 10);
            });
        }
        assert_eq!(exec.poll(0, 4), 4);
        assert_eq!(*log.borrow(), [0, 1, 2, 10]);
        let mut asked = 0;
        let once = || {
            asked += 1;
            asked < 1
        };
        assert_eq!(exec.poll_while(0, 100, once), 1, "out of time");
        assert_eq!(*log.borrow(), [0, 1, 2, 10, 11]);
        exec.poll(0, 100);
        assert_eq!(*log.borrow(), [0, 1, 2, 10, 11, 12]);
        assert_eq!(exec.poll(0, 100), 0);
    }

    #[test]
    fn sleepers_wake_when_their_time_has_come() {
        let (exec, woken) = (Executor::new(), Rc::new(Cell::new(0)));
        for us in [300, 100, 200] {
            let (e, woken) = (exec.clone(), woken.clone());
            exec.spawn(async move {
                e.sleep_us(us).await;
                woken.set(woken.get() * 1000 + us);
            });
        }
        exec.poll(0, 100);
        assert_eq!(exec.next_timer_us(), Some(100));
        exec.poll(250, 100);
        assert_eq!(woken.get(), 100_200);
        exec.poll(300, 100);
        assert_eq!(woken.get(), 100_200_300);
        assert_eq!(exec.next_timer_us(), None);
    }

    #[test]
    fn who_waits_again_and_again_leaves_no_wakers_behind() {
        let (exec, work) = (Executor::new(), Rc::new(Notify::default()));
        for _ in 0..3 {
            let (e, work) = (exec.clone(), work.clone());
            exec.spawn(async move {
                loop {
                    either(e.sleep_us(10), work.wait()).await;
                }
            });
        }
        for now_us in 0..20_000 {
            exec.poll(now_us, 100);
        }
        assert!(work.waiting.borrow().len() <= WAKERS_FEW);
    }

    #[test]
    fn a_lock_admits_one_at_a_time_and_once_hands_over() {
        let (exec, lock, inside) = (
            Executor::new(),
            Rc::new(Lock::default()),
            Rc::new(Cell::new(0)),
        );
        let (tx, rx) = once();
        let total = inside.clone();
        exec.spawn(async move { total.set(total.get() + rx.await) });
        for _ in 0..5 {
            let (lock, inside) = (lock.clone(), inside.clone());
            exec.spawn(async move {
                let _guard = lock.lock().await;
                assert_eq!(inside.replace(1), 0);
                yield_now().await;
                inside.set(0);
            });
        }
        exec.poll(0, 1000);
        assert_eq!(inside.get(), 0);
        tx.send(7);
        exec.poll(0, 1000);
        assert_eq!(inside.get(), 7);
    }
}
