//! The ops in plain f64 loops: no cleverness, obviously right, and the judge of every backend.
