//! The committed list of launches, and what the verifier is told of one.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::header::Struct;

/// Where it stands.
pub const FILE: &str = "xtask/launches.toml";

type Numbers = BTreeMap<String, f64>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// Defaults of the layer's fields.
    pub layer: Numbers,
    pub launch: Vec<Launch>,
}

/// One launch.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    pub source: String,
    pub kernel: String,
    pub grid: [u32; 3],
    /// Dynamic shared memory, in bytes.
    #[serde(default)]
    shared: u32,
    #[serde(default)]
    layer: Numbers,
    #[serde(default)]
    conv: Numbers,
    #[serde(default)]
    norm: Numbers,
    /// Numbers among the arguments, by position.
    #[serde(default)]
    scalars: Numbers,
    /// What stands in buffers, by position.
    #[serde(default)]
    arrays: BTreeMap<String, Array>,
    #[serde(default)]
    pub representative: bool,
    /// The diagnostic that is allowed.
    pub allowed: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Array {
    of: String,
    numbers: Vec<u64>,
}

/// Reads the list.
pub fn read(file: &Path) -> Result<List> {
    let text = std::fs::read_to_string(file).with_context(|| format!("{}", file.display()))?;
    Ok(toml::from_str(&text)?)
}

impl Launch {
    /// The verifier's description of the launch: arguments as the PTX declares them.
    pub fn input(&self, ptx: &str, layer: &Numbers, structs: &[Struct]) -> Result<Value> {
        let (parameters, threads) = signature(ptx, &self.kernel)?;
        let (mut declarations, mut arguments) = (Vec::new(), Vec::new());
        let mut scalars = self.scalars.clone();
        for (at, parameter) in parameters.iter().enumerate() {
            let at_name = at.to_string();
            match parameter {
                Parameter::Struct(size) => {
                    let mut fields = structs.iter().filter(|one| one.size == *size);
                    let (Some(of), None) = (fields.next(), fields.next()) else {
                        bail!("{}: no one struct of {size} bytes", self.kernel);
                    };
                    arguments.extend(self.fields(at, of, layer)?);
                }
                Parameter::Number(kind) => match scalars.remove(&at_name) {
                    Some(number) => arguments.push(argument(at, 0, kind, number)),
                    // Addresses are 64-bit numbers to the PTX.
                    None => {
                        ensure!(
                            kind == "u64",
                            "{}: argument {at}, {kind}, is missing",
                            self.kernel
                        );
                        let object = format!("argument {at}");
                        declarations.push(json!({ "parameter": at, "type": "pointer",
                            "space": "global", "object": object }));
                    }
                },
            }
        }
        ensure!(scalars.is_empty(), "{}: no arguments {:?}", self.kernel, scalars.keys());
        let arrays = self.arrays.iter().map(|(at, array)| {
            let at: usize = at.parse().context("arrays go by position")?;
            let is_buffer = declarations.iter().any(|one| one["parameter"] == at);
            ensure!(is_buffer, "{}: argument {at} is no buffer", self.kernel);
            Ok(json!({ "parameter": at, "element_type": array.of, "shapes": [array.numbers] }))
        });
        let arrays = arrays.collect::<Result<Vec<Value>>>()?;
        Ok(json!({
            "schema": "spverify.kernel-input/v1",
            "entry": self.kernel,
            "launch": { "grid_dim": self.grid, "block_dim": [threads, 1, 1],
                "dynamic_shared_bytes": self.shared },
            "declarations": declarations,
            "arguments": arguments,
            "shape_arrays": arrays,
            "assumptions": { "representative_branches": self.representative,
                "bounded_computation_loops": self.representative },
        }))
    }

    fn fields(&self, at: usize, of: &Struct, layer: &Numbers) -> Result<Vec<Value>> {
        let mut values = match of.name.as_str() {
            "GradrouteLayer" => {
                let mut values = layer.clone();
                values.extend(self.layer.clone());
                values
            }
            "GradrouteConv" => self.conv.clone(),
            "GradrouteNorm" => self.norm.clone(),
            _ => Numbers::new(),
        };
        let fields = of.fields.iter().map(|(name, kind, offset)| {
            argument(at, *offset, kind, values.remove(name).unwrap_or(0.0))
        });
        let fields = fields.collect();
        ensure!(values.is_empty(), "{}: {} has no {:?}", self.kernel, of.name, values.keys());
        Ok(fields)
    }
}

fn argument(at: usize, offset: u64, kind: &str, number: f64) -> Value {
    let value = if kind.starts_with('f') { json!(number) } else { json!(number as u64) };
    json!({ "parameter": at, "offset": offset, "type": kind, "value": value })
}

#[derive(Debug, PartialEq)]
enum Parameter {
    /// A struct by value, of so many bytes.
    Struct(u64),
    Number(String),
}

/// A kernel's parameters and threads, as the PTX declares them.
fn signature(ptx: &str, kernel: &str) -> Result<(Vec<Parameter>, u32)> {
    let missing = || format!("the PTX has no kernel {kernel}");
    let (_, rest) = ptx.split_once(&format!(".entry {kernel}(")).with_context(missing)?;
    let (parameters, rest) = rest.split_once(')').with_context(missing)?;
    let (directives, _) = rest.split_once('{').with_context(missing)?;
    let threads = directives.split_once(".maxntid ").context("the kernel has launch bounds")?.1;
    let threads = threads.split(|other: char| !other.is_ascii_digit()).next().unwrap_or_default();
    let parameters = parameters.split(',').map(|parameter| {
        let bytes = parameter.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
        if let Some((bytes, _)) = bytes {
            return Ok(Parameter::Struct(bytes.parse()?));
        }
        let kind = parameter.trim().strip_prefix(".param .").context("a parameter")?;
        Ok(Parameter::Number(kind.split(' ').next().unwrap_or_default().to_string()))
    });
    Ok((parameters.collect::<Result<_>>()?, threads.parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_fit_the_parameters() {
        let list = read(&crate::shell::root().join(FILE)).unwrap();
        let header = crate::shell::root().join("kernels/include/gradroute.h");
        let structs = super::super::header::structs(&std::fs::read_to_string(header).unwrap());
        let ptx = ".visible .entry reduce_squares(\n\t.param .align 8 .b8 p_0[72],\n\t.param .u64 p_1,\
                   \n\t.param .u64 p_2,\n\t.param .u64 p_3,\n\t.param .u64 p_4\n)\n.maxntid 256, 1, 1\n{";
        let launch = list.launch.iter().find(|one| one.kernel == "reduce_squares").unwrap();
        let structs = structs.unwrap();
        let input = launch.input(ptx, &list.layer, &structs).unwrap();
        assert_eq!(input["declarations"].as_array().unwrap().len(), 3);
        assert_eq!(input["launch"]["block_dim"][0], 256);
        let scale = input["arguments"].as_array().unwrap();
        assert!(scale.iter().any(|one| one["type"] == "f32" && one["value"] == 1.0));
        // An argument more that is no buffer does not pass.
        let other = ptx.replace("\n)", ",\n\t.param .u32 p_5\n)");
        assert!(launch.input(&other, &list.layer, &structs).is_err());
    }
}
