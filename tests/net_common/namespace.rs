//! For tests that mount file systems: root runs them as they are, everybody else
//! in a user namespace, where they are root.

use std::process::Command;

/// Whether the test that calls this, on its own thread, is to run nothing
/// itself: it was run in a namespace and has passed there, or it was skipped,
/// which is said, because there are no namespaces either.
pub fn is_run_elsewhere() -> bool {
    let owner = std::fs::metadata("/proc/self").expect("there is /proc");
    if std::os::unix::fs::MetadataExt::uid(&owner) == 0 {
        return false;
    }
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "--"]);
        command
    };
    let thread = std::thread::current();
    // The harness names a test's thread after it, unless there is only one.
    let test = thread.name().filter(|name| *name != "main");
    let works = unshare().arg("true").output().is_ok_and(|output| output.status.success());
    let (Some(test), true) = (test, works) else {
        skipped("mounting a file system needs root, or user namespaces");
        return true;
    };
    let program = std::env::current_exe().expect("this program has a file");
    let run =
        unshare().arg(program).args(["--exact", test, "--nocapture"]).output().expect("it worked before");
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(
        run.status.success() && said.contains("1 passed"),
        "{said}\n{}",
        String::from_utf8_lossy(&run.stderr)
    );
    true
}

/// Says that a test has tested nothing. Not by eprintln!, of which the harness shows
/// nothing when a test passes.
pub fn skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let _ = std::io::Write::write_fmt(
        &mut std::io::stderr(),
        format_args!("SKIPPED, NOTHING WAS TESTED: {test}: {why}\n"),
    );
}
