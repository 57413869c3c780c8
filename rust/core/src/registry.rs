//! The list of what is alive: cheap to insert into, cheap to remove from, and readable as a whole.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Where an entry stands, to remove it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(pub u32);

/// Entries of a small, copyable kind: numbers or addresses of what is alive.
///
/// ```
/// use dftracer_core::registry::Registry;
///
/// let registry = Registry::new();
/// let first = registry.insert("first").expect("there is room");
/// registry.insert("second");
/// assert_eq!(registry.remove(first), Some("first"));
/// let mut alive = Vec::new();
/// registry.for_each(|entry| alive.push(entry));
/// assert_eq!(alive, ["second"]);
/// ```
pub struct Registry<T> {
    entries: Mutex<Entries<T>>,
}

/// Eight bytes for each living address, and four for each place that waits for its next one.
struct Entries<T> {
    places: Vec<Option<T>>,
    /// The places that are empty.
    free: Vec<u32>,
}

impl<T> Entries<T> {
    const EMPTY: Self = Self { places: Vec::new(), free: Vec::new() };

    fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    fn add(&mut self, item: T) -> Option<Entry> {
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                let place = u32::try_from(self.places.len()).ok()?;
                self.places.push(None);
                place
            }
        };
        self.places[place as usize] = Some(item);
        Some(Entry(place))
    }
}

/// A time in which nobody reads or changes a [`Registry`].
#[must_use = "it ends when this is dropped"]
pub struct Pause<'a, T> {
    _entries: MutexGuard<'a, Entries<T>>,
}

/// A list that has once held more than this gives its memory back when it is empty.
const KEPT_CAPACITY: usize = 1_024;

impl<T: Copy> Registry<T> {
    /// An empty list.
    pub fn new() -> Self {
        Self { entries: Mutex::new(Entries::EMPTY) }
    }

    /// Adds an entry; `None` if there are 2^32 already.
    pub fn insert(&self, item: T) -> Option<Entry> {
        self.lock().add(item)
    }

    /// Adds entries, and calls `placed` with where each of them stands; beyond 2^32 they are left out.
    pub fn insert_all(
        &self,
        items: impl IntoIterator<Item = T>,
        mut placed: impl FnMut(usize, Entry),
    ) {
        let mut entries = self.lock();
        for (index, item) in items.into_iter().enumerate() {
            if let Some(entry) = entries.add(item) {
                placed(index, entry);
            }
        }
    }

    /// Removes an entry; after this no reader sees it.
    pub fn remove(&self, Entry(place): Entry) -> Option<T> {
        let mut entries = self.lock();
        let item = entries.places.get_mut(place as usize)?.take()?;
        entries.free.push(place);
        if entries.len() == 0 && entries.places.capacity() > KEPT_CAPACITY {
            *entries = Entries::EMPTY;
        }
        Some(item)
    }

    /// Reads one entry. It is not removed while `read` runs, see [`for_each`](Self::for_each).
    pub fn with<R>(&self, Entry(place): Entry, read: impl FnOnce(T) -> R) -> Option<R> {
        let entries = self.lock();
        entries.places.get(place as usize).copied().flatten().map(read)
    }

    /// Reads every entry. None of them is removed while `read` runs, so it must not call anything
    /// that could insert or remove one.
    pub fn for_each(&self, read: impl FnMut(T)) {
        self.lock().places.iter().copied().flatten().for_each(read);
    }

    /// Reads every entry, and before them whatever `first` reads, with nobody between who has
    /// [paused](Self::pause) readers.
    pub fn read_all<R>(&self, first: impl FnOnce() -> R, read: impl FnMut(T)) -> R {
        let entries = self.lock();
        let result = first();
        entries.places.iter().copied().flatten().for_each(read);
        result
    }

    /// Keeps readers out for as long as the answer lives, which should be for a moment: what changes
    /// in more than one place, and must be seen in all of them or in none, changes then.
    pub fn pause(&self) -> Pause<'_, T> {
        Pause { _entries: self.lock() }
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Entries<T>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Copy> Default for Registry<T> {
    fn default() -> Self {
        Self::new()
    }
}
