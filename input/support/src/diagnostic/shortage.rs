//! Help texts for errors of the operating system about a resource that this machine lacks: open files, processes and
//! threads, memory, disk space. The help is the same for every file and program.

use std::io;

const ENOMEM: i32 = 12;
const EAGAIN: i32 = 11;
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;

/// Returns the help text for an error that is not the fault of the file or program: this process or this machine has
/// no free open-file slots or no memory left. `None` for other errors.
pub fn resource_shortage_help(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error()? {
        EMFILE => Some("raise the limit of open files (ulimit -n)"),
        ENFILE => Some("close other programs, or raise the machine's limit of open files (sysctl fs.file-max)"),
        ENOMEM => Some("free memory"),
        _ => None,
    }
}

/// Returns the help text if starting a process or a thread failed because a resource is used up: open files or memory
/// as in [`resource_shortage_help`], or the number of processes and threads. `None` for other errors.
pub fn failed_start_help(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error()? {
        EAGAIN => Some(
            "raise the limit of processes and threads (ulimit -u, or the pids limit of the container), or end other \
             programs",
        ),
        _ => resource_shortage_help(error),
    }
}

/// Returns the help text if a file could not be written because the disk is full, or because the file would exceed
/// the limit on file sizes. `None` for other errors.
pub fn disk_full_help(kind: io::ErrorKind) -> Option<&'static str> {
    match kind {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some("free space on that disk"),
        io::ErrorKind::FileTooLarge => Some("raise the limit on file sizes (ulimit -f)"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::Diagnostic;

    #[test]
    fn help_names_the_limit_that_is_too_low() {
        let error = io::Error::from_raw_os_error;
        for (code, limit) in [(EMFILE, "ulimit -n"), (ENFILE, "fs.file-max"), (ENOMEM, "free memory")] {
            let read = Diagnostic::cannot_read("a", &error(code));
            let written = Diagnostic::cannot_write("/", &error(code));
            let thread = Diagnostic::cannot_start_thread("the server", &error(code));
            for help in [read.help, written.help, thread.help] {
                assert!(help.contains(limit), "{code}: {help}");
            }
        }
        let thread = Diagnostic::cannot_start_thread("the server", &error(EAGAIN));
        assert!(thread.to_string().starts_with("the server: a thread cannot be created: "), "{thread}");
        assert!(thread.help.contains("ulimit -u") && thread.help.contains("pids limit"), "{thread}");
        // EAGAIN means a lack of threads or processes only when a thread or process is started. Reading a file starts
        // none.
        assert_eq!(resource_shortage_help(&error(EAGAIN)), None);
    }
}
