//! Histories of a broker that are told in full, one for each way to fail.
