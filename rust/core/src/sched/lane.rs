//! Who runs next: one queue, many workers, and as few wake-ups as will do.
//!
//! A lane decides and never acts: it spawns no thread and runs no job. Its owner starts a worker
//! when [`push`](Lane::push), [`pop`](Lane::pop) or [`enter_blocked`](Lane::enter_blocked) answers
//! [`Order::StartWorker`], and every worker does
//!
//! ```text
//! lane.awake()
//! loop:
//!     pop  → a job: run it
//!          → nothing: sleep → Sleep: park, then lane.awake()
//!                           → Retry: loop
//!                           → Exit:  leave
//! ```
//!
//! The system may refuse a thread. Whoever needs it then learns whether any worker is left; the next
//! push asks for a thread again, so that a lane is smaller only while the system refuses.
//!
//! # Wake-ups
//!
//! At most one woken (or new) worker is on its way at a time: `waking`. It clears the flag before
//! it looks at the queue, and if it pops a job and still sees more, it wakes the next worker.
//! So a burst of jobs starts as many workers as can run, each woken by the one before it, and the
//! submitter pays for one wake-up, not for all.
//!
//! # Why no wake-up is lost (and `tests/loom_lane.rs` tries every interleaving)
//!
//! A pusher adds the job, then (after a full fence) looks for someone to wake. A worker announces
//! that it sleeps, then (after a full fence) looks at the queue. Whoever comes second sees the
//! other. If `waking` is set, the worker on its way clears it before its look, so it sees the job;
//! if it does not come, because it died or got no thread, whoever notices that looks in its place.
//! If nobody sleeps and none may start, every worker is running and looks again before it sleeps.
//! A worker that leaves an empty lane first says so, then (after a full fence) looks once more.

// Longer than most files here: nearly half of it is tests, which drive the lane with real threads.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crate::sched::jobs::Jobs;
use crate::sched::parker::Unpark;
use crate::sched::sync::{AtomicBool, AtomicIsize, Mutex, MutexGuard, fence};

/// How many more workers than its limit a lane starts while others are blocked in a wait.
pub const MAX_SPARE_WORKERS: usize = 512;

/// After the system has refused a thread, how often a worker that sees more jobs than its own goes
/// without help before it asks for a thread again.
const POPS_BETWEEN_TRIES: u32 = 64;

/// What the owner of a lane must do after a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Order {
    /// Nothing.
    Nothing,
    /// Start one more worker. It counts as running already; if the thread cannot be started, call
    /// [`Lane::worker_failed_to_start`].
    StartWorker,
}

/// What a worker without a job does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Park until woken, then call [`Lane::awake`].
    Sleep,
    /// A job arrived meanwhile, or the lane was closed: pop again.
    Retry,
    /// Leave for ever: the lane is closed and empty, or has a worker too many.
    Exit,
}

/// More workers are blocked than spares may be started: waiting here could wait for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyBlocked;

/// Jobs that wait and the roster of the workers that serve them.
///
/// ```
/// use dftracer_core::sched::lane::{Lane, Order};
///
/// let lane = Lane::new(2);
/// assert_eq!(lane.push("a job"), Order::StartWorker);
/// assert_eq!(lane.push("another"), Order::Nothing, "a worker is on its way");
/// // On the thread that was started for it:
/// lane.awake();
/// assert_eq!(lane.pop(), (Some("a job"), Order::StartWorker), "there is more to do");
/// ```
pub struct Lane<J> {
    jobs: Jobs<J>,
    /// A worker was woken or is being started, and has not looked at the queue yet.
    waking: AtomicBool,
    /// `roster.sleepers.len()` plus the workers that may still be started. Written only under the
    /// lock of `roster`; read without it, so that a push to a busy lane takes no lock.
    available: AtomicIsize,
    roster: Mutex<Roster>,
}

struct Roster {
    sleepers: Vec<Arc<dyn Unpark>>,
    /// Workers that are alive: running, blocked, asleep or being started.
    alive: usize,
    /// Workers that wait for another task, each of which entitles the lane to a spare worker.
    blocked: usize,
    limit: usize,
    open: bool,
    /// How many more pops ask for no thread, because the system has refused one.
    start_backoff: u32,
}

/// Who needs a worker to look at the queue.
#[derive(Clone, Copy)]
enum Asker {
    /// One whose jobs may wait for ever if nobody comes: it always tries to start one.
    Pusher,
    /// One that will take the jobs itself.
    Worker,
    /// One that has just been refused a thread.
    Refused,
}

impl Asker {
    fn may_start(self, roster: &mut Roster) -> bool {
        match self {
            Self::Pusher => true,
            Self::Worker if roster.start_backoff == 0 => true,
            Self::Worker => {
                roster.start_backoff -= 1;
                false
            }
            Self::Refused => false,
        }
    }
}

impl Roster {
    /// Workers that come to the queue by themselves or can be woken.
    fn free(&self) -> usize {
        self.alive.saturating_sub(self.blocked)
    }

    fn may_start(&self) -> usize {
        (self.limit + self.blocked.min(MAX_SPARE_WORKERS)).saturating_sub(self.alive)
    }
}

impl<J> Lane<J> {
    /// An open lane that will start at most `limit` workers, spares aside.
    pub fn new(limit: usize) -> Self {
        assert!(limit > 0, "a lane needs at least one worker");
        let sleepers = Vec::new();
        let roster = Roster { sleepers, alive: 0, blocked: 0, limit, open: true, start_backoff: 0 };
        Self {
            jobs: Jobs::new(),
            waking: AtomicBool::new(false),
            available: AtomicIsize::new(limit as isize),
            roster: Mutex::new(roster),
        }
    }

    /// Adds a job. Jobs are taken in the order of their pushes, but for those that are pushed ahead.
    pub fn push(&self, job: J) -> Order {
        let (sleeper, order) = self.push_all([job]);
        if let Some(sleeper) = sleeper {
            sleeper.unpark();
        }
        order
    }

    /// Adds jobs and leaves it to the caller to wake the sleeper, soon: until then nobody else is
    /// woken. A caller that holds what the sleeper will need can release it first.
    #[must_use = "the sleeper must be woken"]
    pub fn push_all(&self, jobs: impl IntoIterator<Item = J>) -> (Option<Arc<dyn Unpark>>, Order) {
        for job in jobs {
            self.jobs.push(job);
        }
        self.choose_worker_for_pushed()
    }

    /// As [`push_all`](Self::push_all), ahead of all that waits: the last batch is taken first. Only
    /// if that is of the same `tick` are these jobs taken after it.
    ///
    /// As long as such batches come faster than they are taken, what was pushed behind waits.
    #[must_use = "the sleeper must be woken"]
    pub fn push_all_ahead(
        &self,
        tick: u64,
        jobs: impl IntoIterator<Item = J>,
    ) -> (Option<Arc<dyn Unpark>>, Order) {
        self.jobs.push_ahead(tick, jobs);
        self.choose_worker_for_pushed()
    }

    /// Takes the job that is next, if there is one, and wakes the next worker if there are more.
    pub fn pop(&self) -> (Option<J>, Order) {
        match self.jobs.pop() {
            Some(job) if self.jobs.is_empty() => (Some(job), Order::Nothing),
            Some(job) => (Some(job), self.call_worker(Asker::Worker)),
            None => (None, Order::Nothing),
        }
    }

    /// A worker that was started or woken is about to look at the queue.
    pub fn awake(&self) {
        // SeqCst: a pusher that still saw `true` pushed before this store, so we see its job.
        self.waking.store(false, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// A worker that found nothing asks what to do. `wakeup` is called when there is work again.
    /// `may_exit` is false for a worker that still has something of its own to finish, such as bodies
    /// that are suspended.
    pub fn sleep(&self, wakeup: &Arc<dyn Unpark>, may_exit: bool) -> Rest {
        let mut roster = self.lock();
        if may_exit && roster.free() > roster.limit {
            // One too many. Others that are free are left, and they look before they sleep.
            roster.alive -= 1;
            self.publish(&roster);
            return Rest::Exit;
        }
        let leaves = may_exit && !roster.open;
        if leaves {
            roster.alive -= 1;
        } else {
            roster.sleepers.push(wakeup.clone());
        }
        self.publish(&roster);
        // Pairs with the fence in `push`: either the pusher sees what was published, or we its job.
        fence(Ordering::SeqCst);
        if self.jobs.is_empty() {
            return if leaves { Rest::Exit } else { Rest::Sleep };
        }
        // The lock was held all along, so nobody has woken us: we are still the last sleeper.
        if leaves {
            roster.alive += 1;
        } else {
            roster.sleepers.pop();
        }
        self.publish(&roster);
        Rest::Retry
    }

    /// A worker that [`sleep`](Self::sleep) has registered runs again, though nobody has woken it
    /// for a job: it is registered no more. True if it was chosen to take a job just now; then it
    /// must look at the queue, after [`awake`](Self::awake).
    pub fn cancel_sleep(&self, wakeup: &Arc<dyn Unpark>) -> bool {
        let mut roster = self.lock();
        let before = roster.sleepers.len();
        // By address of the data alone: the same object may have several vtables.
        roster.sleepers.retain(|s| !std::ptr::addr_eq(Arc::as_ptr(s), Arc::as_ptr(wakeup)));
        self.publish(&roster);
        roster.sleepers.len() == before
    }

    /// As [`cancel_sleep`](Self::cancel_sleep), for a worker that has something else to do first: if
    /// it was chosen, another one is chosen in its place.
    pub fn cancel_sleep_and_pass_on(&self, wakeup: &Arc<dyn Unpark>) -> Order {
        if !self.cancel_sleep(wakeup) {
            return Order::Nothing;
        }
        self.awake();
        if self.jobs.is_empty() { Order::Nothing } else { self.call_worker(Asker::Worker) }
    }

    /// The calling worker is about to wait for another task: the lane may start a spare for it.
    pub fn enter_blocked(&self) -> Result<Order, TooManyBlocked> {
        let mut roster = self.lock();
        if roster.blocked >= MAX_SPARE_WORKERS {
            return Err(TooManyBlocked);
        }
        roster.blocked += 1;
        self.publish(&roster);
        drop(roster);
        // Pairs with the fence in `push`: the pusher may have found nobody to wake or start.
        fence(Ordering::SeqCst);
        Ok(match self.jobs.is_empty() {
            true => Order::Nothing,
            false => self.call_worker(Asker::Pusher),
        })
    }

    /// The wait announced by [`enter_blocked`](Self::enter_blocked) is over.
    pub fn leave_blocked(&self) {
        let mut roster = self.lock();
        roster.blocked -= 1;
        self.publish(&roster);
    }

    /// The thread asked for by [`Order::StartWorker`] could not be started. True if the lane has a
    /// worker that does not wait for another task, so that its jobs will be run, only later.
    pub fn worker_failed_to_start(&self) -> bool {
        let mut roster = self.lock();
        roster.alive -= 1;
        roster.start_backoff = POPS_BETWEEN_TRIES;
        self.publish(&roster);
        let is_served = roster.free() > 0;
        drop(roster);
        self.awake();
        // Jobs that came meanwhile were left to the worker that does not come.
        if !self.jobs.is_empty()
            && let (Some(sleeper), _) = self.choose_worker(Asker::Refused)
        {
            sleeper.unpark();
        }
        is_served
    }

    /// A worker has ended though the lane has not asked it to, for example by a panic.
    pub fn worker_died(&self) -> Order {
        let mut roster = self.lock();
        roster.alive -= 1;
        // It may be among those that sleep. Those that are alive find no job and sleep again.
        let sleepers = std::mem::take(&mut roster.sleepers);
        self.publish(&roster);
        drop(roster);
        self.awake();
        for sleeper in sleepers {
            sleeper.unpark();
        }
        match self.jobs.is_empty() {
            true => Order::Nothing,
            false => self.call_worker(Asker::Pusher),
        }
    }

    /// No more workers stay than there are jobs: each leaves once the queue is empty.
    pub fn close(&self) {
        let sleepers = {
            let mut roster = self.lock();
            roster.open = false;
            let sleepers = std::mem::take(&mut roster.sleepers);
            self.publish(&roster);
            sleepers
        };
        for sleeper in sleepers {
            sleeper.unpark();
        }
    }

    /// Whether [`close`](Self::close) was called.
    pub fn is_closed(&self) -> bool {
        !self.lock().open
    }

    /// Workers that are alive: running, blocked, asleep or being started.
    pub fn workers(&self) -> usize {
        self.lock().alive
    }

    /// The number of jobs that wait.
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Whether no job waits.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Wakes or starts one worker, unless one is on its way or none is to be had.
    fn call_worker(&self, asker: Asker) -> Order {
        let (sleeper, order) = self.choose_worker(asker);
        if let Some(sleeper) = sleeper {
            sleeper.unpark();
        }
        order
    }

    /// Chooses who is to look at jobs that were pushed just now.
    fn choose_worker_for_pushed(&self) -> (Option<Arc<dyn Unpark>>, Order) {
        // Pairs with the fence in `sleep`: either we see the sleeper or it sees the job.
        fence(Ordering::SeqCst);
        self.choose_worker(Asker::Pusher)
    }

    /// Chooses the worker that is to look at the queue next: a sleeper, or a new one.
    fn choose_worker(&self, asker: Asker) -> (Option<Arc<dyn Unpark>>, Order) {
        let nobody = (None, Order::Nothing);
        if self.waking.load(Ordering::SeqCst) || self.available.load(Ordering::SeqCst) <= 0 {
            return nobody;
        }
        let mut roster = self.lock();
        if self.waking.load(Ordering::SeqCst) {
            return nobody;
        }
        if let Some(sleeper) = roster.sleepers.pop() {
            self.waking.store(true, Ordering::SeqCst);
            self.publish(&roster);
            (Some(sleeper), Order::Nothing)
        } else if roster.may_start() > 0 && asker.may_start(&mut roster) {
            self.waking.store(true, Ordering::SeqCst);
            roster.alive += 1;
            roster.start_backoff = 0;
            self.publish(&roster);
            (None, Order::StartWorker)
        } else {
            nobody
        }
    }

    fn publish(&self, roster: &Roster) {
        let available = roster.sleepers.len() + roster.may_start();
        self.available.store(available as isize, Ordering::SeqCst);
    }

    fn lock(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, not(dft_loom)))]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::{Barrier, Mutex};
    use std::time::Duration;

    use super::*;
    use crate::sched::parker::Parker;

    type Job = Box<dyn FnOnce() + Send>;

    /// A lane with real threads, as the runtime drives it.
    struct Pool {
        lane: Arc<Lane<Job>>,
        threads: Arc<Mutex<Vec<std::thread::JoinHandle<()>>>>,
    }

    impl Pool {
        fn new(limit: usize) -> Self {
            Self { lane: Arc::new(Lane::new(limit)), threads: Arc::default() }
        }

        fn submit(&self, job: impl FnOnce() + Send + 'static) {
            let order = self.lane.push(Box::new(job));
            obey(&self.lane, &self.threads, order);
        }

        fn join(self) {
            self.lane.close();
            loop {
                let next = self.threads.lock().expect("threads").pop();
                match next {
                    Some(thread) => thread.join().expect("worker"),
                    None => return,
                }
            }
        }
    }

    fn obey(
        lane: &Arc<Lane<Job>>,
        threads: &Arc<Mutex<Vec<std::thread::JoinHandle<()>>>>,
        order: Order,
    ) {
        if order == Order::Nothing {
            return;
        }
        let (lane, list) = (lane.clone(), threads.clone());
        let thread = std::thread::spawn(move || {
            let parker = Arc::new(Parker::default());
            let wakeup: Arc<dyn Unpark> = parker.clone();
            lane.awake();
            loop {
                let (job, order) = lane.pop();
                obey(&lane, &list, order);
                match job {
                    Some(job) => job(),
                    None => match lane.sleep(&wakeup, true) {
                        Rest::Sleep => {
                            parker.park_until_notified();
                            lane.awake();
                        }
                        Rest::Retry => {}
                        Rest::Exit => return,
                    },
                }
            }
        });
        threads.lock().expect("threads").push(thread);
    }

    #[test]
    fn every_job_runs_once_when_many_threads_push() {
        const EACH: usize = 3_000;
        let pool = Pool::new(3);
        let ran = Arc::new(Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for pusher in 0..4 {
                let (pool, ran) = (&pool, &ran);
                scope.spawn(move || {
                    for i in 0..EACH {
                        let ran = ran.clone();
                        pool.submit(move || ran.lock().expect("ran").push(pusher * EACH + i));
                    }
                });
            }
        });
        pool.join();
        let mut ran = std::mem::take(&mut *ran.lock().expect("ran"));
        ran.sort_unstable();
        assert!(ran.into_iter().eq(0..4 * EACH));
    }

    #[test]
    fn no_wakeup_is_lost_when_jobs_trickle() {
        let pool = Pool::new(2);
        let done = Arc::new(Parker::default());
        for round in 0..3_000 {
            let done_there = done.clone();
            pool.submit(move || done_there.unpark());
            assert!(done.park_for(Duration::from_secs(30)), "round {round} was never run");
        }
        pool.join();
    }

    #[test]
    fn blocking_jobs_run_side_by_side_up_to_the_limit() {
        // Each job waits for all the others: only possible if all four workers are started.
        let pool = Pool::new(4);
        let barrier = Arc::new(Barrier::new(5));
        for _ in 0..4 {
            let barrier = barrier.clone();
            pool.submit(move || {
                barrier.wait();
            });
        }
        barrier.wait();
        pool.join();
    }

    #[test]
    fn a_blocked_worker_is_replaced_and_the_spare_leaves() {
        let pool = Pool::new(1);
        let (lane, threads) = (pool.lane.clone(), pool.threads.clone());
        let done = Arc::new(Parker::default());
        let outer_done = done.clone();
        pool.submit(move || {
            let inner = Arc::new(Parker::default());
            let inner_there = inner.clone();
            let order = lane.push(Box::new(move || inner_there.unpark()));
            obey(&lane, &threads, order);
            let order = lane.enter_blocked().expect("spares left");
            obey(&lane, &threads, order);
            assert!(inner.park_for(Duration::from_secs(30)), "no spare came");
            lane.leave_blocked();
            outer_done.unpark();
        });
        assert!(done.park_for(Duration::from_secs(30)));
        let lane = pool.lane.clone();
        pool.join();
        assert_eq!(lane.workers(), 0);
    }

    #[test]
    fn jobs_queued_at_close_are_still_run() {
        let pool = Pool::new(1);
        let count = Arc::new(AtomicUsize::new(0));
        for _ in 0..500 {
            let count = count.clone();
            pool.submit(move || {
                count.fetch_add(1, Ordering::Relaxed);
            });
        }
        pool.join();
        assert_eq!(count.load(Ordering::Relaxed), 500);
    }

    #[test]
    fn a_worker_that_cannot_start_is_asked_for_again_by_the_next_push() {
        let lane: Lane<u32> = Lane::new(2);
        assert_eq!(lane.push(1), Order::StartWorker);
        assert!(!lane.worker_failed_to_start(), "no worker is left to run the job");
        assert_eq!(lane.push(2), Order::StartWorker);
        lane.awake();
        assert_eq!(lane.pop(), (Some(1), Order::StartWorker));
        assert!(lane.worker_failed_to_start(), "the first worker takes the second job");
        assert_eq!(lane.pop(), (Some(2), Order::Nothing));
    }

    #[test]
    fn jobs_that_are_pushed_ahead_are_taken_first_and_wake_workers() {
        let lane: Lane<u32> = Lane::new(2);
        assert_eq!(lane.push(1), Order::StartWorker);
        lane.awake();
        let (sleeper, order) = lane.push_all_ahead(1, [2, 3]);
        assert!(sleeper.is_none());
        assert_eq!(order, Order::StartWorker);
        lane.awake();
        assert_eq!(lane.len(), 3);
        assert_eq!(lane.pop(), (Some(2), Order::Nothing));
        assert_eq!(lane.pop(), (Some(3), Order::Nothing));
        let wakeup: Arc<dyn Unpark> = Arc::new(Parker::default());
        assert_eq!(lane.pop(), (Some(1), Order::Nothing));
        assert_eq!(lane.sleep(&wakeup, false), Rest::Sleep);
        let (sleeper, order) = lane.push_all_ahead(2, [4]);
        assert!(sleeper.is_some());
        assert_eq!(order, Order::Nothing);
        assert_eq!(lane.sleep(&wakeup, false), Rest::Retry);
        assert_eq!(lane.pop(), (Some(4), Order::Nothing));
    }

    #[test]
    fn nobody_comes_when_a_thread_is_refused_and_all_workers_wait() {
        let lane: Lane<u32> = Lane::new(1);
        assert_eq!(lane.push(1), Order::StartWorker);
        lane.awake();
        let _ = lane.pop();
        assert_eq!(lane.push(2), Order::Nothing);
        assert_eq!(lane.enter_blocked(), Ok(Order::StartWorker));
        assert!(!lane.worker_failed_to_start(), "the only worker waits for the job");
        lane.leave_blocked();
        assert_eq!(lane.pop(), (Some(2), Order::Nothing));
    }

    #[test]
    fn a_lane_has_its_full_size_again_when_the_system_has_refused_threads_for_a_time() {
        let lane: Lane<u32> = Lane::new(3);
        assert_eq!(lane.push(1), Order::StartWorker);
        lane.awake();
        assert_eq!(lane.pop(), (Some(1), Order::Nothing));
        for job in 0..100 {
            assert_eq!(lane.push(job), Order::StartWorker);
            assert!(lane.worker_failed_to_start());
        }
        for pushed in 2..=3 {
            assert_eq!(lane.push(0), Order::StartWorker);
            lane.awake();
            assert_eq!(lane.workers(), pushed);
        }
        assert_eq!(lane.push(0), Order::Nothing);
    }

    #[test]
    fn a_worker_asks_for_help_now_and_then_when_a_thread_was_refused() {
        let lane: Lane<u32> = Lane::new(2);
        assert_eq!(lane.push(0), Order::StartWorker);
        lane.awake();
        for job in 0..200 {
            if lane.push(job) == Order::StartWorker {
                assert!(lane.worker_failed_to_start());
            }
        }
        let asked = (0..200).filter(|_| lane.pop().1 == Order::StartWorker).count();
        assert_eq!(asked, 1, "and that worker is on its way");
    }

    #[test]
    fn another_worker_is_started_when_one_dies_while_it_is_registered_to_sleep() {
        let lane: Lane<u32> = Lane::new(1);
        assert_eq!(lane.push(1), Order::StartWorker);
        lane.awake();
        let _ = lane.pop();
        let wakeup: Arc<dyn Unpark> = Arc::new(Parker::default());
        assert_eq!(lane.sleep(&wakeup, false), Rest::Sleep);
        assert_eq!(lane.worker_died(), Order::Nothing);
        assert_eq!(lane.workers(), 0);
        assert_eq!(lane.push(2), Order::StartWorker);
    }

    #[test]
    fn a_waiter_is_refused_when_no_spare_may_be_started() {
        let lane: Lane<u32> = Lane::new(1);
        for _ in 0..MAX_SPARE_WORKERS {
            assert_eq!(lane.enter_blocked(), Ok(Order::Nothing));
        }
        assert_eq!(lane.enter_blocked(), Err(TooManyBlocked));
        lane.leave_blocked();
        assert_eq!(lane.enter_blocked(), Ok(Order::Nothing));
    }
}
