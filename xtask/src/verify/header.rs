//! The layout of the kernels' parameter structs, read from their C header.

use anyhow::{Context, Result, bail};

/// A struct: its fields with the verifier's types and their offsets, and its size.
#[derive(Debug, PartialEq)]
pub struct Struct {
    pub name: String,
    pub fields: Vec<(String, &'static str, u64)>,
    pub size: u64,
}

/// All structs of a header, in order; arrays are left out of their fields.
pub fn structs(header: &str) -> Result<Vec<Struct>> {
    let text = without_comments(header);
    let mut found: Vec<Struct> = Vec::new();
    for part in text.split("typedef struct ").skip(1) {
        let (_, rest) = part.split_once('{').context("a struct has a body")?;
        let (body, rest) = rest.split_once('}').context("a body ends")?;
        let name = rest.split(';').next().unwrap_or_default().trim().to_string();
        let (mut fields, mut end, mut most) = (Vec::new(), 0_u64, 1);
        for declaration in body.split(';').map(str::trim).filter(|text| !text.is_empty()) {
            let (kind, names) = declaration.split_once(' ').context("a type and names")?;
            for field in names.split(',').map(str::trim) {
                if let Some(inner) = found.iter().find(|one| one.name == kind) {
                    let begin = end.next_multiple_of(4);
                    let own = inner.fields.iter();
                    fields.extend(
                        own.map(|(of, kind, at)| (format!("{field}.{of}"), *kind, begin + at)),
                    );
                    (end, most) = (begin + inner.size, most.max(4));
                    continue;
                }
                let (kind, bytes) = match kind {
                    "uint64_t" => ("u64", 8),
                    "int64_t" => ("s64", 8),
                    "uint32_t" => ("u32", 4),
                    "int32_t" => ("s32", 4),
                    "float" => ("f32", 4),
                    "uint8_t" => ("u8", 1),
                    other => bail!("{name}: no type {other}"),
                };
                let begin = end.next_multiple_of(bytes);
                most = most.max(bytes);
                let length = field.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
                match length {
                    Some((length, _)) => end = begin + bytes * length.parse::<u64>()?,
                    None => {
                        fields.push((field.to_string(), kind, begin));
                        end = begin + bytes;
                    }
                }
            }
        }
        found.push(Struct { name, fields, size: end.next_multiple_of(most) });
    }
    Ok(found)
}

fn without_comments(text: &str) -> String {
    let mut parts = text.split("/*");
    let mut left = parts.next().unwrap_or_default().to_string();
    for part in parts {
        left += part.split_once("*/").map_or("", |(_, rest)| rest);
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_the_c_compilers() {
        let text = "typedef struct D { uint32_t by; /* x; */ uint32_t s; } D;\n\
                    typedef struct L { float f; uint64_t a, b; D d; uint8_t c[4]; uint32_t e; } L;";
        let found = structs(text).unwrap();
        let fields: Vec<(&str, &str, u64)> =
            found[1].fields.iter().map(|(name, kind, at)| (name.as_str(), *kind, *at)).collect();
        let want = [("f", "f32", 0), ("a", "u64", 8), ("b", "u64", 16), ("d.by", "u32", 24)];
        assert_eq!(fields[..4], want);
        assert_eq!(fields[5], ("e", "u32", 36));
        assert_eq!((found[0].size, found[1].size), (8, 40));
    }
}
