//! ELF files: cubins that carry their PTX, and host objects with a fat binary inside.

use super::{Bytes, Code, Found, fatbin, malformed};

/// ELF machine number of NVIDIA's GPUs.
const CUDA: u16 = 190;

pub fn is(image: &[u8]) -> bool {
    image.starts_with(b"\x7fELF")
}

/// A cubin's length: its section headers lie at its end.
pub fn extent(head: &[u8; 64]) -> Option<u64> {
    if !is(head) {
        return None;
    }
    let bytes = Bytes(head);
    let sections = u64::from(bytes.u16(58).ok()?) * u64::from(bytes.u16(60).ok()?);
    let programs = u64::from(bytes.u16(54).ok()?) * u64::from(bytes.u16(56).ok()?);
    let sections = bytes.u64(40).ok()?.checked_add(sections)?;
    Some(sections.max(bytes.u64(32).ok()?.checked_add(programs)?))
}

pub fn entries(image: &[u8]) -> Found<Vec<Code>> {
    let elf = Bytes(image);
    if elf.part(4, 2)? != [2, 1] {
        return malformed("ELF file that is not 64-bit little endian");
    }
    let mut found = Vec::new();
    let mut fatbins = 0;
    for section in sections(&elf)? {
        match section.name {
            b".nv_debug_ptx_txt" => found.push(Code::Ptx(lines(section.bytes))),
            b".nv_fatbin" | b"__nv_relfatbin" => {
                fatbins += 1;
                let Some(start) = section.bytes.iter().position(|&byte| byte != 0) else {
                    continue;
                };
                let first = &section.bytes[start..];
                if fatbin::is(first) {
                    found.extend(fatbin::entries(first)?);
                    fatbins += more(first)?;
                }
            }
            _ => {}
        }
    }
    if fatbins > 1 {
        return malformed(format!("{fatbins} modules in one file: load each by itself"));
    }
    if elf.u16(18)? == CUDA && found.is_empty() {
        found.push(Code::Machine(architecture(elf.u32(48)?)));
    }
    Ok(found)
}

/// Fat binaries behind the first one in a section, as a linked program has them.
fn more(section: &[u8]) -> Found<usize> {
    let bytes = Bytes(section);
    let end = u64::from(bytes.u16(6)?).saturating_add(bytes.u64(8)?);
    let rest = section.get(end as usize..).unwrap_or_default();
    Ok(usize::from(rest.iter().any(|&byte| byte != 0)))
}

/// The compute capability in a cubin's flags: the low byte, or the next one in newer files.
fn architecture(flags: u32) -> u32 {
    let (low, next) = (flags & 0xff, flags >> 8 & 0xff);
    if low >= 30 { low } else { next }
}

/// `.nv_debug_ptx_txt` has a zero byte where a line ends.
fn lines(section: &[u8]) -> Vec<u8> {
    section.iter().map(|&byte| if byte == 0 { b'\n' } else { byte }).collect()
}

struct Section<'a> {
    name: &'a [u8],
    bytes: &'a [u8],
}

fn sections<'a>(elf: &Bytes<'a>) -> Found<Vec<Section<'a>>> {
    let (table, size) = (elf.u64(40)?, u64::from(elf.u16(58)?));
    let (count, names) = (u64::from(elf.u16(60)?), u64::from(elf.u16(62)?));
    if count > 0 && size < 64 {
        return malformed("ELF section headers too short");
    }
    let header = |n: u64| elf.part(table, count * size).map(|_| table + n * size);
    let contents = |n: u64| -> Found<&'a [u8]> {
        let at = header(n)?;
        const NOBITS: u32 = 8;
        if elf.u32(at + 4)? == NOBITS {
            return Ok(&[]);
        }
        elf.part(elf.u64(at + 24)?, elf.u64(at + 32)?)
    };
    if count == 0 {
        return Ok(Vec::new());
    }
    if names >= count {
        return malformed("ELF file without section names");
    }
    let texts = contents(names)?;
    let name = |offset: u32| {
        let text = texts.get(offset as usize..).unwrap_or_default();
        &text[..text.iter().position(|&byte| byte == 0).unwrap_or(text.len())]
    };
    (0..count)
        .map(|n| Ok(Section { name: name(elf.u32(header(n)?)?), bytes: contents(n)? }))
        .collect()
}
