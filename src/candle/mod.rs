//! Drop-in routed modules for candle.
