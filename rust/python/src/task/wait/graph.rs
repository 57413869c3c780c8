//! Who waits for whom.
//!
//! `wait_all` inside a task waits for all tasks but those that cannot end before it returns: the task
//! itself, those that wait for it, those that wait for these, and others that stand in `wait_all`
//! and so wait for it as well. Who waits enters itself here, together with all tasks that cannot go
//! on meanwhile; who stands in `wait_all` looks at the list when something may have changed.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;

use crate::owner::items::Items;
use crate::owner::{STANDING_STILL, Shared, wake_idle_waiters};
use crate::task::{TaskHandle, current};

/// The waits of this process. Locked by attached threads only, and never while Python code runs or
/// an object is dropped.
static WAITS: Mutex<Waits> = Mutex::new(Waits { next: 0, list: BTreeMap::new() });

struct Waits {
    next: u64,
    /// Held by the guards: the end of a wait that the garbage collector frees is its end here.
    list: BTreeMap<u64, Weak<Wait>>,
}

fn lock() -> MutexGuard<'static, Waits> {
    WAITS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A task that cannot go on.
struct Standing {
    task: Py<TaskHandle>,
    progress: Progress,
}

/// How far a task has come that cannot go on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// It has not ended.
    Runs,
    /// It has ended, and what it leaves is dropped or its callbacks are called: it counts until that
    /// is done.
    Ends {
        /// Whether those who wait for it are still to be woken.
        is_untold: bool,
    },
}

impl Standing {
    fn is_unfinished(&self) -> bool {
        self.progress != Progress::Runs || !self.task.get().is_settled()
    }
}

struct Wait {
    tasks: Vec<Standing>,
    target: Target,
    /// Nothing but the end of the target ends it, or that somebody asks one of its tasks to stop.
    is_certain: bool,
}

enum Target {
    /// The end of all tasks of the runtime at this address.
    All(usize),
    /// The next end among these.
    Next(Vec<Py<TaskHandle>>),
}

impl Target {
    fn is_all(&self) -> bool {
        matches!(self, Self::All(_))
    }
}

fn address(shared: &Shared) -> usize {
    std::ptr::from_ref(shared).addr()
}

/// What a thread is in the middle of, below the body that [`current::running_task`] knows.
enum Below {
    Body(Py<TaskHandle>),
    Item(Arc<dyn Items>, i64),
    Ending { task: Py<TaskHandle>, is_untold: bool },
}

thread_local! {
    static BELOW: RefCell<Vec<Below>> = const { RefCell::new(Vec::new()) };
}

/// Names something that this thread is in the middle of.
pub(crate) struct Within(());

impl Within {
    /// What is left to do for a task that has ended: to drop what it leaves, to call its callbacks.
    /// `is_untold` as long as some who wait for it are still to be woken.
    pub(crate) fn ending(task: Py<TaskHandle>, is_untold: bool) -> Self {
        Self::push(Below::Ending { task, is_untold })
    }

    /// A body that waits while another one is run on its stack, or that other one.
    pub(crate) fn body(task: Py<TaskHandle>) -> Self {
        Self::push(Below::Body(task))
    }

    /// As `body`, of an item of a batch.
    pub(crate) fn item(batch: Arc<dyn Items>, id: i64) -> Self {
        Self::push(Below::Item(batch, id))
    }

    fn push(below: Below) -> Self {
        BELOW.with_borrow_mut(|list| list.push(below));
        Self(())
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        // Dropped after the list is free again: that can run anything.
        let last = BELOW.with_borrow_mut(Vec::pop);
        drop(last);
    }
}

/// All tasks that cannot end before this thread goes on.
fn standing(py: Python<'_>) -> Vec<Standing> {
    let mut items = Vec::new();
    let mut tasks = BELOW.with_borrow(|list| {
        let named = |below: &Below| match below {
            Below::Body(task) => {
                Some(Standing { task: task.clone_ref(py), progress: Progress::Runs })
            }
            Below::Ending { task, is_untold } => {
                let progress = Progress::Ends { is_untold: *is_untold };
                Some(Standing { task: task.clone_ref(py), progress })
            }
            Below::Item(batch, id) => {
                items.push((batch.clone(), *id));
                None
            }
        };
        list.iter().filter_map(named).collect::<Vec<_>>()
    });
    let innermost = current::running_task(py).or_else(|| current::coroutine_task(py));
    let items =
        items.into_iter().filter_map(|(batch, id)| TaskHandle::of(py, batch.handle_of(py, id)?));
    let bodies = items.chain(innermost).map(|task| Standing { task, progress: Progress::Runs });
    tasks.extend(bodies);
    tasks
}

/// That this thread, or the coroutine that holds it, waits for tasks.
pub(crate) struct Waiting {
    /// Its place in the list; `None` if no task waits here.
    entered: Option<(u64, Arc<Wait>)>,
}

impl Waiting {
    /// For the next that ends of these.
    pub(crate) fn for_next(py: Python<'_>, targets: impl FnOnce() -> Vec<Py<TaskHandle>>) -> Self {
        Self::enter_for_next(py, targets, false)
    }

    /// For the end of this one; `is_certain` if nothing else ends the wait.
    pub(crate) fn for_one(py: Python<'_>, target: &Py<TaskHandle>, is_certain: bool) -> Self {
        Self::enter_for_next(py, || vec![target.clone_ref(py)], is_certain)
    }

    fn enter_for_next(
        py: Python<'_>,
        targets: impl FnOnce() -> Vec<Py<TaskHandle>>,
        is_certain: bool,
    ) -> Self {
        let tasks = standing(py);
        match tasks.is_empty() {
            true => Self { entered: None },
            false => Self::enter(Wait { tasks, target: Target::Next(targets()), is_certain }),
        }
    }

    /// For all tasks of `shared`.
    pub(crate) fn for_all(py: Python<'_>, shared: &Shared) -> Self {
        let tasks = standing(py);
        match tasks.is_empty() {
            true => Self { entered: None },
            false => {
                Self::enter(Wait { tasks, target: Target::All(address(shared)), is_certain: false })
            }
        }
    }

    fn enter(wait: Wait) -> Self {
        let wait = Arc::new(wait);
        let mut waits = lock();
        let number = waits.next;
        waits.next += 1;
        waits.list.insert(number, Arc::downgrade(&wait));
        let is_waited_for = STANDING_STILL.enter(wait.tasks.len(), wait.target.is_all());
        drop(waits);
        // Others may have been waiting for just these tasks, or for those that wait for these, which
        // can be of another runtime.
        if is_waited_for {
            wake_idle_waiters();
        }
        Self { entered: Some((number, wait)) }
    }

    /// Whether a task waits here.
    pub(crate) fn is_inside(&self) -> bool {
        self.entered.is_some()
    }

    /// Whether the one that is waited for here waits for a task that stands here, itself or through
    /// others, so that none of them can ever go on.
    pub(crate) fn is_circle(&self) -> bool {
        let Some((_, own)) = &self.entered else { return false };
        // Not looked at under the lock: the last reference to one may be dropped here.
        let others: Vec<_> = lock().list.values().filter_map(Weak::upgrade).collect();
        let waits_of: HashMap<_, _> = others
            .iter()
            .filter(|wait| wait.is_certain)
            .flat_map(|wait| wait.tasks.iter().map(move |s| (s.task.as_ptr(), wait)))
            .collect();
        let mut wait = own;
        for _ in 0..=others.len() {
            let Target::Next(targets) = &wait.target else { return false };
            let [target] = targets.as_slice() else { return false };
            if target.get().is_settled() {
                return false;
            }
            if own.tasks.iter().any(|standing| standing.task.is(target)) {
                return true;
            }
            let Some(next) = waits_of.get(&target.as_ptr()) else { return false };
            wait = next;
        }
        false
    }

    /// How many unfinished tasks of `shared` cannot end before this wait is over.
    pub(crate) fn held_up(&self, shared: &Shared) -> usize {
        let Some((_, own)) = &self.entered else { return 0 };
        // Not looked at under the lock: the last reference to one may be dropped here.
        let mut others: Vec<_> = lock().list.values().filter_map(Weak::upgrade).collect();
        let mut held = HeldUp::default();
        held.add(own);
        loop {
            let before = others.len();
            others.retain(|wait| {
                let is_held_up = held.holds_up(wait);
                if is_held_up {
                    held.add(wait);
                }
                !is_held_up
            });
            if others.len() == before {
                return held.tasks.iter().filter(|(_, owner)| *owner == address(shared)).count();
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some((number, wait)) = self.entered.take() else { return };
        // After a fork the list is a new one.
        if lock().list.remove(&number).is_some() {
            STANDING_STILL.leave(wait.tasks.len(), wait.target.is_all());
        }
    }
}

/// Unfinished tasks that cannot go on: their addresses, and those of their runtimes.
#[derive(Default)]
struct HeldUp {
    tasks: HashSet<(usize, usize)>,
    /// Those among them that have ended, and have not woken who waits for them.
    untold: HashSet<(usize, usize)>,
}

impl HeldUp {
    fn add(&mut self, wait: &Wait) {
        for standing in wait.tasks.iter().filter(|standing| standing.is_unfinished()) {
            let key = Self::key(&standing.task);
            self.tasks.insert(key);
            if standing.progress == (Progress::Ends { is_untold: true }) {
                self.untold.insert(key);
            }
        }
    }

    fn key(task: &Py<TaskHandle>) -> (usize, usize) {
        (task.as_ptr().addr(), task.get().shared().map_or(0, |shared| address(shared)))
    }

    /// Whether the wait cannot end before one of these tasks does.
    fn holds_up(&self, wait: &Wait) -> bool {
        match &wait.target {
            Target::All(owner) => self.tasks.iter().any(|(_, other)| other == owner),
            Target::Next(targets) => {
                let is_to_come = |task: &&Py<TaskHandle>| {
                    !task.get().is_settled() || self.untold.contains(&Self::key(task))
                };
                let mut left = targets.iter().filter(is_to_come).peekable();
                left.peek().is_some() && left.all(|task| self.tasks.contains(&Self::key(task)))
            }
        }
    }
}

/// In the child of a `fork()`: nobody waits here but the thread that forked, which does not now.
pub(crate) fn forked() {
    let copied = std::mem::take(&mut lock().list);
    std::mem::forget(copied);
    STANDING_STILL.clear();
}

/// The same for Python code that waits in its own way, as a context manager: for the next end among
/// `handles`.
#[pyclass(frozen, name = "Waiting", module = "dftracer.utils._native")]
pub(crate) struct PyWaiting {
    handles: Mutex<Vec<Py<TaskHandle>>>,
    entered: Mutex<Option<Waiting>>,
}

fn take<T: Default>(mutex: &Mutex<T>) -> T {
    std::mem::take(&mut *mutex.lock().unwrap_or_else(PoisonError::into_inner))
}

#[pymethods]
impl PyWaiting {
    #[new]
    fn new(handles: Vec<Py<TaskHandle>>) -> Self {
        Self { handles: Mutex::new(handles), entered: Mutex::default() }
    }

    fn __enter__(&self, py: Python<'_>) {
        let waiting = Waiting::for_next(py, || {
            let handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
            handles.iter().map(|handle| handle.clone_ref(py)).collect()
        });
        *self.entered.lock().unwrap_or_else(PoisonError::into_inner) = Some(waiting);
    }

    fn __exit__(
        &self,
        _exc_type: Option<Py<PyAny>>,
        _exc: Option<Py<PyAny>>,
        _traceback: Option<Py<PyAny>>,
    ) {
        let waiting = take(&self.entered);
        drop(waiting);
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Locked by attached threads only, for as long as nothing is run.
        if let Ok(handles) = self.handles.try_lock() {
            for handle in handles.iter() {
                visit.call(handle)?;
            }
        }
        if let Ok(entered) = self.entered.try_lock()
            && let Some(Waiting { entered: Some((_, wait)) }) = &*entered
            // Another one looks at it just now, and holds it for that time.
            && Arc::strong_count(wait) == 1
        {
            for standing in &wait.tasks {
                visit.call(&standing.task)?;
            }
            if let Target::Next(targets) = &wait.target {
                for handle in targets {
                    visit.call(handle)?;
                }
            }
        }
        Ok(())
    }

    fn __clear__(&self) {
        let (handles, waiting) = (take(&self.handles), take(&self.entered));
        drop((handles, waiting));
    }
}
