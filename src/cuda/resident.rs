//! Buffers of one layer's call, copied to the device and back.

use cudarc::driver::CudaSlice;

use super::backend::Cuda;
use super::call::Pointers;
use super::driver::failed;
use super::routing::DeviceRouting;
use crate::Result;
use crate::ops::{LayerOutputs, Options, ParamGrad};
use crate::problem::{Element, Rows};

/// A call's inputs on the host.
pub(super) struct Host<'a, T> {
    pub(super) x: &'a [T],
    pub(super) dy: &'a [T],
    pub(super) weight: Option<&'a [T]>,
    pub(super) tokens: &'a [u32],
    pub(super) rows: &'a Rows,
}

/// Bytes on the device, if there are any.
pub(super) struct Buffer(pub(super) Option<CudaSlice<u8>>);

/// A parameter gradient on the device.
fn grad_buffer<T: Element>(
    cuda: &Cuda,
    to: Option<&ParamGrad<T>>,
    accumulate: bool,
) -> Result<Buffer> {
    match to {
        None => Ok(Buffer(None)),
        Some(ParamGrad::F32(values)) => cuda.output(Some(values), accumulate),
        Some(ParamGrad::Native(values)) => cuda.output(Some(values), accumulate),
    }
}

fn grad_download<T: Element>(cuda: &Cuda, from: &Buffer, to: Option<ParamGrad<T>>) -> Result<()> {
    match to {
        None => Ok(()),
        Some(ParamGrad::F32(values)) => cuda.download(from, Some(values)),
        Some(ParamGrad::Native(values)) => cuda.download(from, Some(values)),
    }
}

/// A layer's buffers on the device.
pub(super) struct Resident {
    pub(super) routing: Option<DeviceRouting>,
    /// Categories, gates, `x`, `dy`, weight, tokens, offsets.
    inputs: [Buffer; 7],
    /// `dx`, `dw`, `db`, squared norms, those of the bias, sketches, touched.
    outputs: [Buffer; 7],
}

impl Resident {
    pub(super) fn new<T: Element>(
        cuda: &Cuda,
        host: Host<T>,
        options: &Options,
        dx: Option<&[T]>,
        out: &LayerOutputs<T>,
    ) -> Result<Self> {
        let upload = |layer| DeviceRouting::upload(cuda.stream(), layer);
        let routing = options.routing.map(|routing| upload(routing.layer)).transpose()?;
        let gates = options.routing.and_then(|routing| routing.gates);
        let inputs = [
            cuda.optional(options.routing.map(|routing| routing.categories))?,
            cuda.optional(gates)?,
            cuda.upload(host.x)?,
            cuda.upload(host.dy)?,
            cuda.optional(host.weight)?,
            cuda.upload(host.tokens)?,
            cuda.upload(host.rows.offsets())?,
        ];
        let kept = options.accumulate;
        let outputs = [
            cuda.output(dx, false)?,
            grad_buffer(cuda, out.dw.as_ref(), kept)?,
            grad_buffer(cuda, out.db.as_ref(), kept)?,
            cuda.output(out.sq_norm.as_deref(), false)?,
            cuda.output(out.sq_norm_bias.as_deref(), false)?,
            cuda.output(out.sketch.as_deref(), false)?,
            out.touched
                .as_ref()
                .map_or(Ok(Buffer(None)), |touched| cuda.unwritten(touched.len()))?,
        ];
        Ok(Self { routing, inputs, outputs })
    }

    pub(super) fn pointers(&self, cuda: &Cuda, workspace: &Buffer) -> Pointers {
        let address = |buffer: &Buffer| cuda.address(buffer);
        let [categories, gates, x, dy, weight, tokens, offsets] =
            self.inputs.each_ref().map(address);
        let [dx, dw, db, sq_norm, sq_norm_bias, sketch, touched] =
            self.outputs.each_ref().map(address);
        Pointers {
            x,
            dy,
            weight,
            tokens,
            offsets,
            categories,
            gates,
            dx,
            dw,
            db,
            sq_norm,
            sq_norm_bias,
            sketch,
            touched,
            workspace: address(workspace),
        }
    }

    /// Copies the outputs back, and waits for them.
    pub(super) fn fetch<T: Element>(
        self,
        cuda: &Cuda,
        dx: Option<&mut [T]>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        let [from_dx, dw, db, sq_norm, sq_norm_bias, sketch, touched] = &self.outputs;
        cuda.download(from_dx, dx)?;
        grad_download(cuda, dw, out.dw)?;
        grad_download(cuda, db, out.db)?;
        cuda.download(sq_norm, out.sq_norm)?;
        cuda.download(sq_norm_bias, out.sq_norm_bias)?;
        cuda.download(sketch, out.sketch)?;
        let mut flags = out.touched.as_ref().map(|touched| vec![0_u8; touched.len()]);
        cuda.download(touched, flags.as_deref_mut())?;
        let wait = cuda.stream().synchronize();
        wait.map_err(|error| failed("cuStreamSynchronize", error))?;
        if let (Some(touched), Some(flags)) = (out.touched, flags) {
            touched.iter_mut().zip(flags).for_each(|(touched, flag)| *touched = flag != 0);
        }
        Ok(())
    }
}
