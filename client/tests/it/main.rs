//! The client against a broker that does what a test wants: in one program, since compiling six
//! took a minute.

mod admin;
mod consumer;
mod consumer_faults;
mod pipeline;
mod producer;
mod reader;
mod support;
