//! Ringbolt client.
