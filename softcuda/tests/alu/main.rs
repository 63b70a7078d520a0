//! Arithmetic, one instruction at a time on all lanes, against independent arithmetic: integers of 128 bits,
//! definitions of the PTX ISA spelled out bit by bit, searches over all values of a format.

mod bench;
mod bits;
mod compare;
mod convert;
mod float;
mod forms;
mod half;
mod integer;
mod moves;
mod packed;
mod random;
