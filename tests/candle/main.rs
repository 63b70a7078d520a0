//! The candle adapter against candle's own autograd, materialised per-sample gradients and the
//! textbook's optimizer.

mod backward;
mod governed;
mod layers;
mod net;
mod optimizer;
mod steps;
mod support;
