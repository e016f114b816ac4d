//! The only folder with system calls and `unsafe`.
