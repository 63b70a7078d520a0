//! Memory sets.

use super::boundary::call;
use super::capture;
use super::context::context;
use super::error::{Error, Outcome, Status};
use super::state::{Handle, driver};
use super::stream::stream;
use super::work::Work;

/// A value of 1, 2 or 4 bytes over rows of elements.
#[derive(Debug, Clone)]
pub struct Fill {
    to: u64,
    pattern: Vec<u8>,
    pitch: u64,
    width: u64,
    rows: u64,
}

impl Fill {
    fn line<const N: usize>(to: u64, pattern: [u8; N], count: usize) -> Outcome<Self> {
        Self::plane(to, 0, pattern, count, 1)
    }

    fn plane<const N: usize>(
        to: u64,
        pitch: usize,
        pattern: [u8; N],
        width: usize,
        rows: usize,
    ) -> Outcome<Self> {
        let aligned = to.is_multiple_of(N as u64) && pitch.is_multiple_of(N);
        let bytes = width.checked_mul(N).ok_or(Error::InvalidValue)?;
        if !aligned || rows > 1 && pitch < bytes || pitch.checked_mul(rows).is_none() {
            return Err(Error::InvalidValue);
        }
        let (pattern, pitch) = (pattern.to_vec(), pitch as u64);
        Ok(Self { to, pattern, pitch, width: width as u64, rows: rows as u64 })
    }

    pub fn run(&self) -> Outcome {
        if self.width == 0 {
            return Ok(());
        }
        for row in 0..self.rows {
            let to = self.to.wrapping_add(row * self.pitch);
            driver()?.device.fill(to, &self.pattern, self.width).map_err(|error| {
                eprintln!("softcuda: {error}");
                Error::InvalidValue
            })?;
        }
        Ok(())
    }

    fn now(self) -> Outcome {
        capture::forbid()?;
        let context = context()?;
        context.stream.submit(Work::Fill(self))?;
        context.stream.synchronize()
    }

    fn later(self, on: Handle) -> Outcome {
        stream(on)?.submit(Work::Fill(self))
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8_v2(to: u64, value: u8, count: usize) -> Status {
    call("cuMemsetD8_v2", || Fill::line(to, [value], count)?.now())
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD16_v2(to: u64, value: u16, count: usize) -> Status {
    call("cuMemsetD16_v2", || Fill::line(to, value.to_le_bytes(), count)?.now())
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD32_v2(to: u64, value: u32, count: usize) -> Status {
    call("cuMemsetD32_v2", || Fill::line(to, value.to_le_bytes(), count)?.now())
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(to: u64, value: u8, count: usize, on: Handle) -> Status {
    call("cuMemsetD8Async", || Fill::line(to, [value], count)?.later(on))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD16Async(to: u64, value: u16, count: usize, on: Handle) -> Status {
    call("cuMemsetD16Async", || Fill::line(to, value.to_le_bytes(), count)?.later(on))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD32Async(to: u64, value: u32, count: usize, on: Handle) -> Status {
    call("cuMemsetD32Async", || Fill::line(to, value.to_le_bytes(), count)?.later(on))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD2D8_v2(
    to: u64,
    pitch: usize,
    value: u8,
    width: usize,
    rows: usize,
) -> Status {
    call("cuMemsetD2D8_v2", || Fill::plane(to, pitch, [value], width, rows)?.now())
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD2D16_v2(
    to: u64,
    pitch: usize,
    value: u16,
    width: usize,
    rows: usize,
) -> Status {
    call("cuMemsetD2D16_v2", || Fill::plane(to, pitch, value.to_le_bytes(), width, rows)?.now())
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD2D32_v2(
    to: u64,
    pitch: usize,
    value: u32,
    width: usize,
    rows: usize,
) -> Status {
    call("cuMemsetD2D32_v2", || Fill::plane(to, pitch, value.to_le_bytes(), width, rows)?.now())
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD2D8Async(
    to: u64,
    pitch: usize,
    value: u8,
    width: usize,
    rows: usize,
    on: Handle,
) -> Status {
    call("cuMemsetD2D8Async", || Fill::plane(to, pitch, [value], width, rows)?.later(on))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD2D16Async(
    to: u64,
    pitch: usize,
    value: u16,
    width: usize,
    rows: usize,
    on: Handle,
) -> Status {
    let pattern = value.to_le_bytes();
    call("cuMemsetD2D16Async", || Fill::plane(to, pitch, pattern, width, rows)?.later(on))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD2D32Async(
    to: u64,
    pitch: usize,
    value: u32,
    width: usize,
    rows: usize,
    on: Handle,
) -> Status {
    let pattern = value.to_le_bytes();
    call("cuMemsetD2D32Async", || Fill::plane(to, pitch, pattern, width, rows)?.later(on))
}

super::exports![
    cuMemsetD8_v2,
    cuMemsetD16_v2,
    cuMemsetD32_v2,
    cuMemsetD8Async,
    cuMemsetD16Async,
    cuMemsetD32Async,
    cuMemsetD2D8_v2,
    cuMemsetD2D16_v2,
    cuMemsetD2D32_v2,
    cuMemsetD2D8Async,
    cuMemsetD2D16Async,
    cuMemsetD2D32Async,
];
