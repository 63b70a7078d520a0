//! Fat binaries: a header, then entries of PTX or machine code, each plain or compressed.
//!
//! NVIDIA publishes no description; this one was read off what nvcc 13.2 writes in all its compression modes.
//! Header: magic u32, version u16, header bytes u16, bytes of all entries u64. Entry: kind u16 (1 PTX,
//! 2 machine code), version u16, header bytes u32, payload bytes u64, compressed bytes u32, option offset u32,
//! minor u16, major u16, architecture u32, name offset u32, name bytes u32, flags u64, zero u64,
//! decompressed bytes u64.

use std::io::Read;

use super::{Bytes, Code, Found, MAX_TEXT, malformed};

const MAGIC: u32 = 0xba55_ed50;
/// Of the wrapper `{magic, version, pointer to the fat binary, …}` that compiled programs hold.
pub const WRAPPER_MAGIC: u32 = 0x4662_43b1;

const PTX: u16 = 1;
const MACHINE: u16 = 2;
const LZ4: u64 = 0x2000;
const ZSTD: u64 = 0x8000;
/// No compiler makes so many; more are damage.
const MAX_ENTRIES: usize = 4096;

pub fn is(image: &[u8]) -> bool {
    image.starts_with(&MAGIC.to_le_bytes())
}

pub fn extent(head: &[u8; 64]) -> Option<u64> {
    if !is(head) {
        return None;
    }
    let bytes = Bytes(head);
    u64::from(bytes.u16(6).ok()?).checked_add(bytes.u64(8).ok()?)
}

pub fn entries(image: &[u8]) -> Found<Vec<Code>> {
    let bytes = Bytes(image);
    let header = u64::from(bytes.u16(6)?);
    let body = Bytes(bytes.part(header, bytes.u64(8)?)?);
    let mut found = Vec::new();
    let mut at = 0;
    while at < body.0.len() as u64 {
        if found.len() == MAX_ENTRIES {
            return malformed("fat binary with too many entries");
        }
        let header = u64::from(body.u32(at + 4)?);
        let size = body.u64(at + 8)?;
        if header < 64 {
            return malformed("fat binary entry with a short header");
        }
        let Some(payload) = at.checked_add(header) else { return malformed("fat binary entry") };
        match body.u16(at)? {
            PTX => found.push(Code::Ptx(text(&body, at, payload, size)?)),
            MACHINE => found.push(Code::Machine(body.u32(at + 28)?)),
            // Link-time intermediates and whatever else may come: nothing to execute.
            _ => {}
        }
        // Also refuses a payload that leaves the fat binary.
        at = payload + body.part(payload, size)?.len() as u64;
    }
    Ok(found)
}

fn text(body: &Bytes<'_>, entry: u64, payload: u64, size: u64) -> Found<Vec<u8>> {
    let flags = body.u64(entry + 40)?;
    let compressed = body.part(payload, u64::from(body.u32(entry + 16)?))?;
    let wanted = body.u64(entry + 56)?;
    if wanted > MAX_TEXT as u64 {
        return malformed(format!("PTX of {wanted} bytes"));
    }
    match flags & (LZ4 | ZSTD) {
        0 => Ok(body.part(payload, size)?.to_vec()),
        LZ4 => lz4(compressed, wanted as usize),
        _ => zstd(compressed, wanted as usize),
    }
}

fn lz4(compressed: &[u8], wanted: usize) -> Found<Vec<u8>> {
    // A byte of LZ4 stands for at most 255: don't reserve what cannot come.
    if wanted > compressed.len().saturating_mul(255) {
        return malformed("LZ4 data too short for its text");
    }
    let text = lz4_flex::block::decompress(compressed, wanted);
    text.or_else(|error| malformed(format!("LZ4: {error}")))
}

fn zstd(compressed: &[u8], wanted: usize) -> Found<Vec<u8>> {
    let mut text = Vec::new();
    let read = ruzstd::decoding::StreamingDecoder::new(compressed)
        .map_err(|error| error.to_string())
        .and_then(|decoder| {
            let mut limited = decoder.take(wanted as u64);
            limited.read_to_end(&mut text).map_err(|error| error.to_string())
        });
    match read {
        Ok(bytes) if bytes == wanted => Ok(text),
        Ok(bytes) => malformed(format!("zstd: {bytes} bytes instead of {wanted}")),
        Err(error) => malformed(format!("zstd: {error}")),
    }
}
