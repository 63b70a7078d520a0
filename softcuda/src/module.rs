//! Loading a module: PTX text → variables on the device and kernels ready to run.
//!
//! ```
//! use softcuda::{memory::Device, module::Module};
//!
//! let text = ".version 8.0\n.target sm_80\n.address_size 64\n\
//!             .global .u32 seven = 7;\n.visible .entry nothing() { ret; }";
//! let device = Device::new(1 << 20);
//! let module = Module::load(&device, text.as_bytes(), 90)?;
//! assert!(module.kernels.contains_key("nothing"));
//! let mut bytes = [0; 4];
//! device.read(module.globals["seven"].address, &mut bytes)?;
//! assert_eq!(u32::from_le_bytes(bytes), 7);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::container::{ContainerError, Target, ptx, runs_on};
use crate::ir::{FUNCTION_WINDOW, Kernel, Ty};
use crate::lower::{self, Symbols};
use crate::memory::Device;
use crate::ptx::PtxError;
use crate::ptx::ast::{self, Init, Variable};

/// Why a module was not loaded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(transparent)]
    Ptx(#[from] PtxError),
    #[error("PTX for {target} does not run on sm_{arch}")]
    Target { target: String, arch: u32 },
    #[error("{0} is declared but nowhere defined")]
    Unresolved(String),
    #[error("no room on the device for {name}, {bytes} bytes")]
    OutOfMemory { name: String, bytes: u64 },
}

/// A variable of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Global {
    pub address: u64,
    pub bytes: u64,
    pub managed: bool,
}

/// A loaded module.
#[derive(Debug)]
pub struct Module {
    pub kernels: BTreeMap<String, Arc<Kernel>>,
    pub globals: BTreeMap<String, Global>,
}

impl Module {
    /// Loads what [`crate::container::ptx`] finds in `image`.
    ///
    /// # Errors
    ///
    /// If there is no code for compute capability `arch`, or something in it is unknown or wrong.
    pub fn load(device: &Device, image: &[u8], arch: u32) -> Result<Self, LoadError> {
        let text = ptx(image, arch)?;
        let parsed = crate::ptx::parse(&text)?;
        check_target(&parsed, arch)?;
        let mut globals = BTreeMap::new();
        let loaded = place(device, &parsed, &mut globals)
            .and_then(|symbols| Ok(lower::kernels(&parsed, &symbols)?));
        match loaded {
            Ok(kernels) => {
                let named = |kernel: Kernel| (kernel.name.clone(), Arc::new(kernel));
                Ok(Self { kernels: kernels.into_iter().map(named).collect(), globals })
            }
            Err(error) => {
                free(device, &globals);
                Err(error)
            }
        }
    }

    /// Frees the module's variables.
    pub fn unload(&self, device: &Device) {
        free(device, &self.globals);
    }
}

fn free(device: &Device, globals: &BTreeMap<String, Global>) {
    globals.values().filter(|global| global.bytes > 0).for_each(|global| {
        device.free(global.address);
    });
}

fn check_target(parsed: &ast::Module<'_>, arch: u32) -> Result<(), LoadError> {
    let Some(name) = parsed.targets.iter().find(|name| name.starts_with("sm_")) else {
        return Ok(());
    };
    match Target::parse(name) {
        Some(target) if runs_on(target, arch) => Ok(()),
        _ => Err(LoadError::Target { target: (*name).to_owned(), arch }),
    }
}

/// Allocates all variables, then writes their initial values: these may hold addresses of one another.
fn place<'a>(
    device: &Device,
    parsed: &'a ast::Module<'a>,
    globals: &mut BTreeMap<String, Global>,
) -> Result<Symbols<'a>, LoadError> {
    let mut symbols = HashMap::new();
    let on_device = |v: &&Variable<'_>| matches!(v.space, "global" | "const");
    let (declared, defined): (Vec<_>, Vec<_>) =
        parsed.variables.iter().filter(on_device).partition(|v| v.linkage == "extern");
    for variable in &defined {
        if symbols.contains_key(variable.name) {
            let what = format!("{} is defined twice", variable.name);
            return Err(PtxError::new(variable.line, &what).into());
        }
        let global = allocate(device, variable)?;
        globals.insert(variable.name.to_owned(), global);
        symbols.insert(variable.name, global.address);
    }
    if let Some(missing) = declared.iter().find(|v| !symbols.contains_key(v.name)) {
        return Err(LoadError::Unresolved(missing.name.to_owned()));
    }
    let functions = lower::addressed(parsed);
    let address = |name: &str| {
        let variable = symbols.get(name).copied();
        variable.or_else(|| {
            let index = functions.iter().position(|f| f.name == name)?;
            Some(FUNCTION_WINDOW + 1 + index as u64)
        })
    };
    for variable in defined.iter().filter(|v| !v.init.is_empty()) {
        let bytes = initial(variable, &address)?;
        // Allocated above with room for all of them.
        device
            .write(symbols[variable.name], &bytes)
            .map_err(|error| LoadError::Ptx(PtxError::new(variable.line, &error.to_string())))?;
    }
    Ok(symbols)
}

fn allocate(device: &Device, variable: &Variable<'_>) -> Result<Global, LoadError> {
    let bytes = variable.bytes();
    let full = || LoadError::OutOfMemory { name: variable.name.to_owned(), bytes };
    if bytes == 0 {
        // An empty array has an address, though nothing may be read there.
        return Ok(Global { address: crate::ir::DEVICE_BASE, bytes, managed: false });
    }
    let managed = variable.managed;
    let allocated = if managed { device.allocate_host(bytes) } else { device.allocate(bytes) };
    let address = allocated.ok_or_else(full)?;
    // CUDA's variables are zero where nothing else is said.
    device.fill(address, &[0], bytes).map_err(|_| full())?;
    Ok(Global { address, bytes, managed })
}

/// The bytes of an initialiser.
fn initial(
    variable: &Variable<'_>,
    address: &impl Fn(&str) -> Option<u64>,
) -> Result<Vec<u8>, LoadError> {
    let error = |what: String| LoadError::Ptx(PtxError::new(variable.line, &what));
    let Some(ty) = Ty::parse(variable.ty) else {
        return Err(error(format!("variable {} of type .{}", variable.name, variable.ty)));
    };
    let width = ty.bytes() as usize;
    if (variable.init.len() * width) as u64 > variable.bytes() {
        return Err(error(format!("too many initial values for {}", variable.name)));
    }
    let mut bytes = Vec::with_capacity(variable.init.len() * width);
    for init in &variable.init {
        let value = match init {
            Init::Bits(bits) => *bits,
            Init::Address { name, offset, mask, .. } => {
                let base = address(name).ok_or_else(|| error(format!("unknown name {name}")))?;
                let value = base.wrapping_add(*offset as u64);
                // `0xFF00(name)` is the byte under the mask.
                mask.map_or(value, |mask| {
                    (value & mask).checked_shr(mask.trailing_zeros()).unwrap_or(0)
                })
            }
        };
        let element = u128::from(value).to_le_bytes();
        bytes.extend_from_slice(&element[..width]);
    }
    Ok(bytes)
}
