//! Small file systems for tests: full, or read-only, as real ones get.

#[path = "../../tests/net_common/namespace.rs"]
mod namespace;

use std::ffi::CString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Runs `test` on a thread that sees a tmpfs of `bytes` on a folder of its own;
/// nobody else sees it, and it goes with the thread. Without root this takes a
/// user namespace; without that, too, it says so and runs nothing.
pub(super) fn on_small_file_system(bytes: u64, test: impl FnOnce(&Path) + Send + 'static) {
    if namespace::is_run_elsewhere() {
        return;
    }
    let folder = tempfile::tempdir_in(".").unwrap();
    let path = folder.path().canonicalize().unwrap();
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let done = std::thread::spawn(move || {
        // SAFETY: the thread leaves the process's mount namespace and shares
        // its working directory with nobody any more; it does not fork.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
            // Not eprintln!, of which the harness shows nothing when a test passes.
            let _ =
                writeln!(std::io::stderr(), "SKIPPED, NOTHING WAS TESTED: {name}: this root may not mount");
            return;
        }
        mount(None, Path::new("/"), None, libc::MS_REC | libc::MS_PRIVATE, "");
        mount(Some(c"tmpfs"), &path, Some(c"tmpfs"), 0, &format!("size={bytes}"));
        test(&path);
    });
    done.join().unwrap();
}

/// Makes the file system at `path`, which this thread has mounted, read-only.
pub(super) fn make_read_only(path: &Path) {
    mount(None, path, None, libc::MS_REMOUNT | libc::MS_RDONLY, "");
}

fn mount(
    source: Option<&std::ffi::CStr>,
    path: &Path,
    kind: Option<&std::ffi::CStr>,
    flags: u64,
    options: &str,
) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let options = CString::new(options).unwrap();
    let or_null = |s: Option<&std::ffi::CStr>| s.map_or(std::ptr::null(), |s| s.as_ptr());
    // SAFETY: all pointers are null or strings that live through the call.
    let mounted =
        unsafe { libc::mount(or_null(source), path.as_ptr(), or_null(kind), flags, options.as_ptr().cast()) };
    assert_eq!(mounted, 0, "mount: {}", std::io::Error::last_os_error());
}
