//! One thread that keeps every deadline.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// Names an item of a [`Timer`], so that it can be cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimerKey {
    at: Instant,
    /// Tells apart items for the same instant.
    number: u64,
}

/// Keeps items until their time has come, then hands them to its owner on a thread of its own.
///
/// ```
/// use std::sync::mpsc;
/// use std::time::{Duration, Instant};
///
/// use dftracer_core::sched::timer::Timer;
///
/// let (sender, expired) = mpsc::channel();
/// let mut timer = Timer::start(move |items| sender.send(items).expect("a receiver"))?;
/// let late = timer.insert(Instant::now() + Duration::from_secs(3_600), "late");
/// timer.insert(Instant::now(), "now");
/// assert_eq!(expired.recv(), Ok(vec!["now"]));
/// assert_eq!(timer.cancel(late), Some("late"));
/// timer.stop();
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Timer<T> {
    shared: Arc<Shared<T>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    /// Signalled when an item comes that is due before all others, and when `open` ends.
    changed: Condvar,
}

struct State<T> {
    items: BTreeMap<TimerKey, T>,
    next_number: u64,
    open: bool,
}

impl<T: Send + 'static> Timer<T> {
    /// Starts the thread, which gives `expire` all items that are due, together.
    pub fn start(expire: impl Fn(Vec<T>) + Send + 'static) -> std::io::Result<Self> {
        let state = State { items: BTreeMap::new(), next_number: 0, open: true };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let served = shared.clone();
        let thread = std::thread::Builder::new()
            .name("dft-timer".to_owned())
            .spawn(move || served.run(&expire))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Keeps an item until that moment.
    pub fn insert(&self, at: Instant, item: T) -> TimerKey {
        let mut state = self.shared.lock();
        let key = TimerKey { at, number: state.next_number };
        state.next_number += 1;
        state.items.insert(key, item);
        if state.items.first_key_value().is_some_and(|(first, _)| *first == key) {
            self.shared.changed.notify_one();
        }
        key
    }

    /// Returns an item that was not handed over, and never will be.
    pub fn cancel(&self, key: TimerKey) -> Option<T> {
        self.shared.lock().items.remove(&key)
    }

    /// The number of items that were not handed over.
    pub fn len(&self) -> usize {
        self.shared.lock().items.len()
    }

    /// Whether it keeps no item.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Timer<T> {
    /// Ends the thread and waits for its end; what it still keeps is never handed over.
    /// The caller holds nothing that `expire` could wait for.
    pub fn stop(&mut self) {
        self.stop_in_background();
        if let Some(thread) = self.thread.take() {
            // An error means that `expire` panicked: there is nothing left to stop.
            let _ = thread.join();
        }
    }

    /// As [`stop`](Self::stop), without waiting: allowed on the timer's own thread too.
    pub fn stop_in_background(&self) {
        self.shared.lock().open = false;
        self.shared.changed.notify_one();
    }
}

impl<T> Shared<T> {
    fn run(&self, expire: &impl Fn(Vec<T>)) {
        let mut state = self.lock();
        while state.open {
            let now = Instant::now();
            let mut due = Vec::new();
            while let Some(first) = state.items.first_entry().filter(|first| first.key().at <= now)
            {
                due.push(first.remove());
            }
            if !due.is_empty() {
                drop(state);
                expire(due);
                state = self.lock();
                continue;
            }
            let next = state.items.first_key_value().map(|(key, _)| key.at);
            state = match next {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(at) => {
                    self.changed
                        .wait_timeout(state, at.saturating_duration_since(now))
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    fn timer() -> (Timer<u32>, mpsc::Receiver<u32>) {
        let (sender, receiver) = mpsc::channel();
        let expire = move |due: Vec<u32>| {
            due.into_iter().for_each(|item| sender.send(item).unwrap_or_default())
        };
        (Timer::start(expire).expect("thread"), receiver)
    }

    #[test]
    fn items_expire_in_the_order_of_their_times() {
        let (mut timer, expired) = timer();
        let now = Instant::now();
        timer.insert(now + Duration::from_millis(60), 3);
        timer.insert(now + Duration::from_millis(20), 1);
        timer.insert(now + Duration::from_millis(40), 2);
        let order: Vec<u32> = (0..3)
            .map(|_| expired.recv_timeout(Duration::from_secs(30)).expect("expires"))
            .collect();
        assert_eq!(order, [1, 2, 3]);
        assert!(Instant::now() >= now + Duration::from_millis(60));
        timer.stop();
    }

    #[test]
    fn an_item_that_was_cancelled_never_expires() {
        let (mut timer, expired) = timer();
        let early = timer.insert(Instant::now() + Duration::from_millis(30), 1);
        assert_eq!(timer.cancel(early), Some(1));
        assert_eq!(timer.cancel(early), None);
        timer.insert(Instant::now() + Duration::from_millis(60), 2);
        assert_eq!(expired.recv_timeout(Duration::from_secs(30)), Ok(2));
        assert!(timer.is_empty());
        timer.stop();
    }

    #[test]
    fn stopping_does_not_wait_for_items() {
        let (mut timer, expired) = timer();
        timer.insert(Instant::now() + Duration::from_secs(3_600), 1);
        timer.stop();
        assert!(expired.try_recv().is_err());
    }
}
