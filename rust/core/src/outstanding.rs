//! The counts of one runtime: how many tasks it has that are not finished, who waits until none is,
//! and whether it takes more.
//!
//! A task is *accepted* before anybody can see it, and *ended* after everybody who is promised its end
//! has it: callbacks in progress count as a part of their task. Between the two it is unfinished.
//!
//! # Who waits for all
//!
//! From outside of all tasks one waits until none is unfinished. A task that waits for all others of
//! its runtime would wait for itself, and for those that wait for it: these *cannot end before* its
//! own wait does, and are left out. Whoever waits passes how many those are; how many there may be at
//! most, in all runtimes together, is in [`StandingStill`].
//!
//! # Why nobody sleeps for ever (and `tests/loom_outstanding.rs` tries every interleaving)
//!
//! Who waits enters itself, then looks at the counts; who ends a task counts, then takes out those who
//! may have waited for that. Whoever comes second sees the other. So does one who makes the number of
//! tasks that are left out rise: it counts them in [`StandingStill`], then wakes all who wait.
//! Those who are taken out too early look once more, and enter themselves again.
//!
//! # Why nobody wakes too early
//!
//! The number of unfinished tasks and the number of those that are left out cannot be read at one
//! moment. In between a task could submit another one and then begin to wait itself: it would be left
//! out, and its child not yet counted. So the same word also counts how often tasks were accepted; if it is
//! the same after the look as before, tasks have only ended meanwhile. Then the number of unfinished
//! tasks that was read first is at least as high as it was at any moment of the look, and if all of
//! these are left out, then all were left out at one moment.
//!
//! # Count first, then publish
//!
//! Whoever ends a task [counts](Outstanding::count) how, then lets its state be seen; so who sees the
//! state sees the count. Who waits for all returns after [`Outstanding::end`] of each, and so sees it,
//! too.

// Longer than most files here: more than half of it is the argument above and the tests.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crate::sched::parker::Unpark;
use crate::sched::sync::{AtomicBool, AtomicU64, AtomicUsize, Mutex, MutexGuard, in_total_order};

/// How a task ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With a value.
    Completed,
    /// With an error.
    Failed,
    /// Before it had either.
    Cancelled,
}

/// How many tasks have ended, each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// With a value.
    pub completed: u64,
    /// With an error.
    pub failed: u64,
    /// Before they had either.
    pub cancelled: u64,
}

impl Counts {
    /// All of them.
    pub fn ended(self) -> u64 {
        self.completed + self.failed + self.cancelled
    }
}

/// The lower bits of `Outstanding::tasks` count unfinished tasks: more than any memory holds. The
/// others count how often tasks were accepted, and begin again at 0 after 16 million times: nobody
/// can be overtaken that often within one look.
const UNFINISHED_BITS: u32 = 40;
const UNFINISHED: u64 = (1 << UNFINISHED_BITS) - 1;
const ONE_ACCEPTANCE: u64 = 1 << UNFINISHED_BITS;

/// The counts of one runtime.
///
/// ```
/// use dftracer_core::outstanding::{Ending, Outstanding, StandingStill};
///
/// static STANDING: StandingStill = StandingStill::new();
/// let outstanding = Outstanding::new();
/// assert!(outstanding.accept(2));
/// assert!(outstanding.close(), "it was open");
/// let mut sleepers = Vec::new();
/// outstanding.count(Ending::Completed, 2);
/// assert!(!outstanding.end(1, &STANDING, &mut sleepers));
/// assert!(outstanding.end(1, &STANDING, &mut sleepers), "no task is left");
/// assert_eq!(outstanding.counts().completed, 2);
/// ```
pub struct Outstanding {
    /// How many tasks are unfinished, and how often some were accepted. SeqCst: who waits enters
    /// itself, then looks here; who ends a task counts here, then looks who waits; who closes stores this,
    /// then looks here; who begins a task counts here, then looks whether it is closed.
    tasks: AtomicU64,
    /// False once no more tasks are taken. SeqCst: see `tasks`.
    open: AtomicBool,
    /// Workers that wait for all while they are about to end a task that nobody can name. SeqCst: who
    /// adds one does so, then has others look again.
    unnamed: AtomicUsize,
    /// Who waits for the end of all tasks.
    waiters: Mutex<Vec<Arc<dyn Unpark>>>,
    /// In the order of [`Ending`]. Relaxed: what makes an end visible orders them.
    ended: [AtomicU64; 3],
    /// Their sum when `has_progressed` last looked. Relaxed: nothing depends on it.
    ended_before: AtomicU64,
}

impl Default for Outstanding {
    fn default() -> Self {
        Self::new()
    }
}

impl Outstanding {
    /// Open, and without a task.
    pub fn new() -> Self {
        Self {
            tasks: AtomicU64::new(0),
            open: AtomicBool::new(true),
            unnamed: AtomicUsize::new(0),
            waiters: Mutex::new(Vec::new()),
            ended: [AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)],
            ended_before: AtomicU64::new(0),
        }
    }

    // --- tasks ----------------------------------------------------------------------------------

    /// Accepts so many tasks. False if no more are taken: then the caller takes them back, as each
    /// task that is accepted is taken back when it is finished, with [`end`](Self::end).
    #[inline]
    #[must_use = "if false, they are to be taken back"]
    pub fn accept(&self, count: usize) -> bool {
        self.tasks.fetch_add(ONE_ACCEPTANCE + count as u64, Ordering::SeqCst);
        in_total_order();
        self.open.load(Ordering::SeqCst)
    }

    /// Counts how tasks end, before anybody can see that they have.
    #[inline]
    pub fn count(&self, ending: Ending, tasks: usize) {
        self.ended[ending as usize].fetch_add(tasks as u64, Ordering::Relaxed);
    }

    /// Counts tasks as finished. Adds those to `sleepers` who are to be woken for that, soon. True if
    /// no task is left and none will come.
    #[inline]
    #[must_use = "if true, no task needs the runtime's threads any more"]
    pub fn end(
        &self,
        count: usize,
        standing: &StandingStill,
        sleepers: &mut Vec<Arc<dyn Unpark>>,
    ) -> bool {
        let before = self.tasks.fetch_sub(count as u64, Ordering::SeqCst);
        in_total_order();
        let left = (before & UNFINISHED) - count as u64;
        // Those who are left out are counted twice by nobody, but perhaps not at all: one who waits is
        // woken for nothing rather than not at all.
        if left <= (self.unnamed.load(Ordering::SeqCst) + standing.most_left_out()) as u64 {
            self.take_waiters(sleepers);
        }
        left == 0 && !self.open.load(Ordering::SeqCst)
    }

    /// How many tasks are accepted and not finished.
    pub fn unfinished(&self) -> u64 {
        self.tasks.load(Ordering::SeqCst) & UNFINISHED
    }

    // --- closing --------------------------------------------------------------------------------

    /// Whether tasks are taken, for all that is known.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    /// Takes no more tasks. True if it took some before.
    pub fn close(&self) -> bool {
        let was_open = self.open.swap(false, Ordering::SeqCst);
        in_total_order();
        was_open
    }

    /// Whether it is closed and no task is left. To be asked after [`close`](Self::close): either the
    /// answer is yes here, or that of [`end`](Self::end) of the last task.
    pub fn is_over(&self) -> bool {
        !self.is_open() && self.unfinished() == 0
    }

    // --- waiting --------------------------------------------------------------------------------

    /// Enters `waiter`, and answers whether all tasks are finished but those that are left out. If not,
    /// `waiter` is woken when that may have changed, and is to ask again, after a
    /// [`leave`](Self::leave).
    ///
    /// `left_out` gives how many unfinished tasks cannot end before this wait does, those of
    /// [`enter_unnamed`](Self::enter_unnamed) aside; `None` for a wait from outside of all tasks, for
    /// which none is left out. It may be asked more than once.
    pub fn enter(&self, waiter: Arc<dyn Unpark>, left_out: Option<impl Fn() -> usize>) -> bool {
        self.lock().push(waiter);
        in_total_order();
        loop {
            // SeqCst: after the waiter was entered, see above.
            let before = self.tasks.load(Ordering::SeqCst);
            let (unfinished, Some(left_out)) = (before & UNFINISHED, &left_out) else {
                return before & UNFINISHED == 0;
            };
            if unfinished == 0 {
                return true;
            }
            let left_out = self.unnamed.load(Ordering::SeqCst) + left_out();
            if unfinished > left_out as u64 {
                return false;
            }
            // SeqCst: sees what was accepted by those who were left out, before they began to wait.
            let after = self.tasks.load(Ordering::SeqCst);
            if before >> UNFINISHED_BITS == after >> UNFINISHED_BITS {
                return true;
            }
        }
    }

    /// Ends what [`enter`](Self::enter) has begun, whether the waiter was woken or not.
    pub fn leave(&self, waiter: &Arc<dyn Unpark>) {
        // By address of the data alone: the same object may have several vtables.
        let is_it =
            |other: &Arc<dyn Unpark>| std::ptr::addr_eq(Arc::as_ptr(other), Arc::as_ptr(waiter));
        self.lock().retain(|other| !is_it(other));
    }

    /// Wakes all who wait, to look at the counts again.
    pub fn wake_all(&self) {
        let waiters = std::mem::take(&mut *self.lock());
        for waiter in waiters {
            waiter.unpark();
        }
    }

    /// The calling worker waits for all while it is about to end a task that nobody can name; so
    /// others that wait in tasks leave one out for it, until [`leave_unnamed`](Self::leave_unnamed).
    pub fn enter_unnamed(&self) {
        self.unnamed.fetch_add(1, Ordering::SeqCst);
        in_total_order();
        // Others may have been waiting for just this task.
        self.wake_all();
    }

    /// The wait that [`enter_unnamed`](Self::enter_unnamed) has begun is over.
    pub fn leave_unnamed(&self) {
        self.unnamed.fetch_sub(1, Ordering::SeqCst);
    }

    #[cold]
    fn take_waiters(&self, sleepers: &mut Vec<Arc<dyn Unpark>>) {
        sleepers.append(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<dyn Unpark>>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // --- for those who only read ----------------------------------------------------------------

    /// How many tasks have ended, each way.
    pub fn counts(&self) -> Counts {
        let [completed, failed, cancelled] =
            [0, 1, 2].map(|index: usize| self.ended[index].load(Ordering::Relaxed));
        Counts { completed, failed, cancelled }
    }

    /// Whether a task has ended since the last call.
    pub fn has_progressed(&self) -> bool {
        let ended = self.counts().ended();
        self.ended_before.swap(ended, Ordering::Relaxed) != ended
    }
}

/// How many tasks stand still in all runtimes together, because they wait for others: so many, at
/// most, may be left out by those that wait for all.
pub struct StandingStill {
    /// How many tasks the waits of tasks name. SeqCst, as `for_all`: who ends a task counts it, then
    /// looks here; who waits counts itself here, then looks at the tasks.
    tasks: AtomicUsize,
    /// How many of these waits are for all tasks of a runtime.
    for_all: AtomicUsize,
}

impl StandingStill {
    /// Nobody.
    #[cfg(not(dft_loom))]
    #[expect(clippy::new_without_default, reason = "there is one for a process")]
    pub const fn new() -> Self {
        Self { tasks: AtomicUsize::new(0), for_all: AtomicUsize::new(0) }
    }

    /// Nobody.
    #[cfg(dft_loom)]
    #[expect(clippy::new_without_default, reason = "there is one for a process")]
    pub fn new() -> Self {
        Self { tasks: AtomicUsize::new(0), for_all: AtomicUsize::new(0) }
    }

    /// A wait begins, and so many tasks stand still meanwhile. True if somebody waits for all: then
    /// those who do are to [look again](Outstanding::wake_all), in every runtime, since what stands
    /// still here may hold up tasks of others.
    #[must_use = "if true, all who wait for all are to look again"]
    pub fn enter(&self, tasks: usize, is_for_all: bool) -> bool {
        self.tasks.fetch_add(tasks, Ordering::SeqCst);
        self.for_all.fetch_add(usize::from(is_for_all), Ordering::SeqCst);
        in_total_order();
        self.for_all.load(Ordering::SeqCst) > 0
    }

    /// The wait is over.
    pub fn leave(&self, tasks: usize, is_for_all: bool) {
        self.tasks.fetch_sub(tasks, Ordering::SeqCst);
        self.for_all.fetch_sub(usize::from(is_for_all), Ordering::SeqCst);
    }

    /// Nobody, in the child of a fork.
    pub fn clear(&self) {
        self.tasks.store(0, Ordering::SeqCst);
        self.for_all.store(0, Ordering::SeqCst);
    }

    /// How many tasks may be left out at most; 0 if nobody waits for all.
    #[inline]
    fn most_left_out(&self) -> usize {
        if self.for_all.load(Ordering::SeqCst) == 0 {
            return 0;
        }
        self.tasks.load(Ordering::SeqCst)
    }
}

#[cfg(all(test, not(dft_loom)))]
mod tests {
    use super::*;
    use crate::sched::parker::{Parker, Wakeup};
    use std::time::Duration;

    const NOBODY: Option<fn() -> usize> = None;

    /// What ends wake, and whether all is over.
    fn end(outstanding: &Outstanding, standing: &StandingStill, count: usize) -> (usize, bool) {
        let mut sleepers = Vec::new();
        let is_over = outstanding.end(count, standing, &mut sleepers);
        let woken = sleepers.len();
        sleepers.iter().for_each(|sleeper| sleeper.unpark());
        (woken, is_over)
    }

    #[test]
    fn a_waiter_is_woken_by_the_last_end_and_by_no_other() {
        let (outstanding, standing) = (Outstanding::new(), StandingStill::new());
        let parker = Arc::new(Parker::default());
        assert!(outstanding.enter(parker.clone(), NOBODY), "there is nothing to wait for");
        let waiter: Arc<dyn Unpark> = parker.clone();
        outstanding.leave(&waiter);
        assert!(outstanding.accept(3));
        assert!(!outstanding.enter(parker.clone(), NOBODY));
        assert_eq!(end(&outstanding, &standing, 2), (0, false));
        assert_eq!(parker.park(Some(Duration::ZERO)), Wakeup::TimedOut);
        assert_eq!(end(&outstanding, &standing, 1), (1, false));
        assert_eq!(parker.park(None), Wakeup::Notified);
        assert!(outstanding.enter(parker, NOBODY));
    }

    #[test]
    fn a_waiter_that_has_left_is_not_woken() {
        let (outstanding, standing) = (Outstanding::new(), StandingStill::new());
        let waiter: Arc<dyn Unpark> = Arc::new(Parker::default());
        assert!(outstanding.accept(1));
        assert!(!outstanding.enter(waiter.clone(), NOBODY));
        outstanding.leave(&waiter);
        assert_eq!(end(&outstanding, &standing, 1), (0, false));
    }

    #[test]
    fn a_task_leaves_out_itself_and_those_that_wait_for_it() {
        let (outstanding, standing) = (Outstanding::new(), StandingStill::new());
        assert!(outstanding.accept(3));
        let parker = Arc::new(Parker::default());
        assert!(standing.enter(1, true));
        assert!(!outstanding.enter(parker.clone(), Some(|| 1)));
        // One begins to wait for it: it looks again.
        assert!(standing.enter(1, false));
        outstanding.wake_all();
        assert_eq!(parker.park(None), Wakeup::Notified);
        assert!(!outstanding.enter(parker.clone(), Some(|| 2)));
        // And the last of the others ends.
        assert_eq!(end(&outstanding, &standing, 1), (1, false));
        assert!(outstanding.enter(parker, Some(|| 2)));
        standing.leave(1, true);
        standing.leave(1, false);
        assert_eq!(outstanding.unfinished(), 2);
    }

    #[test]
    fn a_task_that_was_accepted_during_the_look_is_waited_for() {
        let outstanding = Outstanding::new();
        assert!(outstanding.accept(2));
        let looks = std::cell::Cell::new(0);
        // The other one submits a child and then waits for all itself, in the middle of the look.
        let left_out = || {
            if looks.replace(looks.get() + 1) == 0 {
                assert!(outstanding.accept(1));
            }
            2
        };
        assert!(!outstanding.enter(Arc::new(Parker::default()), Some(left_out)));
        assert_eq!(looks.get(), 2);
    }

    #[test]
    fn an_unnamed_task_is_left_out_inside_and_waited_for_outside() {
        let outstanding = Outstanding::new();
        assert!(outstanding.accept(2));
        outstanding.enter_unnamed();
        assert!(outstanding.enter(Arc::new(Parker::default()), Some(|| 1)));
        assert!(!outstanding.enter(Arc::new(Parker::default()), NOBODY));
        outstanding.leave_unnamed();
        assert!(!outstanding.enter(Arc::new(Parker::default()), Some(|| 1)));
    }

    #[test]
    fn all_is_over_when_it_is_closed_and_the_last_task_has_ended() {
        let (outstanding, standing) = (Outstanding::new(), StandingStill::new());
        assert!(outstanding.accept(1));
        assert!(outstanding.close());
        assert!(!outstanding.close(), "it was closed before");
        assert!(!outstanding.is_over());
        assert!(!outstanding.accept(2), "no more are taken");
        assert_eq!(end(&outstanding, &standing, 2), (0, false));
        assert_eq!(end(&outstanding, &standing, 1), (0, true));
        assert!(outstanding.is_over());
    }

    #[test]
    fn counts_show_how_tasks_have_ended_and_whether_some_have() {
        let outstanding = Outstanding::new();
        assert!(!outstanding.has_progressed());
        outstanding.count(Ending::Completed, 3);
        outstanding.count(Ending::Failed, 2);
        outstanding.count(Ending::Cancelled, 1);
        assert_eq!(outstanding.counts(), Counts { completed: 3, failed: 2, cancelled: 1 });
        assert_eq!(outstanding.counts().ended(), 6);
        assert!(outstanding.has_progressed());
        assert!(!outstanding.has_progressed());
    }

    #[test]
    fn the_number_of_unfinished_tasks_stays_right_when_acceptances_begin_again_at_0() {
        let (outstanding, standing) = (Outstanding::new(), StandingStill::new());
        outstanding.tasks.store(!UNFINISHED, Ordering::Relaxed);
        assert_eq!(outstanding.unfinished(), 0);
        assert!(outstanding.accept(5));
        assert_eq!(outstanding.unfinished(), 5);
        assert_eq!(end(&outstanding, &standing, 5), (0, false));
        assert_eq!(outstanding.unfinished(), 0);
    }
}
