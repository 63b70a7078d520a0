//! Buffers of one layer's call, copied to the device and back.

use std::marker::PhantomData;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::{CudaSlice, CudaStream, CudaView, CudaViewMut};

use super::batch::{DeviceCategories, DeviceRows};
use super::driver::failed;
use super::routing::{DeviceRouting, upload};
use super::run::{DeviceGrad, DeviceInputs, DeviceOutputs, DeviceRouted};
use crate::Result;
use crate::ops::{LayerOutputs, Options, ParamGrad};
use crate::problem::{Element, Rows};

/// A call's inputs on the host.
pub(super) struct Host<'a, T> {
    pub(super) x: Option<&'a [T]>,
    pub(super) dy: Option<&'a [T]>,
    pub(super) weight: Option<&'a [T]>,
    pub(super) tokens: Option<&'a [u32]>,
    pub(super) rows: &'a Rows,
}

/// Plain numbers on the device. Kept as bytes, since the driver has no empty buffers.
pub(super) struct Copied<T> {
    bytes: CudaSlice<u8>,
    length: usize,
    format: PhantomData<T>,
}

impl<T: Pod> Copied<T> {
    fn upload(stream: &Arc<CudaStream>, values: &[T]) -> Result<Self> {
        let bytes = upload(stream, bytemuck::cast_slice::<_, u8>(values))?;
        Ok(Self { bytes, length: values.len(), format: PhantomData })
    }

    /// Numbers that nothing has written.
    pub(super) fn unwritten(stream: &Arc<CudaStream>, length: usize) -> Result<Self> {
        // SAFETY: what no kernel writes is not read back: each output is written as a whole.
        let bytes = unsafe { stream.alloc::<u8>((length * size_of::<T>()).max(1)) };
        let bytes = bytes.map_err(|error| failed("cuMemAlloc", error))?;
        Ok(Self { bytes, length, format: PhantomData })
    }

    /// A place for an output: a copy of what is added to, else unwritten.
    fn output(stream: &Arc<CudaStream>, to: Option<&[T]>, kept: bool) -> Result<Option<Self>> {
        let place = |values: &[T]| match kept {
            true => Self::upload(stream, values),
            false => Self::unwritten(stream, values.len()),
        };
        to.map(place).transpose()
    }

    fn view(&self) -> CudaView<'_, T> {
        // SAFETY: the bytes are those of so many numbers, and any bytes are numbers.
        unsafe { self.bytes.transmute(self.length) }.expect("as long as it was made")
    }

    pub(super) fn view_mut(&mut self) -> CudaViewMut<'_, T> {
        // SAFETY: as in `view`.
        unsafe { self.bytes.transmute_mut(self.length) }.expect("as long as it was made")
    }

    fn download(&self, stream: &Arc<CudaStream>, to: &mut [T]) -> Result<()> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(to);
        if bytes.is_empty() {
            return Ok(());
        }
        let copied = stream.memcpy_dtoh(&self.bytes, bytes);
        copied.map_err(|error| failed("cuMemcpyDtoH", error))
    }
}

/// A parameter gradient's place on the device.
enum Grad<T> {
    F32(Copied<f32>),
    Native(Copied<T>),
}

impl<T: Element> Grad<T> {
    fn of(stream: &Arc<CudaStream>, to: Option<&ParamGrad<T>>, kept: bool) -> Result<Option<Self>> {
        Ok(match to {
            None => None,
            Some(ParamGrad::F32(values)) => {
                Copied::output(stream, Some(values), kept)?.map(Self::F32)
            }
            Some(ParamGrad::Native(values)) => {
                Copied::output(stream, Some(values), kept)?.map(Self::Native)
            }
        })
    }

    fn view_mut(&mut self) -> DeviceGrad<'_, T> {
        match self {
            Self::F32(values) => DeviceGrad::F32(values.view_mut()),
            Self::Native(values) => DeviceGrad::Native(values.view_mut()),
        }
    }
}

/// A batch's routing of a layer, on the device.
struct Routed {
    layer: DeviceRouting,
    categories: DeviceCategories,
    gates: Option<Copied<f32>>,
}

/// A layer's inputs on the device.
pub(super) struct Resident<T> {
    x: Option<Copied<T>>,
    dy: Option<Copied<T>>,
    weight: Option<Copied<T>>,
    tokens: Option<Copied<u32>>,
    rows: DeviceRows,
    routed: Option<Routed>,
}

impl<T: Element> Resident<T> {
    pub(super) fn new(stream: &Arc<CudaStream>, host: Host<T>, options: &Options) -> Result<Self> {
        let numbers =
            |values: Option<&[T]>| values.map(|values| Copied::upload(stream, values)).transpose();
        let routed = options.routing.map(|routing| {
            let gates = routing.gates.map(|gates| Copied::upload(stream, gates));
            let known = routing.layer.categories() as u32;
            Ok(Routed {
                layer: DeviceRouting::upload(stream, routing.layer)?,
                categories: DeviceCategories::upload(stream, routing.categories, known)?,
                gates: gates.transpose()?,
            })
        });
        Ok(Self {
            x: numbers(host.x)?,
            dy: numbers(host.dy)?,
            weight: numbers(host.weight)?,
            tokens: host.tokens.map(|tokens| Copied::upload(stream, tokens)).transpose()?,
            rows: DeviceRows::upload(stream, host.rows)?,
            routed: routed.transpose()?,
        })
    }

    pub(super) fn inputs(&self) -> DeviceInputs<'_, T> {
        let routed = self.routed.as_ref();
        DeviceInputs {
            x: self.x.as_ref().map(Copied::view),
            dy: self.dy.as_ref().map(Copied::view),
            weight: self.weight.as_ref().map(Copied::view),
            tokens: self.tokens.as_ref().map(Copied::view),
            rows: &self.rows,
            routing: routed.map(|Routed { layer, categories, gates }| DeviceRouted {
                layer,
                categories,
                gates: gates.as_ref().map(Copied::view),
            }),
        }
    }
}

/// A layer's outputs on the device.
pub(super) struct Places<T> {
    dx: Option<Copied<T>>,
    dw: Option<Grad<T>>,
    db: Option<Grad<T>>,
    sq_norm: Option<Copied<f32>>,
    sq_norm_bias: Option<Copied<f32>>,
    sketch: Option<Copied<f32>>,
    touched: Option<Copied<u8>>,
}

impl<T: Element> Places<T> {
    pub(super) fn new(
        stream: &Arc<CudaStream>,
        kept: bool,
        dx: Option<&[T]>,
        out: &LayerOutputs<T>,
    ) -> Result<Self> {
        let touched = out.touched.as_ref().map(|touched| touched.len());
        Ok(Self {
            dx: Copied::output(stream, dx, false)?,
            dw: Grad::of(stream, out.dw.as_ref(), kept)?,
            db: Grad::of(stream, out.db.as_ref(), kept)?,
            sq_norm: Copied::output(stream, out.sq_norm.as_deref(), false)?,
            sq_norm_bias: Copied::output(stream, out.sq_norm_bias.as_deref(), false)?,
            sketch: Copied::output(stream, out.sketch.as_deref(), false)?,
            touched: touched.map(|length| Copied::unwritten(stream, length)).transpose()?,
        })
    }

    pub(super) fn outputs(&mut self) -> DeviceOutputs<'_, T> {
        DeviceOutputs {
            dx: self.dx.as_mut().map(Copied::view_mut),
            dw: self.dw.as_mut().map(Grad::view_mut),
            db: self.db.as_mut().map(Grad::view_mut),
            sq_norm: self.sq_norm.as_mut().map(Copied::view_mut),
            sq_norm_bias: self.sq_norm_bias.as_mut().map(Copied::view_mut),
            sketch: self.sketch.as_mut().map(Copied::view_mut),
            touched: self.touched.as_mut().map(Copied::view_mut),
        }
    }

    /// Copies the outputs back, and waits for them.
    pub(super) fn fetch(
        self,
        stream: &Arc<CudaStream>,
        dx: Option<&mut [T]>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        fetch(stream, self.dx, dx)?;
        fetch_grad(stream, self.dw, out.dw)?;
        fetch_grad(stream, self.db, out.db)?;
        fetch(stream, self.sq_norm, out.sq_norm)?;
        fetch(stream, self.sq_norm_bias, out.sq_norm_bias)?;
        fetch(stream, self.sketch, out.sketch)?;
        let mut flags = vec![0; out.touched.as_ref().map_or(0, |touched| touched.len())];
        fetch(stream, self.touched, Some(&mut flags))?;
        let wait = stream.synchronize();
        wait.map_err(|error| failed("cuStreamSynchronize", error))?;
        if let Some(touched) = out.touched {
            touched.iter_mut().zip(flags).for_each(|(touched, flag)| *touched = flag != 0);
        }
        Ok(())
    }
}

fn fetch<T: Pod>(
    stream: &Arc<CudaStream>,
    from: Option<Copied<T>>,
    to: Option<&mut [T]>,
) -> Result<()> {
    match (from, to) {
        (Some(from), Some(to)) => from.download(stream, to),
        _ => Ok(()),
    }
}

fn fetch_grad<T: Element>(
    stream: &Arc<CudaStream>,
    from: Option<Grad<T>>,
    to: Option<ParamGrad<T>>,
) -> Result<()> {
    match (from, to) {
        (Some(Grad::F32(from)), Some(ParamGrad::F32(to))) => from.download(stream, to),
        (Some(Grad::Native(from)), Some(ParamGrad::Native(to))) => from.download(stream, to),
        _ => Ok(()),
    }
}
