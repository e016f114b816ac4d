//! Ringbolt wire format.
