//! Turns a panic in a library that reads untrusted input into an error.

#[cfg(not(panic = "unwind"))]
compile_error!("a panic in a library must become an error: build with panic = \"unwind\"");

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    /// The number of nested calls of [`catch_panic`] on the current thread.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Runs `work`. If it panics, returns the message of the panic.
///
/// Use this function for libraries that panic on damaged input. After a panic the caller must drop the values that
/// `work` was changing. Only panics of the current thread are caught. If `work` starts a thread that panics, the
/// panic reaches the caller when `work` joins the thread, but it is printed.
///
/// The panic hook belongs to the whole process, so this function does not change it. The program's hook calls
/// [`is_panic_caught`] and prints nothing if it returns true.
///
/// # Errors
/// The message of the panic, in one line.
pub fn catch_panic<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    struct Entered;
    impl Drop for Entered {
        fn drop(&mut self) {
            DEPTH.set(DEPTH.get() - 1);
        }
    }
    DEPTH.set(DEPTH.get() + 1);
    let _entered = Entered;
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        let text = payload.downcast_ref::<&str>().copied();
        let message = text.or(payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
        crate::diagnostic::printable::one_line(message)
    })
}

/// Returns true while the current thread runs the `work` of [`catch_panic`]. A panic hook should then print nothing.
pub fn is_panic_caught() -> bool {
    DEPTH.get() > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_messages_and_the_thread_is_as_before() {
        assert_eq!(catch_panic(|| 3), Ok(3));
        for _ in 0..2 {
            let caught = catch_panic(|| {
                assert_eq!(catch_panic(|| panic!("inner")), Err::<(), _>("inner".into()));
                assert!(is_panic_caught());
                // Panics are caught per thread: a panic of another thread is not caught.
                assert!(!std::thread::spawn(is_panic_caught).join().expect("it ends"));
                let damaged: Vec<u8> = Vec::new();
                damaged[damaged.len()]
            });
            assert!(caught.expect_err("it panics").contains("index out of bounds"));
            assert!(!is_panic_caught());
        }
        assert_eq!(catch_panic(|| std::panic::panic_any(7)), Err::<(), _>("no message".into()));
        assert_eq!(catch_panic(|| panic!("two\nlines")), Err::<(), _>("two lines".into()));
    }
}
