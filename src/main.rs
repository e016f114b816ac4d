//! The `ringbolt` command.

fn main() -> std::process::ExitCode {
    ringbolt::cli::main()
}
