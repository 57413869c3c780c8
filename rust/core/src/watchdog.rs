//! One thread that keeps every deadline.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// Names an alarm that was set, so that it can be taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alarm {
    at: Instant,
    /// Tells apart alarms for the same instant.
    number: u64,
}

/// Keeps items until their time has come, then hands them to its owner on a thread of its own.
pub struct Watchdog<T> {
    shared: Arc<Shared<T>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    /// Signalled when an alarm is set that is earlier than all others, and when `open` ends.
    changed: Condvar,
}

struct State<T> {
    alarms: BTreeMap<Alarm, T>,
    next_number: u64,
    open: bool,
}

impl<T: Send + 'static> Watchdog<T> {
    /// Starts the thread, which gives `ring` all items that are due, together.
    pub fn start(ring: impl Fn(Vec<T>) + Send + 'static) -> std::io::Result<Self> {
        let state = State { alarms: BTreeMap::new(), next_number: 0, open: true };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let watched = shared.clone();
        let thread = std::thread::Builder::new()
            .name("dft-watchdog".to_owned())
            .spawn(move || watched.watch(&ring))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Sets an alarm.
    pub fn set(&self, at: Instant, item: T) -> Alarm {
        let mut state = self.shared.lock();
        let alarm = Alarm { at, number: state.next_number };
        state.next_number += 1;
        state.alarms.insert(alarm, item);
        if state.alarms.first_key_value().is_some_and(|(first, _)| *first == alarm) {
            self.shared.changed.notify_one();
        }
        alarm
    }

    /// Takes an alarm back, and returns its item unless it has rung.
    pub fn take_back(&self, alarm: Alarm) -> Option<T> {
        self.shared.lock().alarms.remove(&alarm)
    }

    /// The number of alarms that have not rung.
    pub fn len(&self) -> usize {
        self.shared.lock().alarms.len()
    }

    /// Whether no alarm is set.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Watchdog<T> {
    /// Ends the thread and waits for its end; alarms that have not rung never will. The caller holds
    /// nothing that `ring` could wait for.
    pub fn stop(&mut self) {
        self.stop_in_background();
        if let Some(thread) = self.thread.take() {
            // An error means that `ring` panicked: there is nothing left to stop.
            let _ = thread.join();
        }
    }

    /// As [`stop`](Self::stop), without waiting: allowed on the watchdog's own thread too.
    pub fn stop_in_background(&self) {
        self.shared.lock().open = false;
        self.shared.changed.notify_one();
    }
}

impl<T> Shared<T> {
    fn watch(&self, ring: &impl Fn(Vec<T>)) {
        let mut state = self.lock();
        while state.open {
            let now = Instant::now();
            let mut due = Vec::new();
            while let Some(first) = state.alarms.first_entry().filter(|first| first.key().at <= now)
            {
                due.push(first.remove());
            }
            if !due.is_empty() {
                drop(state);
                ring(due);
                state = self.lock();
                continue;
            }
            let next = state.alarms.first_key_value().map(|(alarm, _)| alarm.at);
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

    fn watchdog() -> (Watchdog<u32>, mpsc::Receiver<u32>) {
        let (sender, receiver) = mpsc::channel();
        let ring = move |due: Vec<u32>| {
            due.into_iter().for_each(|item| sender.send(item).unwrap_or_default())
        };
        (Watchdog::start(ring).expect("thread"), receiver)
    }

    #[test]
    fn alarms_ring_in_the_order_of_their_times() {
        let (mut watchdog, rung) = watchdog();
        let now = Instant::now();
        watchdog.set(now + Duration::from_millis(60), 3);
        watchdog.set(now + Duration::from_millis(20), 1);
        watchdog.set(now + Duration::from_millis(40), 2);
        let order: Vec<u32> =
            (0..3).map(|_| rung.recv_timeout(Duration::from_secs(30)).expect("rings")).collect();
        assert_eq!(order, [1, 2, 3]);
        assert!(Instant::now() >= now + Duration::from_millis(60));
        watchdog.stop();
    }

    #[test]
    fn an_alarm_that_was_taken_back_never_rings() {
        let (mut watchdog, rung) = watchdog();
        let early = watchdog.set(Instant::now() + Duration::from_millis(30), 1);
        assert_eq!(watchdog.take_back(early), Some(1));
        assert_eq!(watchdog.take_back(early), None);
        watchdog.set(Instant::now() + Duration::from_millis(60), 2);
        assert_eq!(rung.recv_timeout(Duration::from_secs(30)), Ok(2));
        assert!(watchdog.is_empty());
        watchdog.stop();
    }

    #[test]
    fn stopping_does_not_wait_for_alarms() {
        let (mut watchdog, rung) = watchdog();
        watchdog.set(Instant::now() + Duration::from_secs(3_600), 1);
        watchdog.stop();
        assert!(rung.try_recv().is_err());
    }
}
