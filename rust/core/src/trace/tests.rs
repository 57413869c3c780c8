use std::io::Read;
use std::path::PathBuf;

use flate2::read::MultiGzDecoder;

use super::event::{MAX_TEXT, Rows, quote};
use super::*;
use crate::redact::head;

/// A file of its own for each test, deleted in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("dft-{}-{name}.pfw.gz", std::process::id())))
    }

    fn lines(&self) -> Vec<String> {
        let mut text = String::new();
        let file = std::fs::File::open(&self.0).expect("the file is there");
        MultiGzDecoder::new(file).read_to_string(&mut text).expect("complete members");
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn open(scratch: &Scratch, append: bool) -> io::Result<Trace> {
    let setup = Setup { now: 1, process: "tests".into(), host: "here".into() };
    Trace::open(&scratch.0, append, &setup, Box::new(|error| panic!("{error}")))
}

fn record(task: i64, kind: Kind, started: u64, ended: u64) -> Record {
    Record {
        task,
        parent: -1,
        submitted: 1_000,
        started,
        ended,
        name: 0,
        thread: 0,
        failure: None,
        source: 1,
        kind,
        end: End::Done,
    }
}

#[test]
fn everything_recorded_before_a_flush_is_in_the_file_after_it() {
    let scratch = Scratch::new("flush");
    let trace = open(&scratch, false).expect("opens");
    assert_eq!(trace.name("one"), Some(0));
    let tasks = 3 * FLUSH_AT as i64;
    for task in 0..tasks {
        let record = record(task, Kind::Python, 2_000, 3_000);
        match task % 5 {
            0 => trace.record(record),
            // SAFETY: there is no other thread.
            _ => unsafe { trace.record_alone(record) },
        }
    }
    trace.flush();
    let lines = scratch.lines();
    assert_eq!(lines[0], "[");
    for task in [0, 1, tasks - 1] {
        let of_task = format!(",\"task\":{task}}}");
        assert_eq!(lines.iter().filter(|line| line.contains(&of_task)).count(), 1);
    }
    assert_eq!(lines.iter().filter(|line| line.contains("\"ph\":\"X\"")).count(), tasks as usize);
}

#[test]
fn a_second_writer_is_refused_while_the_first_is_there_and_can_append_after() {
    let scratch = Scratch::new("busy");
    let first = open(&scratch, false).expect("opens");
    let busy = open(&scratch, true).err().expect("refused");
    assert_eq!(busy.kind(), io::ErrorKind::WouldBlock);
    first.name("one");
    first.record(record(7, Kind::Python, 2_000, 3_000));
    let writer = first.writer();
    drop(first);
    writer.finish();
    open(&scratch, true).expect("opens").flush();
    let lines = scratch.lines();
    assert_eq!(lines.iter().filter(|line| *line == "[").count(), 1);
    assert_eq!(lines.iter().filter(|line| line.contains("\"task\":7")).count(), 1);
    assert_eq!(lines.iter().filter(|line| line.contains("process_name")).count(), 2);
}

#[test]
fn tasks_that_overlap_have_rows_of_their_own() {
    let mut rows = Rows::default();
    assert_eq!(rows.take(0, 10), (0, true));
    assert_eq!(rows.take(5, 7), (1, true));
    assert_eq!(rows.take(7, 9), (1, false));
    assert_eq!(rows.take(9, 12), (1, false));
    assert_eq!(rows.take(10, 11), (0, false));
    assert_eq!(rows.take(11, 12), (0, false));
    // Told late, of a time when all rows were taken.
    assert_eq!(rows.take(1, 2), (2, true));
}

#[test]
fn strings_are_quoted_and_long_texts_cut() {
    let mut text = Vec::new();
    quote(&mut text, "a\"b\\c\nd\u{1}é");
    assert_eq!(String::from_utf8(text).expect("text"), "\"a\\\"b\\\\c\\nd\\u0001é\"");
    assert_eq!(head(&"é".repeat(10_000), MAX_TEXT).len(), MAX_TEXT);
}

#[test]
fn a_note_is_told_with_its_task_and_with_no_other() {
    let scratch = Scratch::new("note");
    let trace = open(&scratch, false).expect("opens");
    trace.name("one");
    trace.note(1, 5, 500, "\"uid\":\"task.5\"");
    trace.record(record(4, Kind::Python, 2_000, 3_000));
    let failure = Failure { message: "no".into(), exit_code: Some(3), ..Failure::default() };
    let failed =
        Record { failure: Some(Box::new(failure)), ..record(5, Kind::Process, 2_000, 3_000) };
    trace.record(failed);
    trace.flush();
    let lines = scratch.lines();
    let with_note: Vec<_> = lines.iter().filter(|line| line.contains("task.5")).collect();
    assert_eq!(with_note.len(), 1);
    for part in ["\"task\":5", "\"wait_us\":0", "\"state\":\"failed\"", "\"exit_code\":3"] {
        assert!(with_note[0].contains(part), "{part} in {}", with_note[0]);
    }
    assert!(lock(&trace.inner.notes).is_empty());
}

#[test]
fn names_beyond_the_limit_are_brought_along() {
    let scratch = Scratch::new("names");
    let trace = open(&scratch, false).expect("opens");
    for number in 0..MAX_NAMES {
        assert_eq!(trace.name_for(1, 0, &number.to_string()), number as u32);
    }
    assert_eq!(trace.name_for(1, 9, "one more"), OWN_NAME);
    let named = Record { name: OWN_NAME, ..record(9, Kind::Coroutine, 2_000, 3_000) };
    trace.record(named);
    trace.flush();
    let found = scratch.lines().iter().filter(|line| line.contains("\"one more\"")).count();
    assert_eq!(found, 1);
}
