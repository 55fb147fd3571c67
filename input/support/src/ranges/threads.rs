//! Numbers and names of the host threads, for the tracks of a trace.

use std::cell::OnceCell;
use std::sync::{Mutex, MutexGuard, PoisonError};

thread_local! {
    static THREAD: OnceCell<usize> = const { OnceCell::new() };
}

/// The names of the numbered host threads, at the index of their number.
static THREADS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Returns the number of this thread. Threads have the numbers 0, 1, … in the order of their first calls.
pub fn host_thread_number() -> usize {
    THREAD.with(|number| {
        *number.get_or_init(|| {
            let mut names = threads();
            let number = names.len();
            let name = std::thread::current().name().map(str::to_string);
            names.push(name.unwrap_or_else(|| format!("thread {number}")));
            number
        })
    })
}

/// Returns the names of the threads that have called [`host_thread_number`], at the index of their number.
pub fn host_thread_names() -> Vec<String> {
    threads().clone()
}

fn threads() -> MutexGuard<'static, Vec<String>> {
    THREADS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_has_its_own_number_and_name() {
        let here = host_thread_number();
        let spawned = std::thread::Builder::new().name("reader".into()).spawn(host_thread_number);
        let there = spawned.expect("a thread").join().expect("a number");
        assert!(here != there && here == host_thread_number());
        assert_eq!(host_thread_names()[there], "reader");
    }
}
