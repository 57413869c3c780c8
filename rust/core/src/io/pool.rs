//! Threads for what may block, which nobody can interrupt: starting a program, copying a file.
//!
//! So many jobs run at a time as the pool has places. A job that is found to take long, for example
//! because its file system does not answer, can be [replaced](Pool::replace): it keeps its thread
//! and gives its place to others. A thread that the system refuses is an error only if the pool has
//! no other that will take the job.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many threads jobs that were replaced may keep.
const MAX_REPLACED: usize = 512;

/// How long a thread waits for another job before it leaves.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// Names a job of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct JobId(u64);

/// A pool of threads, started one by one when there are jobs. Dropped, it runs what it was given.
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    name: &'static str,
    limit: usize,
    state: Mutex<State>,
    /// Signalled for each job, and when the pool closes.
    changed: Condvar,
}

struct State {
    queue: VecDeque<(JobId, Job)>,
    next: u64,
    threads: usize,
    started: usize,
    /// Threads that wait for a job.
    idle: usize,
    running: HashMap<JobId, Running>,
    replaced: usize,
    open: bool,
}

/// A job that runs.
struct Running {
    since: Instant,
    is_replaced: bool,
}

impl Pool {
    /// A pool whose threads are named after it. None is started yet.
    pub fn new(name: &'static str, limit: usize) -> Self {
        let state = State {
            queue: VecDeque::new(),
            next: 0,
            threads: 0,
            started: 0,
            idle: 0,
            running: HashMap::new(),
            replaced: 0,
            open: true,
        };
        let shared = Shared { name, limit, state: Mutex::new(state), changed: Condvar::new() };
        Self { shared: Arc::new(shared) }
    }

    /// Has a job run, which must not panic; an error if no thread can be had that would run it.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) -> io::Result<JobId> {
        let mut state = self.shared.lock();
        let id = JobId(state.next);
        state.next += 1;
        state.queue.push_back((id, Box::new(job)));
        match self.shared.call_thread(&mut state) {
            // Those that were replaced may never come back.
            Err(error) if state.threads <= state.replaced => {
                let job = state.queue.pop_back();
                drop(state);
                drop(job);
                Err(error)
            }
            _ => Ok(id),
        }
    }

    /// For how long a job has run; nothing if it waits for its turn, or has ended.
    pub fn has_run_for(&self, id: JobId) -> Duration {
        let state = self.shared.lock();
        state.running.get(&id).map_or(Duration::ZERO, |running| running.since.elapsed())
    }

    /// A job takes long: if it runs, another thread takes its place.
    pub fn replace(&self, id: JobId) {
        let mut state = self.shared.lock();
        if state.replaced >= MAX_REPLACED {
            return;
        }
        let Some(running) = state.running.get_mut(&id).filter(|running| !running.is_replaced)
        else {
            return;
        };
        running.is_replaced = true;
        state.replaced += 1;
        // Refused, it is asked for again with the next job.
        let _ = self.shared.call_thread(&mut state);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().open = false;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    /// Wakes or starts a thread for the last job, if one may be started.
    fn call_thread(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        if state.queue.len() <= state.idle {
            self.changed.notify_one();
            return Ok(());
        }
        if state.queue.is_empty() || state.threads - state.replaced >= self.limit {
            return Ok(());
        }
        let shared = self.clone();
        std::thread::Builder::new()
            .name(format!("{}-{}", self.name, state.started))
            .spawn(move || shared.serve())?;
        state.started += 1;
        state.threads += 1;
        Ok(())
    }

    fn serve(&self) {
        let mut state = self.lock();
        loop {
            if let Some((id, job)) = state.queue.pop_front() {
                state.running.insert(id, Running { since: Instant::now(), is_replaced: false });
                drop(state);
                job();
                state = self.lock();
                if state.running.remove(&id).is_some_and(|running| running.is_replaced) {
                    state.replaced -= 1;
                }
                // One that was replaced is one too many now.
                if state.threads - state.replaced > self.limit {
                    break;
                }
                continue;
            }
            if !state.open {
                break;
            }
            state.idle += 1;
            let (woken, waited) = self
                .changed
                .wait_timeout(state, KEEP_ALIVE)
                .unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if waited.timed_out() && state.queue.is_empty() {
                break;
            }
        }
        state.threads -= 1;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::mpsc;

    use super::*;

    const GUARD: Duration = Duration::from_secs(30);

    #[test]
    fn every_job_runs_once_on_few_threads() {
        let pool = Pool::new("test", 2);
        let (sender, receiver) = mpsc::channel();
        for number in 0..1_000 {
            let sender = sender.clone();
            pool.run(move || sender.send(number).expect("receiver")).expect("a thread");
        }
        let mut ran: Vec<i32> =
            (0..1_000).map(|_| receiver.recv_timeout(GUARD).expect("runs")).collect();
        ran.sort_unstable();
        assert!(ran.into_iter().eq(0..1_000));
        assert!(pool.shared.lock().started <= 2);
    }

    #[test]
    fn jobs_run_side_by_side_up_to_the_limit() {
        let pool = Pool::new("test", 3);
        let together = Arc::new(Barrier::new(4));
        for _ in 0..3 {
            let together = together.clone();
            pool.run(move || {
                together.wait();
            })
            .expect("a thread");
        }
        together.wait();
    }

    #[test]
    fn a_job_that_was_replaced_does_not_hold_up_the_next() {
        let pool = Pool::new("test", 1);
        let (go_on, wait) = mpsc::channel::<()>();
        let (sender, receiver) = mpsc::channel();
        let begun = sender.clone();
        let stuck = pool.run(move || {
            begun.send("stuck").expect("receiver");
            let _ = wait.recv();
        });
        let next = sender.clone();
        pool.run(move || next.send("next").expect("receiver")).expect("a thread");
        assert_eq!(receiver.recv_timeout(GUARD), Ok("stuck"));
        assert!(receiver.try_recv().is_err());
        pool.replace(stuck.expect("a thread"));
        assert_eq!(receiver.recv_timeout(GUARD), Ok("next"));
        drop(go_on);
        let begun = std::time::Instant::now();
        while pool.shared.lock().replaced > 0 {
            assert!(begun.elapsed() < GUARD, "it has not come back");
            std::thread::yield_now();
        }
        // Back again, it is one of one.
        for _ in 0..10 {
            let last = sender.clone();
            pool.run(move || last.send("last").expect("receiver")).expect("a thread");
            assert_eq!(receiver.recv_timeout(GUARD), Ok("last"));
        }
        assert!(pool.shared.lock().threads <= 2);
    }

    #[test]
    fn a_pool_that_is_dropped_runs_what_it_has() {
        let pool = Pool::new("test", 1);
        let (sender, receiver) = mpsc::channel();
        for number in 0..100 {
            let sender = sender.clone();
            pool.run(move || sender.send(number).expect("receiver")).expect("a thread");
        }
        drop((pool, sender));
        assert!(receiver.iter().eq(0..100));
    }
}
